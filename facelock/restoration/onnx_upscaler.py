"""Whole-frame super-resolution by an ONNX network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from facelock.restoration.formats import require_scale, require_upscaler
from facelock.runtime import BatchSession


class OnnxUpscaler:
    """``input`` (B, 3, H, W) RGB in [0, 1] → (B, 3, scale·H, scale·W)."""

    def __init__(
        self, path: str | Path, *, scale: int = 4, batch: int = 4, device: torch.device | str = "cpu"
    ) -> None:
        """Open the file. Raises ``ModelError``, ``DeviceError``."""
        self.path, self.scale = Path(path), scale
        self._session = BatchSession(path, device, batch=min(batch, 4))
        require_upscaler(self.path, "onnx_upscaler", scale)
        (self._input,) = self._session.inputs

    def upscale(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) in [0, 1] → (T, 3, scale·H, scale·W) in [0, 1]. Raises ``ModelError`` for another scale."""
        out = self._session.run_tensors({self._input: frames})[0]
        require_scale(self.path, out.shape[-1] / frames.shape[-1], self.scale)
        return out.to(frames).clamp(0, 1)
