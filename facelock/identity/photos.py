"""One reference photo: read, its faces found, and what each of them offers a recogniser.

::

    photo = look("maria.jpg", pack)          # faces from left to right
    offers = qualities(photo)                # one Quality per face
    QualityLimits().complaint(offers[0])     # None, or (what is wrong, what to do)
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from facelock.appearance import luma, sharpness
from facelock.errors import InputError
from facelock.geometry import ARCFACE112, estimate_pose, similarity_from_landmarks, warp_crops
from facelock.images import LONGEST_SIDE, read_picture
from facelock.protocols import FacePack
from facelock.types import CropSpec, Faces

_SKIN = (slice(30, 108), slice(24, 88))
"""Rows and columns of the 112-pixel crop that a face fills, whatever its shape: brow to chin."""
_DARK, _BRIGHT = 6 / 255, 249 / 255
"""Brightness from which a pixel says nothing but black, or white."""


@dataclass(frozen=True)
class Photo:
    """A picture that was read, and the faces in it."""

    label: str
    """What to call it in a message: the file's name."""
    name: str
    """Whom it shows, if nobody says: the file's name without its ending."""
    frames: Tensor
    """(1, 3, H, W) float32 in [0, 1]."""
    faces: Faces
    """All of them, from left to right, in pixels of ``frames``."""
    factor: int
    """Pixels of the file per pixel of ``frames``, along one side."""
    sha256: str
    """Of the file, or of the pixels that were given."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """What one face of a photo offers a recogniser."""

    height: float
    """Of the face's box, in pixels of the file."""
    sharpness: float
    """Variance of the Laplacian of the 112-pixel crop (:func:`facelock.appearance.sharpness`)."""
    yaw: float
    """Degrees, as :func:`facelock.geometry.estimate_pose` gives them."""
    pitch: float
    roll: float
    brightness: float
    """Median of the face's brightness in [0, 1]."""
    contrast: float
    """Between the 5th and the 95th percentile of it."""
    clipped: float
    """Share in [0, 1] of the face's pixels that are plain black or plain white."""
    score: float
    """The detector's, in [0, 1]."""

    @property
    def worth(self) -> float:
        """How much this face says of its person, in (0, 1]: large, frontal and fully exposed is 1."""
        turned = np.cos(np.radians(min(abs(self.yaw), 80))) * np.cos(np.radians(min(abs(self.pitch), 80)))
        return float(min(1.0, self.height / ARCFACE112.size) * turned * (1 - 0.9 * self.clipped))


@dataclass(frozen=True)
class QualityLimits:
    """What a face must offer. The defaults ask little; :data:`facelock.identity.enrol.LIMITS` ask more."""

    minimum_face: float = 24.0
    """Height in pixels of the file."""
    minimum_sharpness: float = 0.0
    maximum_yaw: float = 60.0
    """Degrees to either side."""
    maximum_pitch: float = 90.0
    minimum_contrast: float = 0.0
    maximum_clipped: float = 1.0

    def complaint(self, quality: Quality) -> tuple[str, str] | None:
        """The first thing that is wrong with a face, and what to do about it; None if nothing is."""
        found = (self._size_or_pose(quality), self._exposure(quality), self._blur(quality))
        return next((each for each in found if each), None)

    def _size_or_pose(self, quality: Quality) -> tuple[str, str] | None:
        if quality.height < self.minimum_face:
            return (
                f"the face is too small, {quality.height:.0f} pixels high where {self.minimum_face:.0f} are needed",
                "Give a larger picture or a closer view",
            )
        for angle, limit, way in (
            (quality.yaw, self.maximum_yaw, "turned away"),
            (quality.pitch, self.maximum_pitch, "tilted up or down"),
        ):
            if abs(angle) > limit:
                return (
                    f"the face is {way}, about {abs(angle):.0f} degrees where {limit:.0f} are allowed",
                    "Give a picture from the front",
                )
        return None

    def _exposure(self, quality: Quality) -> tuple[str, str] | None:
        light = (
            "too dark" if quality.brightness < 0.25 else "too bright" if quality.brightness > 0.75 else "hazy"
        )
        if quality.clipped > self.maximum_clipped:
            found = f"{quality.clipped:.0%} of it is plain black or white where {self.maximum_clipped:.0%} are allowed"
        elif quality.contrast < self.minimum_contrast:
            found = f"its contrast is {quality.contrast:.3f} where {self.minimum_contrast:.3f} is needed"
        else:
            return None
        return f"the face is {light}, {found}", "Give a picture in even light"

    def _blur(self, quality: Quality) -> tuple[str, str] | None:
        if quality.sharpness < self.minimum_sharpness:
            return (
                f"the face is blurred, its Laplacian variance is {quality.sharpness:.1f} where "
                f"{self.minimum_sharpness:.1f} is needed",
                "Give a sharper picture",
            )
        return None


