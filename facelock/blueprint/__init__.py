"""Stage 1, the blueprint: video diffusion that writes low-resolution frames chunk by chunk.

::

    backbone = backbone_class("skyreels_v2")(folder, size=(64, 64), fps=12, window=17, context=5, steps=8)

One file per implementation; importing this package loads none of them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib import import_module
from typing import Any

from facelock.errors import ConfigError, InputError

BACKBONES = {
    "skyreels_v2": "facelock.blueprint.skyreels_v2:SkyReelsV2",
    "wan_vace": "facelock.blueprint.wan_vace:WanVace",
    "helios": "facelock.blueprint.helios:Helios",
    "ltx2": "facelock.blueprint.ltx2:LTX2",
    "consisid": "facelock.blueprint.consisid:ConsisID",
}
"""``kind`` of a recipe's [blueprint] → module and class, which implements ``protocols.Backbone``."""

SINGLE_CLIP = frozenset({"consisid"})
"""Kinds that cannot be continued: their clips are one window long at most."""


def refuse_continuation(kind: str, *, window: int, frames: int, fps: Fraction) -> None:
    """Raise ``InputError`` where a clip of ``frames`` is longer than what ``kind`` can write; loads nothing."""
    if kind in SINGLE_CLIP and frames > window:
        raise InputError(
            f"This recipe writes one clip of {float(window / fps):.1f} seconds and cannot continue it, "
            f"but {float(frames / fps):.1f} were asked for. Ask for less, or give another recipe."
        )


def backbone_class(kind: str) -> type[Any]:
    """The class behind ``kind``; :class:`ConfigError` names the known ones."""
    if kind not in BACKBONES:
        raise ConfigError(f"No blueprint is of kind {kind!r}. Give one of: {', '.join(sorted(BACKBONES))}.")
    module, name = BACKBONES[kind].split(":")
    with _collector_paused():
        return getattr(import_module(module), name)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """diffusers makes millions of objects that stay: looking for garbage among them is a sixth of its import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
