"""Dense facial landmarks: where every part of a face lies, for aligners that warp.

::

    reader = load_reader("mediapipe/face_landmarker")       # or a path: face_landmarker.task, 2d106det.onnx
    points, confidence = reader.read(crops)                 # (N, P, 2) pixels of the crops, (N,)
    mouth = points[:, reader.layout.inner_lips]

Readers take upright crops that hold one face and half as much again around it, such as
:data:`facelock.geometry.REFERENCE384`. Each crop is read in several slightly turned and scaled views: their mean
trembles less from frame to frame than one reading, and where they disagree there is no face to read.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facelock.errors import ConfigError, FaceLockError, ModelError
from facelock.faces.layouts import INSIGHTFACE106, MEDIAPIPE478, Layout, with_forehead
from facelock.runtime import BatchSession
from facelock.weights import locate

Floats = NDArray[np.float32]

MEDIAPIPE = "mediapipe/face_landmarker"
"""The catalog's name of MediaPipe's reader."""
VARIABLE = "FACELOCK_LANDMARKS"
"""Environment variable that names another reader, or its file."""
LARGEST_BUNDLE = 64 * 2**20
"""Bytes of a ``.task`` file that are read at most, and of the network inside of it."""
MESH = "face_landmarks_detector.tflite"
VIEWS = 2
"""Readings of each crop that are averaged."""
TURN, ZOOM = math.radians(3), 0.02
"""How far views are turned either way, and by what share they are scaled."""
DOUBT = 0.03
"""Disagreement of the views, in shares of the face's height, at which confidence is 1/e."""


@runtime_checkable
class DenseReader(Protocol):
    """Finds many points of one face in each crop. A pure function of each crop."""

    layout: Layout

    def read(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) in [0, 1] → points (N, P, 2) float32, pixels of the crop, and confidence (N,) in [0, 1]."""
        ...


class _Views:
    """Reads views of a crop, brings the points back and compares them."""

    layout: Layout
    side: int

    def __init__(self, views: int) -> None:
        if views < 1:
            raise ValueError("a crop needs one view at least")
        self.views = views

    def read(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`DenseReader`. With one view the confidence is 1 wherever the points are finite."""
        if not len(crops):
            return torch.zeros(0, self.layout.count, 2), torch.zeros(0)
        pictures = (crops.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        rows = [self._one(picture) for picture in pictures.contiguous().numpy()]
        return torch.from_numpy(np.stack([p for p, _ in rows])), torch.tensor([c for _, c in rows])

    def _one(self, picture: NDArray[np.uint8]) -> tuple[Floats, float]:
        """The mean of all views, (P, 2), and how well they agree."""
        seen = np.stack([self._view(picture, k) for k in range(self.views)]).astype(np.float64)
        mean = seen.mean(0)
        if not np.isfinite(mean).all():
            raise FaceLockError("The landmark reader returned NaN. Its weights are damaged.")
        height = max(float(np.ptp(mean[:, 1])), 1.0)
        apart = math.sqrt(float(np.square(seen - mean).sum(-1).mean())) / height
        return mean.astype(np.float32), math.exp(-((apart / DOUBT) ** 2))

    def _view(self, picture: NDArray[np.uint8], number: int) -> Floats:
        """The points that view ``number`` shows, (P, 2) in pixels of the crop."""
        to_view = _view_matrix(number, self.views, picture.shape[0], self.side)
        shrinks = picture.shape[0] > 2 * self.side
        flags = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        view = cv2.warpAffine(
            picture, to_view, (self.side, self.side), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        points = self._points(view.astype(np.float32)).astype(np.float64)
        back = cv2.invertAffineTransform(to_view)
        return np.asarray(points @ back[:, :2].T + back[:, 2], np.float32)

    def _points(self, view: Floats) -> Floats:
        """(side, side, 3) RGB in [0, 255] → (P, 2) pixels of the view."""
        raise NotImplementedError


def _view_matrix(number: int, views: int, size: int, side: int) -> NDArray[np.float64]:
    """From a crop of ``size`` pixels to view ``number`` of ``side``: turned about its middle, and scaled."""
    position = 2 * number / (views - 1) - 1 if views > 1 else 0.0
    scale = side / size * (1 + ZOOM * position)
    c, s = scale * math.cos(TURN * position), scale * math.sin(TURN * position)
    middle, goal = (size - 1) / 2, (side - 1) / 2
    return np.array([[c, -s, goal - (c - s) * middle], [s, c, goal - (s + c) * middle]])


class MediaPipeReader(_Views):
    """The mesh of 478 points in MediaPipe's ``face_landmarker.task``, run by OpenCV's own network engine.

    Kartynnik et al. 2019 (arXiv:1907.06724), Grishchenko et al. 2020 (arXiv:2006.10962). The file's presence score
    cannot be had through OpenCV 5, which gives a TFLite graph's first and last outputs only; the views' agreement
    stands in for it.
    """

    layout = MEDIAPIPE478
    side = 256

    def __init__(self, path: str | Path, *, views: int = VIEWS) -> None:
        """Open a ``.task`` bundle, or the ``.tflite`` file out of one. Raises ``ModelError``."""
        super().__init__(views)
        self._net = _tflite(Path(path))

    def _points(self, view: Floats) -> Floats:
        self._net.setInput(np.ascontiguousarray(view.transpose(2, 0, 1))[None] / np.float32(255))
        points = np.asarray(self._net.forward("Identity"), np.float32).reshape(-1, 3)
        return points[:, :2] - np.float32(0.5)  # MediaPipe counts from the pixels' edges


def _tflite(path: Path) -> cv2.dnn.Net:
    """The landmark network of a bundle. Raises ``ModelError`` when it is none, or of another kind."""
    content = _bounded(path)
    if content[4:8] != b"TFL3":  # asked first, since a network may itself end in a zip, of its metadata
        content = _member(path, content)
    try:
        net = cv2.dnn.readNetFromTFLite(np.frombuffer(content, np.uint8))
        net.setInput(np.zeros((1, 3, 256, 256), np.float32))
        size = net.forward("Identity").size
    except cv2.error as error:
        raise ModelError(f"{path}: OpenCV cannot read this landmark model. {_AGAIN}") from error
    if size != MEDIAPIPE478.count * 3:
        raise ModelError(f"{path}: gives {size} numbers where a mesh of 478 points has 1434. {_AGAIN}")
    return net


_AGAIN = "Fetch it again with `facelock models pull mediapipe/face_landmarker`."


def _bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BUNDLE + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}). {_AGAIN}") from error
    if not 0 < len(content) <= LARGEST_BUNDLE:
        raise ModelError(f"{path}: {len(content)} bytes or more are no landmark model. {_AGAIN}")
    return content


