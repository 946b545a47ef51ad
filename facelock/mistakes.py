"""What pydantic found wrong in a file, as sentences: ``lock.lader: unknown key, did you mean 'ladder'?``.

Shared by recipes and storyboards. Knows nothing of torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

Place = tuple[str | int, ...]
"""Keys and indices from the top of a file to a value."""

TABLES = frozenset({"model_type", "model_attributes_type", "dict_type"})
LISTS = frozenset({"tuple_type", "list_type"})
"""What pydantic calls a value of another shape."""
COUNTS = frozenset({"too_short", "too_long"})
"""What it calls a list or a table of too few or too many."""


def sentence(detail: ErrorDetails, root: type[BaseModel], whole: str) -> str:
    """One mistake, led by where it is; ``whole`` names the file's kind where that is the top.

    ``root`` is the model that was validated: its keys are what an unknown one may have been meant to be.
    """
    place = tuple(part for part in detail["loc"] if part != "[key]")
    key = ".".join(str(part) for part in place) or whole
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(str(place[-1]), known_keys(root, place[:-1]))}"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    if detail["type"] in TABLES:
        return f"{key}: must be a table{_found(detail)}"
    if detail["type"] in LISTS:
        return f"{key}: must be a list{_found(detail)}"
    if detail["type"] in COUNTS:
        return f"{key}: {_count(detail)}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix(f"{key}: ").rstrip(".")
    if message.startswith(f"{key}."):  # it says itself where it is
        return message
    return f"{key}: {message[0].lower()}{message[1:]}{_found(detail)}"


def _count(detail: ErrorDetails) -> str:
    """``must have at least 1 item, not 0``: pydantic speaks of tuples and dictionaries, which no file has."""
    limits = detail.get("ctx", {})
    few = detail["type"] == "too_short"
    wanted = limits["min_length"] if few else limits["max_length"]
    items = "item" if wanted == 1 else "items"
    return (
        f"must have at {'least' if few else 'most'} {wanted} {items}, not {limits.get('actual_length') or 0}"
    )


def _found(detail: ErrorDetails) -> str:
    """`` (found 3)``; nothing for what is too long to show."""
    found = detail.get("input")
    return f" (found {_short(found)})" if isinstance(found, int | float | str) else ""


def listed(sentences: Iterable[str]) -> str:
    """Sentences as one, no mark beside another: ``"a: must be 1; b: unknown key, did you mean 'c'? d: is missing."``"""
    text = ""
    for one in sentences:
        text += f"{'' if not text else ' ' if text.endswith('?') else '; '}{one.rstrip('. ')}"
    return text if text.endswith(("?", "!")) else f"{text}."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``, did you mean 'ladder'?``, or nothing where no known word is close."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def known_keys(root: type[BaseModel], place: Place) -> list[str]:
    """Keys that the model at ``place`` below ``root`` knows; empty where no model stands."""
    kind: Any = root
    for part in place:
        model = _model(kind)
        if model is None:  # a list or a mapping, whose items are all of its last kind
            kind = next((inner for inner in reversed(get_args(kind)) if inner is not Ellipsis), None)
            continue
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        kind = fields.get(str(part))
    model = _model(kind)
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _model(kind: Any) -> type[BaseModel] | None:
    """``Lock`` or ``Lock | None`` → ``Lock``; None for anything else."""
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        kind = next((inner for inner in get_args(kind) if inner is not type(None)), None)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
