"""Stage 2: aligners by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from facelock.errors import ConfigError

if TYPE_CHECKING:
    from facelock.alignment.inswapper import InSwapper

ALIGNERS = ("inswapper",)
"""Kinds that a recipe can name."""


def aligner_class(kind: str) -> type[InSwapper]:
    """Class of the aligner ``kind``. Raises ``ConfigError`` for an unknown one."""
    if kind != "inswapper":
        raise ConfigError(f"no aligner is called {kind!r}. Give one of {', '.join(ALIGNERS)}.")
    from facelock.alignment.inswapper import InSwapper

    return InSwapper
