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

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from facelock.errors import InputError
from facelock.mistakes import Place

LARGEST_FILE = 1 << 20
"""Bytes; a feature film's storyboard is a tenth of that."""
DEEPEST = 50
"""Levels of lists and mappings."""
MOST_VALUES = 60_000
"""Of a file; more would take longer to read than any storyboard is worth."""
LONGEST_NUMBER = 400
"""Digits."""
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
    readers = {".yaml": read_yaml, ".yml": read_yaml, ".json": read_json}
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: is no storyboard. Give a file that ends in {', '.join(SUFFIXES)}.")
    text = _text(path)
    if path.suffix.lower() == ".csv":
        from facelock.storyboards.tables import read_csv

        return read_csv(text)
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
        if node is not None:
            _Walk(lines).value(node, ())
    except (YAMLError, ValueError, RecursionError, UnicodeError):
        lines = Source()  # JSON decides what is wrong
    twice: list[str] = []
    try:
        data = json.loads(
            text, parse_constant=_no_constant, parse_int=_whole, object_pairs_hook=_table_noting(twice)
        )
    except json.JSONDecodeError as error:
        return Source(mistakes=[Mistake(error.lineno, f"is not valid JSON ({error.msg})")])
    except (ValueError, RecursionError) as error:
        return Source(mistakes=[Mistake(None, f"is not valid JSON ({error})")])
    found = [each for each in lines.mistakes if "stands twice" in each.text]
    return Source(
        data, lines.lines, found or [Mistake(None, f"{key}: this key stands twice") for key in twice]
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"{digits[:20]}... is too long a number")
    return int(digits)


def _table_noting(twice: list[str]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """What builds a mapping of pairs, and adds keys that stand twice to ``twice``."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(values := dict(pairs)) < len(pairs):
            twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return values

    return build


def _refused(text: str) -> Mistake | None:
    """What makes a file dangerous to build: found over its events, before anything is built."""
    depth = 0
    for count, event in enumerate(YAML(typ="safe", pure=True).parse(io.StringIO(text))):
        line = event.start_mark.line + 1
        if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
            return Mistake(line, "says that it is other YAML than 1.2; leave the %YAML line out")
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
