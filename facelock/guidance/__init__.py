"""Identity guidance: stage 1 led toward the references while it denoises. Off unless a recipe asks for it.

::

    guide = open_guide("miniature/tiny_decoder.safetensors", "recogniser.onnx", pack, settings)
    backbone = SkyReelsV2(folder, ..., guide=guide)

What it does and what the judge says of it: docs/guidance.md. Schedulers of diffusers' own pipelines take a guide
through :func:`facelock.blueprint.x0_edit.guided`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from facelock.guidance.embedder import TorchEmbedder
from facelock.guidance.identity import GuidanceSettings, IdentityGuide
from facelock.guidance.tiny_decoder import load_tiny_decoder
from facelock.protocols import FacePack


def open_guide(
    decoder: str | Path,
    recogniser: str | Path,
    pack: FacePack,
    settings: GuidanceSettings,
    device: torch.device | str = "cpu",
    columns: int = 1,
) -> IdentityGuide:
    """A guide from files: a tiny decoder (safetensors, TAEHV's layout) and the recogniser (ONNX) of ``pack``.

    ``columns`` is how many people the blueprint draws side by side, each in a column of its own. Raises ``ModelError``
    for a file that cannot be used.
    """
    embedder = TorchEmbedder(recogniser).to(device).eval()
    return IdentityGuide(load_tiny_decoder(decoder, device), embedder, pack, settings, columns)


__all__ = ["GuidanceSettings", "IdentityGuide", "TorchEmbedder", "load_tiny_decoder", "open_guide"]
