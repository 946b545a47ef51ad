"""Whole-frame super-resolution by an ONNX network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from facelock.errors import ModelError
from facelock.runtime import open_session, run_padded


class OnnxUpscaler:
    """``input`` (B, 3, H, W) RGB in [0, 1] → (B, 3, scale·H, scale·W)."""

    def __init__(
        self, path: str | Path, *, scale: int = 4, batch: int = 4, device: torch.device | str = "cpu"
    ) -> None:
        """Open the file. Raises ``ModelError``, ``DeviceError``."""
        self.path, self.scale, self.batch = Path(path), scale, min(batch, 4)
        self._session = open_session(path, device)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise ModelError(f"{path}: not an upscaler (one input of four dimensions). Give another file.")
        self._input = inputs[0].name
        if isinstance(inputs[0].shape[0], int):
            self.batch = inputs[0].shape[0]

    def upscale(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) in [0, 1] → (T, 3, scale·H, scale·W) in [0, 1]. Raises ``ModelError`` for another scale."""
        out = run_padded(self._session, {self._input: frames.cpu().numpy()}, self.batch)[0]
        if out.shape[-1] != frames.shape[-1] * self.scale:
            raise ModelError(
                f"{self.path}: enlarges {out.shape[-1] / frames.shape[-1]:g}×, not {self.scale}×. Correct the recipe."
            )
        return torch.from_numpy(out).to(frames).clamp(0, 1)
