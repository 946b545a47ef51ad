"""inswapper-format ONNX networks: (crop, identity embedding) → crop. The aligner's and the restorer's file format.

As insightface reads it (``insightface.model_zoo.inswapper``, version 2.1): inputs ``target`` (1, 3, 128, 128) RGB in
[0, 1] and ``source`` (1, 512); the last initializer is ``emap`` (512, 512), through which a unit-norm embedding is
sent and normalised again. The crop is insightface's ``norm_crop`` at 128 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from facelock.alignment.formats import require_inswapper
from facelock.geometry import INSWAPPER128
from facelock.runtime import BUSY_BATCH, BatchSession
from facelock.types import CropSpec, Identity


class InSwapper:
    """The aligner ``inswapper``: batched, each row independent of the others bit for bit."""

    crop: CropSpec = INSWAPPER128

    def __init__(
        self, path: str | Path, *, encoder: str, batch: int = 16, device: torch.device | str = "cpu"
    ) -> None:
        """Open the file. ``encoder`` is the id of the recogniser whose embeddings it takes.

        Raises ``ModelError`` for a file of another kind, ``DeviceError`` when ``device`` is not the one in use.
        """
        self.encoder = encoder
        self._session = BatchSession(path, device, batch=batch, on_cpu=BUSY_BATCH, widen=True)
        self.side_by_side = torch.device(device).type == "cpu"
        require_inswapper(Path(path))
        shapes = self._session.inputs
        (self._target,) = (name for name, shape in shapes.items() if len(shape) == 4)
        (self._source,) = (name for name, shape in shapes.items() if len(shape) == 2)
        self._emap = read_emap(Path(path))

    def latent(self, identity: Tensor) -> np.ndarray:
        """(N, D) unit-norm embeddings → (N, D) unit-norm inputs of the network."""
        rows = [row.double().cpu().numpy() @ self._emap for row in identity]
        return np.stack([r / np.linalg.norm(r) for r in rows]).astype(np.float32)

    def align(
        self, crops: Tensor, identity: Tensor, strength: float = 1.0, *, references: Sequence[Identity] = ()
    ) -> Tensor:
        """(N, 3, 128, 128) in [0, 1] → the same shape with the face of ``identity`` (N, D).

        A ``strength`` other than 1 is already in the embedding that the closed loop passes; the embedding is all
        that is needed of the ``references``.
        """
        if not len(crops):
            return crops.clone()
        inputs = {self._target: crops, self._source: torch.from_numpy(self.latent(identity))}
        return self._session.run_tensors(inputs)[0].to(crops).clamp(0, 1)


def read_emap(path: Path) -> np.ndarray:
    """The last initializer of the graph, (D, D) float64."""
    return numpy_helper.to_array(onnx.load(path).graph.initializer[-1]).astype(np.float64)
