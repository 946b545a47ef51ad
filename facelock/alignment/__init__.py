"""Stage 2: aligners by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from facelock.errors import ConfigError

if TYPE_CHECKING:
    from facelock.alignment.faceid import FaceID
    from facelock.alignment.inswapper import InSwapper
    from facelock.alignment.warp import WarpAligner

ALIGNERS = ("inswapper", "warp", "faceid")
"""Kinds that a recipe can name."""


def aligner_class(kind: str) -> type[InSwapper] | type[WarpAligner] | type[FaceID]:
    """Class of the aligner ``kind``. Raises ``ConfigError`` for an unknown one."""
    if kind == "inswapper":
        from facelock.alignment.inswapper import InSwapper

        return InSwapper
    if kind == "warp":
        from facelock.alignment.warp import WarpAligner

        return WarpAligner
    if kind == "faceid":
        from facelock.alignment.faceid import FaceID

        return FaceID
    raise ConfigError(f"no aligner is called {kind!r}. Give one of {', '.join(ALIGNERS)}.")
