"""A storyboard as text: YAML, JSON or CSV, from which it can be read back without a loss."""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from facelock.errors import ConfigError, InputError
from facelock.storyboard import Storyboard
from facelock.storyboards.tables import read_csv


def text_of(board: Storyboard, path: Path) -> str:
    """The text in the form that ``path`` ends in. Raises ``InputError`` for any other."""
    writers = {".yaml": to_yaml, ".yml": to_yaml, ".json": to_json, ".csv": to_csv}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise InputError(f"{path}: a storyboard is written as {', '.join(writers)}. Give such a name.")
    return writer(board)


def to_json(board: Storyboard) -> str:
    """Indented JSON."""
    return json.dumps(board.data(), indent=2, ensure_ascii=False) + "\n"


def to_yaml(board: Storyboard) -> str:
    """YAML 1.2 without anchors."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 100
    yaml.representer.ignore_aliases = lambda *_: True  # type: ignore[method-assign]
    text = io.StringIO()
    yaml.dump(board.data(), text)
    return text.getvalue()


class _Representer(SafeRepresenter):
    """Ruamel's own, with another way for some texts."""


def _escaped(representer: Any, text: str) -> Any:
    """Between double quotes where a line break of Unicode would be folded to a space."""
    style = '"' if any(each in text for each in "\r\x85\u2028\u2029\ufeff") else None
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _escaped)


def to_csv(board: Storyboard) -> str:
    """One row for the film, one per character, one for the defaults, one per shot.

    Raises ``ConfigError`` for a storyboard that a table cannot hold, such as text that begins with ``=``.
    """
    text = _table(board)
    source = read_csv(text)
    reason = (
        str(source.mistakes[0]) if source.mistakes else "spaces at the end of a text, or a ; in a file's name"
    )
    with suppress(ValueError):
        if not source.mistakes and Storyboard.from_data(source.data).model_dump() == board.model_dump():
            return text
    raise ConfigError(f"This storyboard cannot be a table without a loss ({reason}). Write .yaml or .json.")


def _table(board: Storyboard) -> str:
    data = board.data()
    rows: list[dict[str, Any]] = [
        {"kind": "film", **{key: data[key] for key in ("title", "audio") if key in data}}
    ]
    rows += [{"kind": "cast", "name": name, **member} for name, member in data["cast"].items()]
    rows += [{"kind": "defaults", **data["defaults"]}] if "defaults" in data else []
    rows += [{"kind": "shot", **shot} for shot in data["shots"]]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")  # as RFC 4180 has it
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ";".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