def _member(path: Path, content: bytes) -> bytes:
    """The landmark network inside of a zip, in memory; its size is held to the limit while it unpacks."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle, bundle.open(MESH) as file:
            member = file.read(LARGEST_BUNDLE + 1)
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(f"{path}: holds no readable {MESH}. {_AGAIN}") from error
    if len(member) > LARGEST_BUNDLE:
        raise ModelError(f"{path}: its {MESH} unpacks to more than {LARGEST_BUNDLE} bytes. {_AGAIN}")
    return member


class InsightFaceReader(_Views):
    """insightface's 106 points (``2d106det.onnx``): (1, 3, 192, 192) RGB 0..255 → (1, 212) in [-1, 1].

    Its points end at the brows; seven points of the forehead are put above them (:func:`with_forehead`).
    """

    layout = INSIGHTFACE106
    side = 192

    def __init__(self, path: str | Path, *, views: int = VIEWS, device: torch.device | str = "cpu") -> None:
        """Open the file. Raises ``ModelError`` when it is of another kind, ``DeviceError``."""
        super().__init__(views)
        self._session = BatchSession(path, device, batch=1)
        inputs, outputs = list(self._session.inputs.items()), list(self._session.outputs.values())
        if len(inputs) != 1 or inputs[0][1][1:] != [3, 192, 192] or [s[-1] for s in outputs] != [212]:
            raise ModelError(
                f"{path}: not insightface's 106 landmarks (192 x 192 pixels in, 212 numbers out). "
                "Give 2d106det.onnx."
            )
        self._input = inputs[0][0]

    def _points(self, view: Floats) -> Floats:
        blob = np.ascontiguousarray(view.transpose(2, 0, 1))[None]
        points = (self._session.run({self._input: blob})[0].reshape(-1, 2) + 1) * np.float32(self.side // 2)
        return with_forehead(points)


def landmarks() -> str:
    """The reader that is taken where none is named: ``$FACELOCK_LANDMARKS``, else MediaPipe's of the catalog."""
    return os.environ.get(VARIABLE) or MEDIAPIPE


def load_reader(name: str | Path | None = None, *, views: int = VIEWS) -> DenseReader:
    """Open the reader ``name``: a catalog name or a path, told apart by the file's ending.

    Without a name it is that of :func:`landmarks`. Raises ``ModelError`` when it is not there, and says how to get it.
    """
    name = name or landmarks()
    try:
        path = locate(str(name))
    except (ConfigError, ModelError) as error:
        get = " Fetch them with `facelock models pull mediapipe-face-landmarker`."
        hint = "" if "models pull" in str(error) else get
        raise ModelError(f"Warping a face needs dense landmarks. {error}{hint}") from error
    return (
        InsightFaceReader(path, views=views) if path.suffix == ".onnx" else MediaPipeReader(path, views=views)
    )


def spans(points: Tensor, layout: Layout) -> Tensor:
    """(N,) distance in pixels between the eyes' middles of (N, P, 2) points: the unit of landmark errors."""
    left, right = (points[:, list(eye)].mean(1) for eye in (layout.left_eye, layout.right_eye))
    return (left - right).square().sum(-1).sqrt()


__all__: Sequence[str] = [
    "MEDIAPIPE",
    "DenseReader",
    "InsightFaceReader",
    "Layout",
    "MediaPipeReader",
    "landmarks",
    "load_reader",
    "spans",
]
