"""OpenCV's YuNet (Wu, Peng and Yu 2023, doi:10.1007/s11633-023-1423-y), as ``cv2.FaceDetectorYN`` reads it.

The network runs in onnxruntime and not in OpenCV's own engine: that takes 2.6 times as long here, keeps one
frame's state in the detector, and uses no GPU. Everything else follows ``FaceDetectorYN``, and a test holds that
both find the same faces to a hundredth of a pixel.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from facelock.errors import FaceLockError, ModelError
from facelock.faces.device_pixels import as_bytes, squares
from facelock.faces.graph import load_model, rewritten_model
from facelock.faces.pack import Floats, Found, gather, require_finite, to_pixels
from facelock.lanes import scratch
from facelock.runtime import BatchSession
from facelock.types import Faces

STRIDES = (8, 16, 32)
KINDS = ("cls", "obj", "bbox", "kps")
OUTPUTS = tuple(f"{kind}_{stride}" for kind in KINDS for stride in STRIDES)
"""By their names a YuNet file is known."""
OVERLAP = 0.3
"""``FaceDetectorYN``'s threshold of non-maximum suppression."""
MOST = 5000
"""Candidates that its suppression looks at."""
BLOCK = 32
"""Frames are padded to a multiple of this many pixels."""


class YunetDetector:
    """:class:`facelock.faces.pack.Detector` over one YuNet file."""

    def __init__(
        self,
        path: str | Path,
        *,
        detection_size: int = 640,
        threshold: float = 0.6,
        device: torch.device | str = "cpu",
    ) -> None:
        """Open the file.

        Frames whose longer side has more than ``detection_size`` pixels are looked at in that size, smaller
        ones as they are; ``threshold`` in [0, 1] is the score from which a box is a face. Raises
        ``ModelError``, ``DeviceError``.
        """
        self.detection_size, self.threshold = detection_size, threshold
        self.side_by_side = torch.device(device).type == "cpu"
        self._session = BatchSession(
            path, device, content=_any_size(Path(path), torch.device(device).type == "cpu")
        )
        self._input = next(iter(self._session.inputs))
        self._order = [list(self._session.outputs).index(name) for name in OUTPUTS]

    def detect(self, frames: Tensor) -> Faces:
        """See :class:`facelock.faces.pack.Detector`. Raises FaceLockError for NaN in frames or scores."""
        if not len(frames):
            return gather([])
        require_finite(frames)
        size = self._inner(*frames.shape[-2:])
        outputs = self._run(frames, size)
        ordered = [outputs[place] for place in self._order]
        scale = frames.shape[-1] / size[1], frames.shape[-2] / size[0]
        cells = np.concatenate([_cells(size, stride) for stride in STRIDES])
        return gather([self._faces_of([o[i] for o in ordered], cells, scale) for i in range(len(frames))])

    def _run(self, frames: Tensor, size: tuple[int, int]) -> list[Floats]:
        """The file's outputs, (T, n, 1 or 4 or 10) each, of frames looked at in ``size``."""
        if frames.device.type == "cpu":
            return self._session.run_made(
                len(frames), lambda rows: {self._input: _blob(frames[rows.start], size)}
            )
        outer = [side + -side % BLOCK for side in size]
        parts = [
            self._session.run_tensors({self._input: squares(as_bytes(frame[None]), size, outer).flip(1)})
            for frame in frames
        ]
        return [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in which a frame is looked at."""
        shrink = min(1.0, self.detection_size / max(height, width))
        return max(1, round(height * shrink)), max(1, round(width * shrink))

    def _faces_of(self, outputs: list[Floats], cells: Floats, scale: tuple[float, float]) -> Found:
        """``outputs`` in the order of ``OUTPUTS``, (n, 1 or 4 or 10) each; ``scale`` leads back, (x, y)."""
        cls, obj, reach, offset = (np.concatenate(outputs[3 * k : 3 * k + 3]) for k in range(4))
        if not np.isfinite(cls).all() or not np.isfinite(obj).all():
            raise FaceLockError("The face detector returned no usable scores. Its weights are damaged.")
        score = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
        sure = np.flatnonzero(score >= self.threshold)
        column, row, stride = (cells[sure, k : k + 1] for k in range(3))
        corner = np.concatenate([column, row], 1)
        middle, sides = (corner + reach[sure, :2]) * stride, np.exp(reach[sure, 2:]) * stride
        box = np.concatenate([middle - sides / 2, middle + sides / 2], 1)
        points = (offset[sure].reshape(-1, 5, 2) + corner[:, None]) * stride[:, None]
        kept = _suppressed(box, score[sure], self.threshold)
        factor = np.array(scale, np.float32)
        shift = factor / 2 - np.float32(0.5)  # resizing maps pixel centres on pixel centres
        box = box[kept] * np.tile(factor, 2) + np.tile(shift, 2)
        return box.astype(np.float32), (points[kept] * factor + shift).astype(np.float32), score[sure][kept]


def _any_size(path: Path, on_cpu: bool) -> bytes:
    """The file with open height and width; it fixes 640, which ``FaceDetectorYN`` overrides too. Rewritten on a CPU."""
    model = load_model(path)
    if {output.name for output in model.graph.output} != set(OUTPUTS):
        raise ModelError(
            f"{path}: its outputs are not those of YuNet. Give face_detection_yunet_2023mar.onnx."
        )
    for value, names in [
        (model.graph.input[0], ("", "", "h", "w")),
        *((o, ("", "n")) for o in model.graph.output),
    ]:
        for dimension, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if name:
                dimension.dim_param = name if value is model.graph.input[0] else f"{value.name}_{name}"
    content = rewritten_model(model) if on_cpu else None
    return content or bytes(model.SerializeToString())


def _blob(frame: Tensor, size: tuple[int, int]) -> Floats:
    """(1, 3, h, w): BGR in 0..255, padded with black to the right and below."""
    height, width = size
    blob = scratch(1, 3, height + -height % BLOCK, width + -width % BLOCK)
    blob[..., height:, :], blob[..., width:] = 0, 0
    pixels = to_pixels(frame)
    if pixels.shape[:2] != size:
        pixels = np.asarray(cv2.resize(pixels, (width, height)), np.uint8)
    for channel, plane in zip(blob[0], reversed(cv2.split(pixels)), strict=True):
        cv2.addWeighted(plane, 1, plane, 0, 0, dst=channel[:height, :width], dtype=cv2.CV_32F)
    return blob


def _cells(size: tuple[int, int], stride: int) -> Floats:
    """(n, 3): column, row and stride of every cell of a level, row by row."""
    rows, columns = ((side + -side % BLOCK) // stride for side in size)
    grid = np.mgrid[:rows, :columns][::-1].reshape(2, -1).T
    return np.concatenate([grid, np.full((len(grid), 1), stride)], 1).astype(np.float32)


def _suppressed(box: Floats, score: Floats, threshold: float) -> list[int]:
    """OpenCV's own suppression, on whole pixels as ``FaceDetectorYN`` does it; the surest first."""
    if not len(box):
        return []
    corners, sides = box[:, :2].astype(int), (box[:, 2:] - box[:, :2]).astype(int)
    whole = np.concatenate([corners, sides], 1).tolist()
    return [int(k) for k in cv2.dnn.NMSBoxes(whole, score.tolist(), threshold, OVERLAP, 1.0, MOST)]
