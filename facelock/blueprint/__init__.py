"""Stage 1, the blueprint: video diffusion that writes low-resolution frames chunk by chunk.

::

    backbone = backbone_class("skyreels_v2")(folder, size=(64, 64), fps=12, window=17, context=5)

One file per implementation; importing this package loads none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from facelock.errors import ConfigError

BACKBONES = {
    "skyreels_v2": "facelock.blueprint.skyreels_v2:SkyReelsV2",
    "wan_vace": "facelock.blueprint.wan_vace:WanVace",
    "helios": "facelock.blueprint.helios:Helios",
}
"""``kind`` of a recipe's [blueprint] → module and class, which implements ``protocols.Backbone``."""


def backbone_class(kind: str) -> type[Any]:
    """The class behind ``kind``; :class:`ConfigError` names the known ones."""
    if kind not in BACKBONES:
        raise ConfigError(f"No blueprint is of kind {kind!r}. Give one of: {', '.join(sorted(BACKBONES))}.")
    module, name = BACKBONES[kind].split(":")
    return getattr(import_module(module), name)
