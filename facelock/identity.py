"""From one reference picture to an :class:`Identity`: checked first, refused with a reason.

::

    maria = identity_from_picture("maria.png", [loop_pack, judge_pack])
    group = identity_from_picture("group.jpg", packs, face=1)      # faces count from 0, left to right
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from facelock.appearance import sharpness
from facelock.errors import InputError
from facelock.geometry import (
    ARCFACE112,
    ARCFACE_TEMPLATE,
    estimate_pose,
    similarity_from_landmarks,
    warp_crops,
)
from facelock.images import read_picture
from facelock.protocols import FacePack
from facelock.types import CropSpec, Faces, Identity

LONGEST_SIDE = 2048
"""Pixels; larger pictures are first reduced by a whole factor, which no recogniser notices."""
PORTRAIT = CropSpec(
    "portrait", 192, tuple(((x - 56) * 1.25 + 96, (y - 72) * 1.25 + 104) for x, y in ARCFACE_TEMPLATE)
)
"""The reference's face as reports show it, upright and with some surroundings."""


@dataclass(frozen=True)
class _Reference:
    """A picture that was read, and what to call it."""

    label: str
    frames: Tensor
    """(1, 3, H, W) in [0, 1]."""
    name: str
    sha256: str
    notes: tuple[str, ...] = ()


def identity_from_picture(
    picture: Any,
    packs: Sequence[FacePack],
    *,
    name: str | None = None,
    face: int | None = None,
    minimum_face: float = 24.0,
    minimum_sharpness: float = 0.0,
    maximum_yaw: float = 60.0,
) -> Identity:
    """Find the one face of ``picture`` and embed it with the encoder of each pack.

    ``picture`` is a path, a PIL picture, an (H, W, 3) array (uint8, or floats in [0, 1]) or a (3, H, W)
    tensor in [0, 1]. ``face`` chooses among several, counted from 0, left to right. ``minimum_face`` is the
    face's height in pixels, ``minimum_sharpness`` the Laplacian variance of its 112-pixel crop
    (:func:`facelock.appearance.sharpness`), ``maximum_yaw`` degrees to either side. The first pack's
    detector is used. ``name`` defaults to the file's name without its ending.

    Raises ``InputError``: a picture that cannot be read, no face, several and no choice, or a face that is
    too small, too blurred, or turned too far away.
    """
    reference = _read(picture)
    frames, factor = _reduced(reference.frames)
    faces = _choose(reference.label, _find(frames, packs[0]), face, factor)
    _check(reference.label, frames, faces, factor, (minimum_face, minimum_sharpness, maximum_yaw))
    embeddings = {pack.encoder.id: pack.embed(frames, faces)[0] for pack in packs}
    return Identity(
        name=name or reference.name,
        embeddings=embeddings,
        portrait=_crop(frames, faces, PORTRAIT)[0].clamp(0, 1),
        source=reference.label,
        sha256=reference.sha256,
        notes=reference.notes,
    )


def _read(picture: Any) -> _Reference:
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        read = read_picture(path)
        return _Reference(path.name, read.frames, path.stem, read.sha256, tuple(read.notes))
    frames = _frames(picture)
    content = hashlib.sha256(repr(tuple(frames.shape)).encode() + frames.numpy().tobytes()).hexdigest()
    return _Reference("the picture", frames, "character", content)


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
    """All faces, from left to right.

    Where there is none, a second look with a margin around the picture: detectors miss faces that fill it.
    """
    faces = pack.detect(frames)
    if not len(faces):
        margin = max(frames.shape[-2:]) // 2
        found = pack.detect(functional.pad(frames, [margin] * 4, value=0.5))
        faces = Faces(found.frame, found.box - margin, found.landmarks - margin, found.score)
    middles = faces.box[:, 0] + faces.box[:, 2]
    return faces.select(torch.argsort(middles, stable=True))


def _choose(label: str, faces: Faces, face: int | None, factor: int) -> Faces:
    """The one face that is meant."""
    count = len(faces)
    if not count:
        raise InputError(
            f"{label}: no face was found. Give a picture with one face from the front, large and well lit."
        )
    if face is None and count == 1:
        face = 0
    if face is None or not 0 <= face < count:
        found = "; ".join(_position(number, faces.box[number] * factor) for number in range(count))
        wrong = "" if face is None else f", and there is no face {face}"
        shown = "1 face was" if count == 1 else f"{count} faces were"
        raise InputError(f"{label}: {shown} found ({found}){wrong}. Choose one with --face-index N.")
    return faces.select(torch.tensor([face]))


def _position(number: int, box: Tensor) -> str:
    left, top, right, bottom = box.tolist()
    x, y = round((left + right) / 2), round((top + bottom) / 2)
    return f"{number}: {round(bottom - top)} pixels high around x={x}, y={y}"


def _check(label: str, frames: Tensor, faces: Faces, factor: int, limits: tuple[float, float, float]) -> None:
    """Refuse a face that no recogniser can read."""
    minimum_face, minimum_sharpness, maximum_yaw = limits
    height = float(faces.box[0, 3] - faces.box[0, 1]) * factor
    if height < minimum_face:
        raise InputError(
            f"{label}: the face is too small, {height:.0f} pixels high where {minimum_face:.0f} are needed. "
            "Give a larger picture or a closer view."
        )
    yaw = float(estimate_pose(faces.landmarks)[0][0])
    if abs(yaw) > maximum_yaw:
        raise InputError(
            f"{label}: the face is turned away, about {abs(yaw):.0f} degrees where {maximum_yaw:.0f} are "
            "allowed. Give a picture from the front."
        )
    sharp = float(sharpness(_crop(frames, faces, ARCFACE112))[0])
    if sharp < minimum_sharpness:
        raise InputError(
            f"{label}: the face is blurred, its Laplacian variance is {sharp:.1f} where "
            f"{minimum_sharpness:.1f} is needed. Give a sharper picture."
        )


def _crop(frames: Tensor, faces: Faces, spec: CropSpec) -> Tensor:
    matrices = similarity_from_landmarks(faces.landmarks, spec)
    return warp_crops(frames, faces.frame, matrices, spec.size)
