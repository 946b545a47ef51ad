"""State dicts of torch networks from a file, safetensors or the tensors of a ``.pth``, never a pickle that can act.

::

    state = load_state_dict("realesr-general-x4v3.pth")     # {"body.0.weight": (64, 3, 3, 3), ...}

A ``.pth`` is read by torch's own unpickler with ``weights_only=True``, which builds tensors, numbers, strings, lists
and dicts and refuses everything else before it is called.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from facelock.errors import ModelError, first_line
from facelock.weights import MOST_TENSORS, load_safetensors

TENSOR_FILES = (".safetensors", ".pth")
"""Endings that :func:`load_state_dict` reads."""
_WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Keys under which trainers put the state dict, best first (spandrel's list, averaged weights before raw ones)."""
_PREFIXES = ("module.", "netG.")

T = TypeVar("T")


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or ``.pth`` file on the CPU, out of their wrapper, without a common prefix.

    Raises ``ModelError`` for a file that is missing, damaged, of another ending, holds anything but tensors, or
    holds NaN or infinity.
    """
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        return _plain(load_safetensors(path))
    state = _unwrapped(_read(_pth(path)))
    _check(path, state)
    return _plain(state)


def tensor_sizes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Name → size of the tensors that :func:`load_state_dict` would read, without reading their values.

    Raises ``ModelError`` for a file that is missing, damaged, of another ending or holds anything but tensors.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        found = _unwrapped(_read(_pth(path), lazy=True))
        if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
            raise ModelError(f"{path}: holds no state dict. Give a file of a network's weights.")
        return {str(key): tuple(tensor.shape) for key, tensor in _plain(found).items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: tuple(part.get_shape()) for name, part in _plain(slices).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}). Fetch it again.") from error


def _pth(path: Path) -> Path:
    if path.suffix.lower() != ".pth":
        raise ModelError(f"{path}: weights end in {' or '.join(TENSOR_FILES)}. Give such a file.")
    return path


def _read(path: Path, *, lazy: bool = False) -> Any:
    """What a ``.pth`` holds; ``lazy``: its tensors without their values, unless it is of the old format."""
    if not path.is_file():
        raise ModelError(f"{path}: no such model file. Fetch it, or name another file in the recipe.")
    try:
        if lazy and zipfile.is_zipfile(path):
            return torch.load(path, map_location="meta", mmap=True, weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle raise a dozen unrelated types
        raise ModelError(
            f"{path}: not a readable .pth of tensors alone ({first_line(error, 120)}). "
            "Fetch it again, or give safetensors."
        ) from error


def _unwrapped(found: Any) -> Any:
    """The state dict inside of what a trainer saved."""
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            return found[key]
    return found


def _check(path: Path, state: Any) -> None:
    if not isinstance(state, Mapping) or not state or len(state) > MOST_TENSORS:
        raise ModelError(f"{path}: holds no state dict. Give a file of a network's weights.")
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ModelError(f"{path}: {str(key)[:80]!r} is no tensor. Give a file of weights alone.")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: tensor {key!r} holds NaN or infinity. Fetch it again.")


def _plain(state: Mapping[str, T]) -> dict[str, T]:
    """Without a prefix that all names share."""
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return dict(state)
