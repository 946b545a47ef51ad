"""A storyboard that is a table, as spreadsheets save it: CSV with commas, semicolons or tabs.

A column ``kind`` says ``film``, ``cast``, ``defaults`` or ``shot`` (also when empty). A cell that a spreadsheet
would run as a formula is a mistake.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from facelock.mistakes import Place, did_you_mean
from facelock.storyboards.reading import Mistake, Source

NUMBERS = {"seconds": float, "fps": float, "target": float, "seed": int, "tries": int, "face_index": int}
FLAGS = {"lock", "restore"}
CAST_COLUMNS = ("face", "face_index", "look")
FILM_COLUMNS = ("title", "audio")
SEPARATORS = ",;\t"


def read_csv(text: str) -> Source:
    """The values of a table and the line of each; mistakes are collected, none is raised.

    Excel's first line ``sep=;`` is understood, and decimal commas where commas do not separate.
    """
    first, _, rest = text.partition("\n")
    told = first.strip().lower().removeprefix("sep=")
    if told != first.strip().lower() and len(told) == 1:
        return _Table(told, 1).read(rest)
    return _Table(max(SEPARATORS, key=first.count), 0).read(text)


class _Table:
    """Reads rows into a :class:`Source`."""

    def __init__(self, separator: str, above: int) -> None:
        """``above`` is how many lines stand above the text that is read."""
        self.separator, self.above = separator, above
        self.source = Source({"schema": "facelock.storyboard.v1", "cast": {}, "shots": []})
        self.known = _columns()
        self.header: list[str] = []

    def read(self, text: str) -> Source:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=self.separator, strict=True)
        line = 1 + self.above
        try:
            for row in rows:
                if any(cell.strip() for cell in row):
                    self._row(row, line)
                line = rows.line_num + 1 + self.above
        except csv.Error as error:
            self._complain(line, f"is not valid CSV ({error})")
        if not self.header:
            self._complain(
                None, "is empty; its first line names the columns: kind, name, face, prompt, seconds"
            )
        return self.source

    def _complain(self, line: int | None, text: str) -> None:
        self.source.mistakes.append(Mistake(line, text))

    def _row(self, row: Sequence[str], line: int) -> None:
        if self.header:
            self._add(row, line)
            return
        self.header = [cell.strip().lower() for cell in row]
        for number, name in enumerate(self.header):
            if name and name in self.header[:number]:
                self._complain(line, f"the column {name!r} stands twice")
            elif name and name not in self.known:
                self._complain(line, f"{name}: unknown column{did_you_mean(name, self.known)}")

    def _add(self, row: Sequence[str], line: int) -> None:
        if len(row) > len(self.header):
            self._complain(line, f"has {len(row)} cells where there are {len(self.header)} columns")
        values = dict[str, Any]()
        for name, cell in zip(self.header, row, strict=False):
            if cell.strip() and name in self.known:
                values[name] = self._cell(name, cell.strip(), line)
            elif cell.strip() and not name:
                self._complain(line, f"{cell.strip()[:40]!r} stands in a column without a name")
        place = self._place(values.pop("kind", "shot"), values, line)
        if place is not None:
            self.source.lines[place] = line
            self.source.lines.update({(*place, name): line for name in values})

    def _place(self, kind: Any, values: dict[str, Any], line: int) -> Place | None:
        """Put a row where it belongs; None where it does not."""
        data = self.source.data
        if kind == "shot":
            data["shots"].append(values)
            return "shots", len(data["shots"]) - 1
        name = values.pop("name", None)
        if kind == "cast" and name and name not in data["cast"]:
            data["cast"][name] = values
            return "cast", name
        if kind == "defaults" and "defaults" not in data:
            data["defaults"] = values
            return ("defaults",)
        if kind == "film":
            data.update({key: value for key, value in values.items() if key not in data})
            return ()
        wrong = {"cast": f"cast.{name}: this key stands twice" if name else "a row of the cast has no name"}
        wrong["defaults"] = "defaults: this key stands twice"
        near = did_you_mean(str(kind), ("film", "cast", "defaults", "shot"))
        self._complain(line, wrong.get(str(kind), f"kind: {kind!r} is no kind of row{near}"))
        return None

    def _cell(self, name: str, cell: str, line: int) -> Any:
        if self.separator != "," and name in (*NUMBERS, "transition"):
            cell = cell.replace(",", ".")  # a decimal comma
        number = _number(name, cell)
        if number is not None:
            return number
        if cell[0] in "=+-@":
            self._complain(line, f"{name}: {cell[:40]!r} is a formula; write plain text")
        if name in FLAGS and cell.lower() in ("true", "false"):
            return cell.lower() == "true"
        if name == "face" and ";" in cell:
            return [part.strip() for part in cell.split(";")]
        return cell


def _columns() -> list[str]:
    from facelock.storyboard import Defaults, Shot

    return list(
        dict.fromkeys(["kind", *CAST_COLUMNS, *FILM_COLUMNS, *Defaults.model_fields, *Shot.model_fields])
    )


def _number(name: str, cell: str) -> float | int | None:
    kind = NUMBERS.get(name)
    try:
        return (
            None if kind is None or "_" in cell else int(cell) if cell.lstrip("+-").isdigit() else kind(cell)
        )
    except ValueError:
        return None
