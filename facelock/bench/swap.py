"""The field's usual way, for comparison: detect, swap once, paste back, frame by frame. No loop, no check."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from facelock.parts import Parts
from facelock.types import Identity


class PlainSwap:
    """Swaps each frame with the recipe's own aligner at strength 1 through insightface's ``INSwapper``."""

    def __init__(self, parts: Parts, *, own_size: bool = False, restores: bool = False) -> None:
        """Faces are found at the recipe's detection size, or with ``own_size`` at insightface's default ones; with
        ``restores`` each is passed through the bundled restorer too."""
        from facelock.bench.insight import DETECTION, swapper, swapper_and_pack

        self.app, aligner = swapper_and_pack(parts.device, None if own_size else DETECTION)
        self.networks = [aligner, *([swapper("miniature/restorer", parts.device)] if restores else [])]
        self.encoder = parts.locker.pack.encoder.id  # type: ignore[attr-defined]

    def __call__(self, frames: Tensor, identity: Identity) -> Tensor:
        """(T, 3, H, W) in [0, 1] → the same shape; frames without a face stay as they are."""
        source = _Source(identity.embeddings[self.encoder].numpy())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`estimate` is deprecated", FutureWarning)  # in its face_align
            return torch.stack([self._swapped(frame, source) for frame in frames])

    def _swapped(self, frame: Tensor, source: _Source) -> Tensor:
        bgr = (frame.permute(1, 2, 0).cpu().numpy()[..., ::-1] * 255).round().astype(np.uint8)
        faces = self.app.get(bgr)
        if faces:
            face = max(faces, key=lambda f: float(f.normed_embedding @ source.normed_embedding))
            for network in self.networks:
                bgr = network.get(bgr, face, source, paste_back=True)
        return torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1])).permute(2, 0, 1).float() / 255


class _Source:
    """What ``INSwapper.get`` reads of its source face."""

    def __init__(self, embedding: np.ndarray) -> None:
        self.normed_embedding = embedding
