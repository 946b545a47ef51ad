"""Stage 3: upscalers and face restorers by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from facelock.errors import ConfigError

UPSCALERS = {
    "onnx_upscaler": "OnnxUpscaler",
    "compact_upscaler": "CompactUpscaler",
    "spandrel_upscaler": "SpandrelUpscaler",
}
RESTORERS = {
    "onnx_restorer": "OnnxRestorer",
    "spandrel_restorer": "SpandrelRestorer",
    "faceid_restorer": "FaceIDRestorer",
}
"""Kinds that a recipe can name, and their classes; each is a module of this package, imported when it is asked for."""


def upscaler_class(kind: str) -> Any:
    """Class of the upscaler ``kind``, a :class:`facelock.protocols.Upscaler`. Raises ``ConfigError`` for an unknown
    one."""
    return _class(kind, UPSCALERS, "upscaler")


def restorer_class(kind: str) -> Any:
    """Class of the face restorer ``kind``, a :class:`facelock.protocols.FaceRestorer`. Raises ``ConfigError`` for an
    unknown one."""
    return _class(kind, RESTORERS, "face restorer")


def _class(kind: str, known: dict[str, str], what: str) -> Any:
    if kind not in known:
        raise ConfigError(f"no {what} is called {kind!r}. Give one of {', '.join(known)}.")
    return getattr(import_module(f"facelock.restoration.{kind}"), known[kind])
