"""A detector and an encoder side by side, and what every detector needs: pictures in bytes, faces in order.

::

    pack = Pack(detector, encoder, cut="library")
    faces = pack.detect(frames)                      # (T, 3, H, W) → facelock.types.Faces
    crops = pack.crops(frames, faces)                # (N, 3, 112, 112), what the encoder looks at
    pack.encoder.embed_crops(crops)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facelock.errors import FaceLockError
from facelock.faces.device_pixels import as_bytes, warped
from facelock.geometry import similarity_from_landmarks, warp_crops
from facelock.protocols import Encoder
from facelock.types import Faces

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Found = tuple[Floats, Floats, Floats]
"""Of one frame: boxes (n, 4), landmarks (n, 5, 2) and scores (n,), in its pixels, the surest first."""
Cut = Literal["area", "library"]


@runtime_checkable
class Detector(Protocol):
    """Finds faces; each frame's result depends on that frame alone."""

    def detect(self, frames: Tensor) -> Faces:
        """All faces of (T, 3, H, W) frames in [0, 1], by frame, then from the surest to the least sure."""
        ...


class Pack:
    """A detector with any encoder: :class:`facelock.protocols.FacePack`.

    Frames may also be bytes (uint8), as files hold them: detectors and libraries look at bytes in the end.
    """

    takes_bytes = True

    def __init__(
        self, detector: Detector, encoder: Encoder, *, cut: Cut = "area", look_again: bool = False
    ) -> None:
        """Put them together.

        ``cut`` says how crops are made: ``area`` averages over the area of each new pixel, so that large faces
        do not alias; ``library`` samples as insightface and OpenCV do before their own recognisers (8 bits,
        bilinear, black outside), which makes embeddings theirs. ``look_again`` gives a frame without a face a
        second look with a margin around it: detectors miss faces that fill the picture.
        """
        self.detector, self.encoder, self.cut, self.look_again = detector, encoder, cut, look_again
        self.side_by_side = all(getattr(part, "side_by_side", False) for part in (detector, encoder))

    def detect(self, frames: Tensor) -> Faces:
        """All faces of (T, 3, H, W) frames in [0, 1], by frame, then from the surest to the least sure.

        Raises FaceLockError when the detector returns NaN, as it does for NaN in the frames.
        """
        faces = self.detector.detect(frames)
        missed = sorted(set(range(len(frames))) - set(faces.frame.tolist()))
        if not missed or not self.look_again:
            return faces
        margin = max(frames.shape[-2:]) // 2
        found = self.detector.detect(functional.pad(to_floats(frames[missed]), [margin] * 4, value=0.5))
        again = Faces(
            torch.tensor(missed)[found.frame], found.box - margin, found.landmarks - margin, found.score
        )
        return _merged(faces, again)

    def crops(self, frames: Tensor, faces: Faces) -> Tensor:
        """(N, 3, S, S) float32 in [0, 1]: the encoder's canonical crops of ``faces``, found in ``frames``."""
        spec = self.encoder.crop
        matrices = similarity_from_landmarks(faces.landmarks, spec)
        if self.cut == "area":
            return warp_crops(to_floats(frames), faces.frame, matrices, spec.size)
        return library_crops(frames, faces.frame, matrices, spec.size)

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        """(N, D) float32 unit-length embeddings of ``faces``, which were found in ``frames``."""
        return self.encoder.embed_crops(self.crops(frames, faces))


def _merged(one: Faces, other: Faces) -> Faces:
    """Both, by frame; no frame is in both."""
    columns = [
        torch.cat([getattr(one, name), getattr(other, name)]) for name in ("box", "landmarks", "score")
    ]
    frame = torch.cat([one.frame, other.frame])
    return Faces(frame, *columns).select(torch.argsort(frame, stable=True))


