"""Identity-conditioned face restoration by an inswapper-format ONNX network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from facelock.geometry import INSWAPPER128
from facelock.restoration.formats import require_restorer
from facelock.runtime import BUSY_BATCH, BatchSession
from facelock.types import CropSpec


class OnnxRestorer:
    """``target`` (B, 3, 128, 128) RGB in [0, 1] and ``source`` (B, D) unit norm → (B, 3, 128, 128)."""

    crop: CropSpec = INSWAPPER128

    def __init__(
        self, path: str | Path, *, encoder: str, batch: int = 16, device: torch.device | str = "cpu"
    ) -> None:
        """Open the file. ``encoder`` is the id of the recogniser whose embeddings it takes. Raises ``ModelError``."""
        self.encoder = encoder
        self._session = BatchSession(path, device, batch=batch, on_cpu=BUSY_BATCH, widen=True)
        self.side_by_side = torch.device(device).type == "cpu"
        require_restorer(Path(path))

    def restore(self, crops: Tensor, identity: Tensor) -> Tensor:
        """(N, 3, 128, 128) in [0, 1] and (N, D) unit norm → (N, 3, 128, 128) in [0, 1]."""
        if not len(crops):
            return crops.clone()
        inputs = {"target": crops, "source": identity}
        return self._session.run_tensors(inputs)[0].to(crops).clamp(0, 1)
