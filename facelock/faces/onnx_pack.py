"""Face packs in insightface's format: an SCRFD detector and an ArcFace recogniser, both ONNX.

ArcFace: Deng et al. 2019 (arXiv:1801.07698). The detector is in ``facelock.faces.scrfd``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facelock.errors import FaceLockError, ModelError
from facelock.faces.graph import rewritten
from facelock.faces.kinds import takes_bytes
from facelock.faces.pack import Pack
from facelock.faces.scrfd import LEVELS, OVERLAP, ScrfdDetector, distinct
from facelock.geometry import ARCFACE112
from facelock.protocols import Encoder
from facelock.runtime import CPU_BATCH, BatchSession
from facelock.types import CropSpec, Thresholds
from facelock.weights import encoder_id

__all__ = ["LEVELS", "OVERLAP", "OnnxEncoder", "OnnxPack", "distinct", "unit_rows"]


def unit_rows(rows: NDArray[np.floating], name: str) -> Tensor:
    """(N, D) → float32 rows of length 1. Raises FaceLockError when one is zero or not finite."""
    wide = rows.astype(np.float64)
    length = np.sqrt((wide * wide).sum(1, keepdims=True))
    if not np.isfinite(length).all() or (length == 0).any():
        raise FaceLockError(f"The recogniser {name} returned no usable embedding. Its weights are damaged.")
    return torch.from_numpy((wide / length).astype(np.float32))


class OnnxEncoder:
    """An ArcFace-format recogniser: (B, 3, 112, 112) RGB → (B, D).

    What range the file takes is read off its graph (:func:`facelock.faces.kinds.takes_bytes`): 0..255 where it
    normalises them itself, else ``(x - 127.5) / 127.5``.
    """

    crop: CropSpec = ARCFACE112

    def __init__(
        self,
        path: str | Path,
        *,
        name: str,
        thresholds: Thresholds,
        batch: int = 16,
        on_cpu: int = CPU_BATCH,
        device: torch.device | str = "cpu",
    ) -> None:
        """Open the file. ``batch`` crops go through at once, on a CPU ``on_cpu`` at most.

        Raises ``ModelError``, ``DeviceError``.
        """
        self.id = encoder_id(name, path)
        self.thresholds = thresholds
        self.side_by_side = torch.device(device).type == "cpu"
        raw = takes_bytes(path)  # raises ModelError for what is no ONNX file
        content = rewritten(path) if torch.device(device).type == "cpu" else None
        self._session = BatchSession(path, device, batch=batch, on_cpu=on_cpu, content=content)
        side = self.crop.size
        if [shape[2:] for shape in self._session.inputs.values()] != [[side, side]]:
            raise ModelError(
                f"{path}: no recogniser of crops of {side} x {side} pixels. Give an ArcFace ONNX file."
            )
        (self._input,) = self._session.inputs
        self._scale, self._shift = (255.0, 0.0) if raw else (2.0, -1.0)

    def embed_crops(self, crops: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [0, 1] → (N, D) float32 on the CPU, unit length. Crops on a GPU stay there."""
        if crops.device.type != "cpu":
            given = {self._input: crops.detach().float() * self._scale + self._shift}
            return unit_rows(self._session.run_tensors(given)[0].cpu().numpy(), self.id)
        pictures, scale, shift = (
            crops.detach().cpu().float().numpy(),
            np.float32(self._scale),
            np.float32(self._shift),
        )

        def made(rows: slice) -> dict[str, NDArray[np.float32]]:
            return {self._input: pictures[rows] * scale + shift}

        return unit_rows(self._session.run_made(len(pictures), made)[0], self.id)


class OnnxPack(Pack):
    """An SCRFD-format detector with any encoder: :class:`facelock.protocols.FacePack`."""

    def __init__(
        self,
        detector: str | Path,
        encoder: Encoder,
        *,
        detection_size: int = 128,
        threshold: float = 0.5,
        batch: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        """Open the detector: see :class:`facelock.faces.scrfd.ScrfdDetector`."""
        super().__init__(
            ScrfdDetector(
                detector, detection_size=detection_size, threshold=threshold, batch=batch, device=device
            ),
            encoder,
        )
