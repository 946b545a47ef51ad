"""Face packs in insightface's format: an SCRFD detector and an ArcFace recogniser, both ONNX.

Pictures are prepared as ``insightface.app.FaceAnalysis`` prepares them, so the same files find the same
faces; but frames go through in batches of one fixed shape, so that a frame's result never depends on the
other frames.
SCRFD: Guo et al. 2021 (arXiv:2105.04714). ArcFace: Deng et al. 2019 (arXiv:1801.07698).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facelock.errors import FaceLockError, ModelError
from facelock.geometry import ARCFACE112, similarity_from_landmarks, warp_crops
from facelock.protocols import Encoder
from facelock.runtime import BatchSession, fixed
from facelock.types import CropSpec, Faces, Thresholds
from facelock.weights import encoder_id

Floats = NDArray[np.float32]

OVERLAP = 0.4
"""Intersection over union above which the weaker of two boxes is the same face."""
LEVELS = {9: ((8, 16, 32), 2), 15: ((8, 16, 32, 64, 128), 1)}
"""Number of an SCRFD file's outputs → its strides, and its anchors per cell."""


def unit_rows(rows: NDArray[np.floating], name: str) -> Tensor:
    """(N, D) → float32 rows of length 1. Raises FaceLockError when one is zero or not finite."""
    wide = rows.astype(np.float64)
    length = np.sqrt((wide * wide).sum(1, keepdims=True))
    if not np.isfinite(length).all() or (length == 0).any():
        raise FaceLockError(f"The recogniser {name} returned no usable embedding. Its weights are damaged.")
    return torch.from_numpy((wide / length).astype(np.float32))


class OnnxEncoder:
    """An ArcFace-format recogniser: (B, 3, 112, 112) RGB, ``(x - 127.5) / 127.5`` → (B, D)."""

    crop: CropSpec = ARCFACE112

    def __init__(
        self,
        path: str | Path,
        *,
        name: str,
        thresholds: Thresholds,
        batch: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        """Open the file. ``batch`` crops go through at once. Raises ``ModelError``, ``DeviceError``."""
        self.id = encoder_id(name, path)
        self.thresholds = thresholds
        self._session = BatchSession(path, device, batch=batch)
        side = self.crop.size
        if [shape[2:] for shape in self._session.inputs.values()] != [[side, side]]:
            raise ModelError(
                f"{path}: no recogniser of crops of {side} x {side} pixels. Give an ArcFace ONNX file."
            )
        (self._input,) = self._session.inputs

    def embed_crops(self, crops: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [0, 1] → (N, D) float32 on the CPU, unit length."""
        blob = crops.detach().cpu().float().numpy() * np.float32(2) - np.float32(1)
        return unit_rows(self._session.run({self._input: blob})[0], self.id)


class OnnxPack:
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
        """Open the detector.

        ``detection_size`` is the side in pixels to which frames are scaled, rounded up to a multiple of 32;
        ``threshold`` in [0, 1] the score from which a box is a face; ``batch`` frames go through at once.
        Raises ``ModelError``, ``DeviceError``.
        """
        self.encoder, self.threshold = encoder, threshold
        self._session = BatchSession(detector, device, batch=batch)
        outputs = self._session.outputs
        if len(outputs) not in LEVELS or [len(shape) for shape in self._session.inputs.values()] != [4]:
            raise ModelError(
                f"{detector}: {len(outputs)} outputs are not those of an SCRFD detector with landmarks. "
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
        """All faces of (T, 3, H, W) frames in [0, 1], by frame, then from the surest to the least sure.

        Raises FaceLockError when the detector returns NaN, as it does for NaN in the frames.
        """
        if not len(frames):
            return _faces([])
        scale, blob = self._blob(frames)
        outputs, levels = self._run(blob), len(self._strides)
        scores, boxes, points = (
            np.concatenate(outputs[kind * levels : (kind + 1) * levels], 1) for kind in range(3)
        )
        if scores.shape[1] != len(self._centres) or not np.isfinite(scores).all():
            raise FaceLockError("The face detector returned no usable scores. Its weights are damaged.")
        found = [self._faces_of(*rows, scale) for rows in zip(scores[..., 0], boxes, points, strict=True)]
        return _faces(found)

    def _run(self, blob: Floats) -> list[Floats]:
        """The outputs, (T, n, 1 or 4 or 10) each."""
        outputs = self._session.run({self._input: blob})
        return [o.reshape(len(blob), -1, o.shape[-1]) for o in outputs] if self._flat else outputs

    def _blob(self, frames: Tensor) -> tuple[float, Floats]:
        """The scale from frame to detection pixels, and frames in the top left corners of black squares."""
        if not bool(torch.isfinite(frames).all()):
            raise FaceLockError("A frame holds NaN or infinity. Some model's weights are damaged.")
        height, width = frames.shape[-2:]
        side = self.detection_size
        tall = height > width
        new_height = side if tall else max(1, int(side * (height / width)))
        new_width = max(1, int(side / (height / width))) if tall else side
        pictures = (frames.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
        squares = np.zeros((len(frames), side, side, 3), np.uint8)
        for square, picture in zip(squares, pictures.contiguous().numpy(), strict=True):
            square[:new_height, :new_width] = cv2.resize(picture, (new_width, new_height))
        blob = (squares.astype(np.float32) - np.float32(127.5)) / np.float32(128)
        return new_height / height, np.ascontiguousarray(blob.transpose(0, 3, 1, 2))

    def _faces_of(
        self, scores: Floats, boxes: Floats, points: Floats, scale: float
    ) -> tuple[Floats, Floats, Floats]:
        """Boxes (n, 4), landmarks (n, 5, 2) and scores (n,) of one frame, in its pixels."""
        sure = np.flatnonzero(scores >= self.threshold)
        sure = sure[np.argsort(-scores[sure], kind="stable")]
        centre = self._centres[sure]
        reach, offset = (rows[sure] * self._scales[sure] for rows in (boxes, points))
        box = np.concatenate([centre - reach[:, :2], centre + reach[:, 2:]], 1)
        # Resizing maps pixel centres; insightface only divides, which is off by up to half a detection pixel.
        shift = np.float32(0.5 / scale - 0.5)
        box = np.asarray(box / np.float32(scale) + shift, np.float32)
        landmarks = (centre[:, None] + offset.reshape(-1, 5, 2)) / np.float32(scale) + shift
        kept = distinct(box)
        return box[kept], np.asarray(landmarks[kept], np.float32), scores[sure][kept]

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        """(N, D) float32 unit-length embeddings of ``faces``, which were found in ``frames``."""
        matrices = similarity_from_landmarks(faces.landmarks, self.encoder.crop)
        return self.encoder.embed_crops(warp_crops(frames, faces.frame, matrices, self.encoder.crop.size))


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


def _faces(found: list[tuple[Floats, Floats, Floats]]) -> Faces:
    counts = [len(scores) for _, _, scores in found]
    if not sum(counts):
        return Faces(torch.zeros(0, dtype=torch.int64), *(torch.zeros(0, *s) for s in ((4,), (5, 2), ())))
    columns = [torch.from_numpy(np.concatenate(column)).float() for column in zip(*found, strict=True)]
    frame = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Faces(frame, columns[0], columns[1], columns[2])