def look(picture: Any, pack: FacePack) -> Photo:
    """Read ``picture`` and find its faces with the detector of ``pack``.

    ``picture`` is a path, a PIL picture, an (H, W, 3) array (uint8, or floats in [0, 1]) or a (3, H, W)
    tensor in [0, 1]. Where no face is found, a second look is taken with a margin around the picture:
    detectors miss faces that fill it. Raises ``InputError`` for what is no picture.
    """
    read = _read(picture)
    frames, factor = _reduced(read.frames)
    return replace(read, frames=frames, faces=_find(frames, pack), factor=read.factor * factor)


def qualities(photo: Photo) -> tuple[Quality, ...]:
    """What each face offers, in the order of ``photo.faces``."""
    faces = photo.faces
    crops = crop(photo.frames, faces, ARCFACE112)
    gray = luma(crops)[:, _SKIN[0], _SKIN[1]].flatten(1)
    low, middle, high = torch.quantile(gray, torch.tensor([0.05, 0.5, 0.95]), 1)
    clipped = ((gray <= _DARK) | (gray >= _BRIGHT)).float().mean(1)
    height = (faces.box[:, 3] - faces.box[:, 1]) * photo.factor
    columns = (
        height,
        sharpness(crops),
        *estimate_pose(faces.landmarks),
        middle,
        high - low,
        clipped,
        faces.score,
    )
    return tuple(Quality(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def choose(photo: Photo, face: int | None) -> int:
    """Index of the one face that is meant: ``face``, or the only one. Raises ``InputError`` listing them."""
    count = len(photo.faces)
    if not count:
        raise InputError(
            f"{photo.label}: no face was found. Give a picture with one face from the front, large and well lit."
        )
    if face is None and count == 1:
        return 0
    if face is None or not 0 <= face < count:
        found = "; ".join(_position(number, photo) for number in range(count))
        wrong = "" if face is None else f", and there is no face {face}"
        shown = "1 face was" if count == 1 else f"{count} faces were"
        raise InputError(f"{photo.label}: {shown} found ({found}){wrong}. Choose one with --face-index N.")
    return face


def crop(frames: Tensor, faces: Faces, spec: CropSpec) -> Tensor:
    """(N, 3, S, S) crops of ``faces``, cut as ``spec`` says out of (1, 3, H, W)."""
    matrices = similarity_from_landmarks(faces.landmarks, spec)
    return warp_crops(frames, faces.frame, matrices, spec.size)


def _read(picture: Any) -> Photo:
    nobody = Faces(torch.zeros(0, dtype=torch.int64), *(torch.zeros(0, *s) for s in ((4,), (5, 2), ())))
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        read = read_picture(path)
        return Photo(
            path.name, path.stem, read.frames, nobody, read.reduced_by, read.sha256, tuple(read.notes)
        )
    frames = _frames(picture)
    content = hashlib.sha256(repr(tuple(frames.shape)).encode() + frames.numpy().tobytes()).hexdigest()
    return Photo("the picture", "character", frames, nobody, 1, content)


def _frames(picture: Any) -> Tensor:
    """(1, 3, H, W) float32 in [0, 1] from a picture in memory."""
    if isinstance(picture, Image.Image):
        upright = ImageOps.exif_transpose(picture).convert("RGBA")
        ground = Image.new("RGBA", upright.size, "white")
        picture = np.asarray(Image.alpha_composite(ground, upright).convert("RGB"))
    if isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3:
        pixels = torch.tensor(picture).permute(2, 0, 1)
        pixels = pixels / 255 if picture.dtype == np.uint8 else pixels
    elif isinstance(picture, Tensor) and picture.ndim == 3 and picture.shape[0] == 3:
        pixels = picture.detach().cpu()
    else:
        shape = f" of shape {tuple(picture.shape)}" if hasattr(picture, "shape") else ""
        kind = f"{type(picture).__name__}{shape}"
        raise InputError(f"A {kind} is no picture. Give a path, a PIL picture or an (H, W, 3) array.")
    pixels = pixels.float()[None].contiguous()
    if min(pixels.shape) == 0 or not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise InputError(
            "The picture is empty, or has values outside of 0 to 1. Give uint8, or floats in [0, 1]."
        )
    return pixels


def _reduced(frames: Tensor) -> tuple[Tensor, int]:
    """The picture with sides of ``LONGEST_SIDE`` at most, and the factor it was divided by."""
    factor = -(-max(frames.shape[-2:]) // LONGEST_SIDE)
    if factor > 1:
        frames = functional.avg_pool2d(frames, factor, ceil_mode=True, count_include_pad=False)
    return frames, factor


def _find(frames: Tensor, pack: FacePack) -> Faces:
    """All faces, from left to right."""
    faces = pack.detect(frames)
    if not len(faces):
        margin = max(frames.shape[-2:]) // 2
        found = pack.detect(functional.pad(frames, [margin] * 4, value=0.5))
        faces = Faces(found.frame, found.box - margin, found.landmarks - margin, found.score)
    middles = faces.box[:, 0] + faces.box[:, 2]
    return faces.select(torch.argsort(middles, stable=True))


def _position(number: int, photo: Photo) -> str:
    left, top, right, bottom = (photo.faces.box[number] * photo.factor).tolist()
    x, y = round((left + right) / 2), round((top + bottom) / 2)
    return f"{number}: {round(bottom - top)} pixels high around x={x}, y={y}"
