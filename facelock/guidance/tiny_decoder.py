"""Reads a tiny decoder from a safetensors file in TAEHV's layout, and trusts nothing in it.

::

    decoder = load_tiny_decoder("taew2_1.safetensors")
    decoder(latents)          # (1, z, F, h, w) normalised → (1, T, 3, H, W) in [0, 1]

Everything about the network is read off the tensors' shapes, except which stages double height and width: all three
do in the published files; another file says so in its metadata (``enlarge = "001"``: the last one only).
"""

from __future__ import annotations

from math import isqrt
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from facelock.errors import ModelError
from facelock.nets.taehv import LAST, STAGES, TinyDecoder

REMEDY = "Fetch or export the tiny decoder again."
ENLARGE = "enlarge"
"""Key of the metadata."""


def load_tiny_decoder(path: str | Path, device: torch.device | str = "cpu") -> TinyDecoder:
    """The decoder half of ``path``, float32, in evaluation; an encoder beside it is passed over.

    Raises ``ModelError`` for a file that is missing, damaged, of another layout, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: there is no such tiny decoder. Check [guidance] decoder in the recipe.")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("encoder.")}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file. {REMEDY}") from error
    return _filled(path, _shaped(path, tensors, meta.get(ENLARGE, "111")), tensors).to(device)


def _shaped(path: Path, tensors: dict[str, Tensor], enlarge: str) -> TinyDecoder:
    """An empty decoder of the file's shape."""
    try:
        first, last = tensors["decoder.1.weight"], tensors[f"decoder.{LAST}.weight"]
        growths = [tensors[f"decoder.{place + 4}.conv.weight"] for place in STAGES]
        widths = [int(first.shape[0]), *(int(tensors[f"decoder.{p + 5}.weight"].shape[0]) for p in STAGES)]
        patch = isqrt(int(last.shape[0]) // 3)
        if (
            len(enlarge) != len(STAGES)
            or set(enlarge) - set("01")
            or not 1 <= patch <= 8
            or max(widths) > 1024
        ):
            raise ValueError("its sizes are out of range")
        return TinyDecoder(
            int(first.shape[1]),
            tuple(widths),  # type: ignore[arg-type]
            tuple(int(w.shape[0]) // int(w.shape[1]) for w in growths),  # type: ignore[arg-type]
            tuple(mark == "1" for mark in enlarge),  # type: ignore[arg-type]
            patch,
        )
    except KeyError as error:
        raise ModelError(
            f"{path}: lacks the tensor {error}, so it is no decoder in TAEHV's layout. {REMEDY}"
        ) from error
    except (IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise ModelError(f"{path}: no decoder in TAEHV's layout ({error}). {REMEDY}") from error


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
