"""Reads a tiny decoder from a safetensors file in TAEHV's layout, and trusts nothing in it.

::

    decoder = load_tiny_decoder("taew2_1.safetensors")
    decoder(latents)          # (1, z, F, h, w) normalised → (1, T, 3, H, W) in [0, 1]

Everything about the network is read off the tensors' shapes, except which stages double height and width: all three
do in the published files; another file says so in its metadata (``enlarge = "001"``: the last one only).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from facelock.errors import ModelError
from facelock.nets.taehv import TinyDecoder
from facelock.nets.taehv_layout import ENLARGE, REMEDY, read_shape

__all__ = ["ENLARGE", "load_tiny_decoder"]


def load_tiny_decoder(path: str | Path, device: torch.device | str = "cpu") -> TinyDecoder:
    """The decoder half of ``path``, float32, in evaluation; an encoder beside it is passed over.

    Raises ``ModelError`` for a file that is missing, damaged, of another layout, or not finite.
    """
    path = Path(path)
    shape = read_shape(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("encoder.")}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file. {REMEDY}") from error
    try:
        decoder = TinyDecoder(**vars(shape))
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: no decoder in TAEHV's layout ({error}). {REMEDY}") from error
    return _filled(path, decoder, tensors).to(device)


def _filled(path: Path, decoder: TinyDecoder, tensors: dict[str, Tensor]) -> TinyDecoder:
    own = decoder.state_dict()
    odd = sorted(own.keys() ^ tensors.keys()) or sorted(n for n in own if own[n].shape != tensors[n].shape)
    if odd:
        raise ModelError(f"{path}: {odd[0]} does not fit a decoder in TAEHV's layout. {REMEDY}")
    damaged = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    if damaged:
        raise ModelError(f"{path}: {damaged[0]} holds values that are not finite. {REMEDY}")
    decoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return decoder.eval().requires_grad_(False)
