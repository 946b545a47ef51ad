"""What the extra ``sr`` brings, asked without importing it, and the commands that bring it. Knows nothing of torch."""

from __future__ import annotations

import importlib.metadata
import sys
from contextlib import suppress

from facelock.errors import EnvironmentFailure
from facelock.tuning.packages import is_installed

TORCH_INDEX = "https://download.pytorch.org/whl"
EXTRA = "pip install 'facelock-video[sr]'"
SPANDREL = frozenset({"spandrel_upscaler", "spandrel_restorer"})
"""Kinds that need it."""
TORCHVISION_OF_TORCH_2 = 15
"""torchvision 0.(n + 15) belongs to torch 2.n (pytorch/vision's README, table of versions)."""


def torchvision_command(version: str | None = None, build: str | None = None) -> str:
    """The pip command that installs the torchvision of torch ``version`` (the installed one's), from torch's own index.

    ``2.13.0+cpu`` gives ``pip install --upgrade --no-deps 'torchvision==0.28.*' --index-url
    https://download.pytorch.org/whl/cpu``. ``build`` (``cu130``) is that of a torch whose version does not name it.
    """
    number, _, named = (_torch_version() if version is None else version).partition("+")
    wanted, numbers = "torchvision", number.split(".")
    with suppress(ValueError, IndexError):
        if int(numbers[0]) == 2:
            wanted = f"'torchvision==0.{int(numbers[1]) + TORCHVISION_OF_TORCH_2}.*'"
    index = f" --index-url {TORCH_INDEX}/{named or build}" if named or build else ""
    return f"pip install --upgrade --no-deps {wanted}{index}"


def _torch_version() -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("torch")
    return ""


def not_installed(module: str) -> EnvironmentFailure:
    """The error for a ``module`` of the extra that is not installed."""
    if module == "torchvision":
        return cannot_import("No module named 'torchvision'")
    return EnvironmentFailure(
        f"This upscaler or restorer needs {module}, which is not installed. Give {EXTRA}."
    )


def cannot_import(why: str) -> EnvironmentFailure:
    """The error for spandrel that is there and cannot be used, mostly because of torchvision."""
    return EnvironmentFailure(
        f"spandrel cannot be imported ({why}): it needs a torchvision made for this torch. "
        f"Give {torchvision_command()}."
    )


def lacking_extra() -> EnvironmentFailure | None:
    """What the kinds of :data:`SPANDREL` lack here; None where both packages are installed."""
    if sys.modules.get("spandrel") is not None:  # it was imported, so it has what it needs
        return None
    missing = [name for name in ("spandrel", "torchvision") if not is_installed(name)]
    return not_installed(missing[0]) if missing else None
