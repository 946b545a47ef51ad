"""What a recipe's ``[speed]`` needs installed, asked without importing it. Knows nothing of torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping

from facelock.errors import EnvironmentFailure
from facelock.tuning.options import Speed

ATTENTION_PACKAGES: Mapping[str, tuple[str, str]] = {
    "flash": ("flash_attn", "flash-attn"),
    "flash_3": ("flash_attn_3", "flash_attn_3 (built from flash-attention's hopper folder)"),
    "sage": ("sageattention", "sageattention"),
    "xformers": ("xformers", "xformers"),
}
"""Attention backend → module that it calls, and what pip is to install."""


def is_installed(module: str) -> bool:
    """Whether ``module`` would be found by an import."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is broken, or it is half imported
        return False


def lacking_packages(speed: Speed) -> Iterator[EnvironmentFailure]:
    """An error for each package that the choices of ``speed`` need and that is not installed."""
    if speed.quantise == "int8" and not is_installed("torchao"):
        yield EnvironmentFailure(
            "speed.quantise = 'int8' needs torchao, which is not installed. Give pip install torchao, or float8."
        )
    module, name = ATTENTION_PACKAGES.get(speed.attention or "", ("", ""))
    if module and not is_installed(module):
        yield EnvironmentFailure(
            f"speed.attention = {speed.attention!r} needs {module}, which is not installed. "
            f"Give pip install {name}, or choose native."
        )
