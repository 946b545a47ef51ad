"""Stage 3: upscalers and face restorers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from facelock.errors import ConfigError

if TYPE_CHECKING:
    from facelock.restoration.onnx_restorer import OnnxRestorer
    from facelock.restoration.onnx_upscaler import OnnxUpscaler

UPSCALERS = ("onnx_upscaler",)
RESTORERS = ("onnx_restorer",)
"""Kinds that a recipe can name."""


def upscaler_class(kind: str) -> type[OnnxUpscaler]:
    """Class of the upscaler ``kind``. Raises ``ConfigError`` for an unknown one."""
    if kind not in UPSCALERS:
        raise ConfigError(f"no upscaler is called {kind!r}. Give one of {', '.join(UPSCALERS)}.")
    from facelock.restoration.onnx_upscaler import OnnxUpscaler

    return OnnxUpscaler


def restorer_class(kind: str) -> type[OnnxRestorer]:
    """Class of the face restorer ``kind``. Raises ``ConfigError`` for an unknown one."""
    if kind not in RESTORERS:
        raise ConfigError(f"no face restorer is called {kind!r}. Give one of {', '.join(RESTORERS)}.")
    from facelock.restoration.onnx_restorer import OnnxRestorer

    return OnnxRestorer
