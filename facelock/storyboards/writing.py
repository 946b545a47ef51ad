"""A storyboard as text: YAML, JSON or CSV, from which it can be read back without a loss."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from facelock.errors import InputError
from facelock.storyboard import Storyboard


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
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 100
    yaml.representer.ignore_aliases = lambda *_: True  # type: ignore[method-assign]
    text = io.StringIO()
    yaml.dump(board.data(), text)
    return text.getvalue()


def to_csv(board: Storyboard) -> str:
    """One row for the film, one per character, one for the defaults, one per shot."""
    data = board.data()
    rows: list[dict[str, Any]] = [
        {"kind": "film", **{key: data[key] for key in ("title", "audio") if key in data}}
    ]
    rows += [{"kind": "cast", "name": name, **member} for name, member in data["cast"].items()]
    rows += [{"kind": "defaults", **data["defaults"]}] if "defaults" in data else []
    rows += [{"kind": "shot", **shot} for shot in data["shots"]]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ";".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