def library_crops(frames: Tensor, frame_index: Tensor, matrices: Tensor, size: int) -> Tensor:
    """Crops as ``cv2.FaceRecognizerSF.alignCrop`` and insightface's ``norm_crop`` cut them.

    ``frames`` (T, 3, H, W) in [0, 1], ``frame_index`` (N,), ``matrices`` (N, 2, 3) from frame to crop; returns
    (N, 3, size, size) float32 in [0, 1] where the frames lie.
    """
    if frames.device.type != "cpu":
        return _crops_there(frames, frame_index, matrices, size)
    crops = np.empty((len(frame_index), size, size, 3), np.uint8)
    for crop, index, matrix in zip(crops, frame_index.tolist(), matrices.double().numpy(), strict=True):
        (left, top, right, bottom), shifted = _seen_through(matrix, size, frames.shape[-2:])
        cv2.warpAffine(to_pixels(frames[index, :, top:bottom, left:right]), shifted, (size, size), dst=crop)
    return (
        torch.from_numpy(crops).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        / 255
    )


def _crops_there(frames: Tensor, frame_index: Tensor, matrices: Tensor, size: int) -> Tensor:
    """:func:`library_crops` of frames on a GPU, on that GPU; bytes as ``device_pixels.warped`` says."""
    crops = []
    for index, matrix in zip(frame_index.tolist(), matrices.double().numpy(), strict=True):
        (left, top, right, bottom), shifted = _seen_through(matrix, size, frames.shape[-2:])
        crops.append(warped(as_bytes(frames[index, :, top:bottom, left:right]), shifted, size))
    return torch.stack(crops).float() / 255 if crops else frames.new_zeros(0, 3, size, size).float()


def _seen_through(
    matrix: NDArray[np.float64], size: int, limits: Sequence[int]
) -> tuple[tuple[int, int, int, int], NDArray[np.float64]]:
    """The window of a frame (height, width) that a crop shows, and the matrix from that window to the crop."""
    back = cv2.invertAffineTransform(matrix)
    corners = np.array([(x, y, 1) for x in (-1, size) for y in (-1, size)]) @ back.T
    low, high = np.floor(corners.min(0)).astype(int) - 1, np.ceil(corners.max(0)).astype(int) + 2
    width, height = limits[1], limits[0]
    left, top = (int(min(max(v, 0), most - 1)) for v, most in zip(low, (width, height), strict=True))
    right, bottom = (
        int(max(min(v, most), first + 1))
        for v, most, first in zip(high, (width, height), (left, top), strict=True)
    )
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (left, top)
    return (left, top, right, bottom), shifted


def to_planes(frame: Tensor) -> list[Bytes]:
    """The red, green and blue bytes (H, W) of a (3, H, W) frame in [0, 1], or of bytes."""
    if frame.dtype == torch.uint8:
        return list(frame.detach().cpu().numpy())
    if frame.device.type != "cpu":  # a quarter of the bytes cross the bus
        return list(as_bytes(frame).cpu().numpy())
    planes = frame.detach().float().cpu().numpy()
    return [cv2.addWeighted(plane, 255, plane, 0, 0, dtype=cv2.CV_8U) for plane in planes]  # type: ignore[misc]


def to_pixels(frame: Tensor) -> Bytes:
    """The (H, W, 3) bytes of a (3, H, W) frame in [0, 1], or of bytes; without a copy where they lie so already."""
    if frame.dtype == torch.uint8:
        return frame.permute(1, 2, 0).detach().cpu().numpy()
    return np.asarray(cv2.merge(to_planes(frame)), np.uint8)


def to_floats(frames: Tensor) -> Tensor:
    """Frames in [0, 1], of bytes too."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


def require_finite(frames: Tensor) -> None:
    """Raise FaceLockError when a frame holds NaN or infinity."""
    if frames.dtype != torch.uint8 and not math.isfinite(float(frames.sum())):
        raise FaceLockError("A frame holds NaN or infinity. Some model's weights are damaged.")


def gather(found: Sequence[Found]) -> Faces:
    """What was found frame by frame, as one struct of arrays."""
    counts = [len(scores) for _, _, scores in found]
    if not sum(counts):
        return Faces(torch.zeros(0, dtype=torch.int64), *(torch.zeros(0, *s) for s in ((4,), (5, 2), ())))
    columns = [torch.from_numpy(np.concatenate(column)).float() for column in zip(*found, strict=True)]
    frame = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Faces(frame, columns[0], columns[1], columns[2])
