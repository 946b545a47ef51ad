"""Stage 2: aligners by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from facelock.errors import ConfigError

if TYPE_CHECKING:
    from facelock.alignment.inswapper import InSwapper
    from facelock.alignment.warp import WarpAligner

ALIGNERS = ("inswapper", "warp")
"""Kinds that a recipe can name."""


def aligner_class(kind: str) -> type[InSwapper] | type[WarpAligner]:
    """Class of the aligner ``kind``. Raises ``ConfigError`` for an unknown one."""
    if kind == "inswapper":
        from facelock.alignment.inswapper import InSwapper

        return InSwapper
    if kind == "warp":
        from facelock.alignment.warp import WarpAligner

        return WarpAligner
    raise ConfigError(f"no aligner is called {kind!r}. Give one of {', '.join(ALIGNERS)}.")
