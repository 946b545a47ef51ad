"""SCRFD detectors in insightface's ONNX format (Guo et al. 2021, arXiv:2105.04714).

Pictures are prepared as ``insightface.app.FaceAnalysis`` prepares them, so the same files find the same
faces; but frames go through in batches of one fixed shape, so that a frame's result never depends on the
other frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from facelock.errors import FaceLockError, ModelError
from facelock.faces.device_pixels import as_bytes, squares
from facelock.faces.graph import rewritten
from facelock.faces.pack import Floats, Found, gather, require_finite, to_pixels
from facelock.lanes import scratch
from facelock.runtime import BatchSession, fixed
from facelock.types import Faces

OVERLAP = 0.4
"""Intersection over union above which the weaker of two boxes is the same face."""
LEVELS = {9: ((8, 16, 32), 2), 15: ((8, 16, 32, 64, 128), 1)}
"""Number of an SCRFD file's outputs → its strides, and its anchors per cell."""


class ScrfdDetector:
    """:class:`facelock.faces.pack.Detector` over one SCRFD file."""

    def __init__(
        self,
        path: str | Path,
        *,
        detection_size: int = 640,
        threshold: float = 0.5,
        batch: int = 16,
        device: torch.device | str = "cpu",
        centred: bool = True,
    ) -> None:
        """Open the file.

        ``detection_size`` is the side in pixels to which frames are scaled, rounded up to a multiple of 32;
        ``threshold`` in [0, 1] the score from which a box is a face; ``batch`` frames go through at once.
        ``centred`` maps pixel centres on pixel centres on the way back, as resizing does; insightface only
        divides, which is off by up to half a detection pixel, and ``centred=False`` does as it does.
        Raises ``ModelError``, ``DeviceError``.
        """
        self.threshold, self._centred = threshold, centred
        self.side_by_side = torch.device(device).type == "cpu"
        there = torch.device(device).type == "cpu" and Path(path).is_file()
        self._session = BatchSession(path, device, batch=batch, content=rewritten(path) if there else None)
        outputs = self._session.outputs
        if len(outputs) not in LEVELS or [len(shape) for shape in self._session.inputs.values()] != [4]:
            raise ModelError(
                f"{path}: {len(outputs)} outputs are not those of an SCRFD detector with landmarks. "
                "Give one with 9 or 15."
            )
        ((self._input, shape),) = self._session.inputs.items()
        self.detection_size = fixed(shape[2]) or -(-detection_size // 32) * 32
        self._flat = len(next(iter(outputs.values()))) == 2
        if self._flat:  # such files take one picture at a time
            self._session.batch = 1
        self._strides, self._anchors = LEVELS[len(outputs)]
        self._centres, self._scales = self._cells()

    def _cells(self) -> tuple[Floats, Floats]:
        """(n, 2) positions in pixels of all anchors of all levels, and their strides, (n, 1)."""
        centres, scales = [], []
        for stride in self._strides:
            count = self.detection_size // stride
            cells = np.stack(list(np.mgrid[:count, :count][::-1]), -1).reshape(-1, 2) * stride
            centres.append(np.repeat(cells, self._anchors, 0))
            scales.append(np.full((len(centres[-1]), 1), stride))
        return np.concatenate(centres).astype(np.float32), np.concatenate(scales).astype(np.float32)

    def detect(self, frames: Tensor) -> Faces:
        """See :class:`facelock.faces.pack.Detector`. Raises FaceLockError for NaN in frames or scores."""
        if not len(frames):
            return gather([])
        require_finite(frames)
        scores, boxes, points = self._run(frames) if frames.device.type == "cpu" else self._run_there(frames)
        if scores.shape[1] != len(self._centres) or not np.isfinite(scores).all():
            raise FaceLockError("The face detector returned no usable scores. Its weights are damaged.")
        height, width = frames.shape[-2:]
        scale = self._inner(height, width)[0] / height
        return gather(
            [self._faces_of(*rows, scale) for rows in zip(scores[..., 0], boxes, points, strict=True)]
        )

    def _run(self, frames: Tensor) -> list[Floats]:
        """Scores, boxes and points of all levels, (T, n, 1 or 4 or 10)."""
        outputs = self._session.run_made(len(frames), lambda rows: {self._input: self._blob(frames[rows])})
        return [np.concatenate(level, 1) for level in self._by_kind(outputs, len(frames))]

    def _by_kind(self, outputs: Sequence[Any], count: int) -> list[list[Any]]:
        """The outputs for ``count`` frames, (count, n, 1 or 4 or 10) each: those of scores, of boxes and of points."""
        levels = len(self._strides)
        if self._flat:
            outputs = [o.reshape(count, -1, o.shape[-1]) for o in outputs]
        return [list(outputs[kind * levels : (kind + 1) * levels]) for kind in range(3)]

    def _run_there(self, frames: Tensor) -> list[Floats]:
        """:meth:`_run` for frames on a GPU, which stay there: as bytes, resized as on the CPU, to the bit.

        Of the boxes and points only those of sure faces come back; the others are 0.
        """
        side, inner = self.detection_size, self._inner(*frames.shape[-2:])
        parts = []
        for group in frames.split(self._session.batch):  # else all frames' squares would lie there at once
            blob = squares(as_bytes(group), inner, (side, side)) / 128 - 127.5 / 128
            outputs = self._session.run_tensors({self._input: blob})
            parts.append([torch.cat(level, 1) for level in self._by_kind(outputs, len(group))])
        scores, *rest = (torch.cat(kind) for kind in zip(*parts, strict=True))
        known = scores.cpu()
        return [known.numpy(), *(_at_sure(rows, known[..., 0] >= self.threshold) for rows in rest)]

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a frame within the detection square."""
        side = self.detection_size
        if height > width:
            return side, max(1, int(side / (height / width)))
        return max(1, int(side * (height / width))), side

    def _blob(self, frames: Tensor) -> Floats:
        """Frames in the top left corners of black squares, as the network takes them."""
        side = self.detection_size
        height, width = self._inner(*frames.shape[-2:])
        squares = scratch(len(frames), 3, side, side)
        squares[..., height:, :], squares[..., width:] = -127.5 / 128, -127.5 / 128
        for square, frame in zip(squares, frames, strict=True):
            planes = cv2.split(cv2.resize(to_pixels(frame), (width, height)))
            for channel, plane in zip(square, planes, strict=True):
                part = channel[:height, :width]
                cv2.addWeighted(plane, 1 / 128, plane, 0, -127.5 / 128, dst=part, dtype=cv2.CV_32F)
        return squares

    def _faces_of(self, scores: Floats, boxes: Floats, points: Floats, scale: float) -> Found:
        sure = np.flatnonzero(scores >= self.threshold)
        sure = sure[np.argsort(-scores[sure], kind="stable")]
        centre = self._centres[sure]
        reach, offset = (rows[sure] * self._scales[sure] for rows in (boxes, points))
        box = np.concatenate([centre - reach[:, :2], centre + reach[:, 2:]], 1)
        shift = np.float32(0.5 / scale - 0.5 if self._centred else 0.0)
        box = np.asarray(box / np.float32(scale) + shift, np.float32)
        landmarks = (centre[:, None] + offset.reshape(-1, 5, 2)) / np.float32(scale) + shift
        kept = distinct(box)
        return box[kept], np.asarray(landmarks[kept], np.float32), scores[sure][kept]


def _at_sure(rows: Tensor, sure: Tensor) -> Floats:
    """(T, n, k) on the CPU of which only the rows ``sure`` (T, n) were fetched; the others are 0."""
    found = torch.zeros(rows.shape, dtype=rows.dtype)
    found[sure] = rows[sure.to(rows.device)].cpu()
    return found.numpy()


def distinct(boxes: Floats) -> list[int]:
    """Greedy non-maximum suppression of (n, 4) boxes, the surest first, with insightface's pixel count."""
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left):
        first, left = int(left[0]), left[1:]
        kept.append(first)
        low = np.maximum(boxes[first, :2], boxes[left, :2])
        high = np.minimum(boxes[first, 2:], boxes[left, 2:])
        common = np.maximum(0, high - low + 1).prod(1)
        left = left[common / (area[first] + area[left] - common) <= OVERLAP]
    return kept
