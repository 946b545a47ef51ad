"""A storyboard's text as plain values, with the line of each: YAML 1.2, JSON, CSV.

::

    source = read_source(Path("board.yaml"))
    source.data["shots"][0]["seconds"]            # 10
    source.line(("shots", 0, "seconds"))          # 14
    source.mistakes                               # what is wrong with the text itself

Nothing in a file runs and nothing is expanded: aliases, tags, formulas, other encodings, more than a
megabyte and more than 50 levels are refused. Knows no torch.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from facelock.errors import InputError
from facelock.mistakes import Place, did_you_mean

LARGEST_FILE = 1 << 20
"""Bytes; a feature film's storyboard is a tenth of that."""
DEEPEST = 50
"""Levels of lists and mappings."""
MOST_VALUES = 60_000
"""Of a file; more would take longer to read than any storyboard is worth."""
SUFFIXES = (".yaml", ".yml", ".json", ".csv", ".fountain")


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong in a storyboard."""

    line: int | None
    """Counted from 1; None where no line is to blame."""
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


@dataclass
class Source:
    """Plain values of a file (dicts, lists, text, numbers), where each stands, and what was wrong."""

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def line(self, place: Place) -> int | None:
        """Line of the value at ``place``, or of the nearest thing around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place)

    def complain(self, place: Place, text: str) -> None:
        """Note a mistake at ``place``."""
        self.mistakes.append(Mistake(self.line(place), text))


def read_source(path: Path) -> Source:
    """Read ``path`` by its ending; mistakes of the text are collected, none is raised.

    Raises ``InputError`` for a file that is missing, too large, of another encoding or of no kind that is
    read here.
    """
    readers = {".yaml": read_yaml, ".yml": read_yaml, ".json": read_json, ".csv": read_csv}
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: is no storyboard. Give a file that ends in {', '.join(SUFFIXES)}.")
    text = _text(path)
    if path.suffix.lower() == ".fountain":
        from facelock.storyboards.fountain import read_fountain

        return read_fountain(text, path.parent)
    return readers[path.suffix.lower()](text)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "there is no such file"
            raise InputError(f"{path}: {what}. Check the name.")
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(
                f"{path}: {path.stat().st_size} bytes is no storyboard. Give at most a megabyte."
            )
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not UTF-8 text (byte {error.start}). Save it with the encoding UTF-8."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the file.") from error


def read_yaml(text: str) -> Source:
    """YAML 1.2: ``12:30:00`` and ``no`` are text, a key that stands twice is a mistake."""
    source = Source()
    try:
        refusal = _refused(text)
        if refusal:
            source.mistakes.append(refusal)
            return source
        node = YAML(typ="safe", pure=True).compose(text)
    except YAMLError as error:
        source.mistakes.append(_syntax(error, "YAML"))
    except (ValueError, RecursionError, UnicodeError) as error:
        source.mistakes.append(Mistake(None, f"is not valid YAML ({error})"))
    else:
        source.data = _Walk(source).value(node, ()) if node is not None else None
    return source


def read_json(text: str) -> Source:
    """Strict JSON; lines are found by reading it once more as the YAML that it is, too."""
    lines = Source()
    plain = text.replace("\t", " ")  # within a JSON text a tab can only be space between values
    try:
        refusal = _refused(plain)
        if refusal:
            return Source(mistakes=[refusal])
        node = YAML(typ="safe", pure=True).compose(plain)
        _Walk(lines).value(node, ())
    except (YAMLError, ValueError, RecursionError, UnicodeError):
        lines = Source()  # JSON decides what is wrong
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return Source(mistakes=[Mistake(error.lineno, f"is not valid JSON ({error.msg})")])
    except (ValueError, RecursionError) as error:
        return Source(mistakes=[Mistake(None, f"is not valid JSON ({error})")])
    return Source(data, lines.lines, [each for each in lines.mistakes if "stands twice" in each.text])


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _refused(text: str) -> Mistake | None:
    """What makes a file dangerous to build: found over its events, before anything is built."""
    depth = 0
    for count, event in enumerate(YAML(typ="safe", pure=True).parse(io.StringIO(text))):
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            return Mistake(line, "an alias (*) is not read here; write the value out")
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            return Mistake(line, f"is nested more than {DEEPEST} levels deep; a storyboard has five")
        if count > MOST_VALUES:
            return Mistake(line, f"holds more than {MOST_VALUES} values; split the storyboard")
    return None


def _syntax(error: YAMLError, kind: str) -> Mistake:
    if isinstance(error, MarkedYAMLError) and error.problem:
        mark = error.problem_mark or error.context_mark
        return Mistake(mark.line + 1 if mark else None, f"is not valid {kind} ({error.problem})")
    return Mistake(None, f"is not valid {kind} ({str(error).splitlines()[0]})")


_TEXT = ("str", "timestamp", "value", "merge")
"""YAML's kinds that stay text; a timestamp too, since nothing in a storyboard is a date."""


class _Walk:
    """From nodes to values; a tag that would build something is a mistake, not an object."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.build = YAML(typ="safe", pure=True).constructor

    def value(self, node: Node, place: Place) -> Any:
        self.source.lines.setdefault(place, node.start_mark.line + 1)
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, place)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.value(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and kind in (*_TEXT, "int", "float", "bool", "null"):
            return node.value if kind in _TEXT else self._scalar(node, kind, place)
        self.source.complain(place, f"the tag {node.tag} is not read here; write a plain value")
        return None

    def _mapping(self, node: MappingNode, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                self.source.mistakes.append(Mistake(line, "a key must be plain text"))
                continue
            if key.value in values:
                text = f"{'.'.join(map(str, (*place, key.value)))}: this key stands twice"
                self.source.mistakes.append(Mistake(line, text))
                continue
            self.source.lines[(*place, key.value)] = line
            values[key.value] = self.value(item, (*place, key.value))
        return values

    def _scalar(self, node: ScalarNode, kind: str, place: Place) -> Any:
        try:
            return getattr(self.build, f"construct_yaml_{kind}")(node)
        except (ValueError, OverflowError):
            self.source.complain(place, f"{node.value[:40]!r} is no number")
            return None


NUMBERS = {"seconds": float, "fps": float, "target": float, "seed": int, "tries": int, "face_index": int}
FLAGS = {"lock", "restore"}
CAST_COLUMNS = ("face", "face_index", "look")
FILM_COLUMNS = ("title", "audio")


def read_csv(text: str) -> Source:
    """A table: column ``kind`` says ``film``, ``cast``, ``defaults`` or ``shot`` (also when empty).

    A cell that a spreadsheet would run as a formula is a mistake. Commas or semicolons separate.
    """
    source = Source({"schema": "facelock.storyboard.v1", "cast": {}, "shots": []})
    head = text.split("\n", 1)[0]
    delimiter = ";" if head.count(";") > head.count(",") else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        _check_header(source, header)
        for row in rows:
            if any(cell.strip() for cell in row):
                _add_row(source, header, row, rows.line_num)
    except csv.Error as error:
        source.mistakes.append(Mistake(rows.line_num, f"is not valid CSV ({error})"))
    return source


def _columns() -> list[str]:
    from facelock.storyboard import Defaults, Shot

    return ["kind", *CAST_COLUMNS, *FILM_COLUMNS, *Defaults.model_fields, *Shot.model_fields]


def _check_header(source: Source, header: Sequence[str]) -> None:
    known = _columns()
    for number, name in enumerate(header):
        if name in header[:number]:
            source.mistakes.append(Mistake(1, f"the column {name!r} stands twice"))
        elif name not in known:
            source.mistakes.append(Mistake(1, f"{name}: unknown column{did_you_mean(name, known)}"))


def _add_row(source: Source, header: Sequence[str], row: Sequence[str], line: int) -> None:
    if len(row) > len(header):
        source.mistakes.append(Mistake(line, f"has {len(row)} cells where there are {len(header)} columns"))
    known, values = set(_columns()), dict[str, Any]()
    for name, cell in zip(header, row, strict=False):
        if cell.strip() and name in known:
            values[name] = _cell(source, name, cell.strip(), line)
    kind = values.pop("kind", "shot")
    place = _place(source, kind, values, line)
    if place is not None:
        source.lines[place] = line
        source.lines.update({(*place, name): line for name in values})


def _place(source: Source, kind: Any, values: dict[str, Any], line: int) -> Place | None:
    """Put a row where it belongs; None where it does not."""
    data = source.data
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
    source.mistakes.append(Mistake(line, wrong.get(kind, f"kind: {kind!r} is no kind of row{near}")))
    return None


def _cell(source: Source, name: str, cell: str, line: int) -> Any:
    number = _number(name, cell)
    if number is not None:
        return number
    if cell[0] in "=+-@":
        source.mistakes.append(Mistake(line, f"{name}: {cell[:40]!r} is a formula; write plain text"))
        return None
    if name in FLAGS and cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    if name == "face" and ";" in cell:
        return [part.strip() for part in cell.split(";")]
    return cell


def _number(name: str, cell: str) -> float | int | None:
    kind = NUMBERS.get(name)
    try:
        return int(cell) if kind and cell.lstrip("+-").isdigit() else kind(cell) if kind else None
    except ValueError:
        return None
