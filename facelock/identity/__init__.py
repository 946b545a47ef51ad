"""From one reference picture to an :class:`Identity`: checked first, refused with a reason.

::

    maria = identity_from_picture("maria.png", [loop_pack, judge_pack])
    group = identity_from_picture("group.jpg", packs, face=1)      # faces count from 0, left to right

Several pictures of one person make a better one: :mod:`facelock.identity.enrol`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from facelock.errors import InputError
from facelock.geometry import ARCFACE_TEMPLATE, REFERENCE384, similarity_from_landmarks, warp_crops
from facelock.identity.photos import QualityLimits, choose, crop, look, qualities
from facelock.protocols import FacePack
from facelock.types import CropSpec, Identity

PORTRAIT = CropSpec(
    "portrait", 192, tuple(((x - 56) * 1.25 + 96, (y - 72) * 1.25 + 104) for x, y in ARCFACE_TEMPLATE)
)
"""The reference's face as reports show it, upright and with some surroundings."""


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

    ``picture`` is anything that :func:`facelock.identity.photos.look` reads. ``face`` chooses among several, counted
    from 0, left to right. ``minimum_face`` is the face's height in pixels, ``minimum_sharpness`` the
    Laplacian variance of its 112-pixel crop (:func:`facelock.appearance.sharpness`), ``maximum_yaw`` degrees
    to either side. The first pack's detector is used. ``name`` defaults to the file's name without its ending.

    Raises ``InputError``: a picture that cannot be read, no face, several and no choice, or a face that is
    too small, too blurred, or turned too far away.
    """
    photo = look(picture, packs[0])
    chosen = choose(photo, face)
    limits = QualityLimits(minimum_face, minimum_sharpness, maximum_yaw)
    complaint = limits.complaint(qualities(photo)[chosen])
    if complaint:
        raise InputError(f"{photo.label}: {complaint[0]}. {complaint[1]}.")
    faces = photo.faces.select(torch.tensor([chosen]))
    return Identity(
        name=name or photo.name,
        embeddings={pack.encoder.id: pack.embed(photo.frames, faces)[0] for pack in packs},
        portrait=crop(photo.frames, faces, PORTRAIT)[0].clamp(0, 1),
        source=photo.label,
        sha256=photo.sha256,
        notes=photo.notes,
        crops=crop(photo.frames, faces, REFERENCE384).clamp(0, 1),
    )


def embedding_of(identity: Identity, encoder: str) -> Tensor:
    """(D,) embedding of ``identity`` by ``encoder``. Raises ``InputError`` where it has none, and says what to do:
    embeddings of different encoders are never compared."""
    if encoder not in identity.embeddings:
        raise InputError(
            f"{identity.name}: has no embedding by {encoder}, only by {', '.join(identity.embeddings) or 'nothing'}. "
            "Create it again with the recognisers in use: facelock identity create, with --faces and --judge "
            "(or facelock identity embed, if its crops were kept)."
        )
    return identity.embeddings[encoder]


def recrop(crops: Tensor, spec: CropSpec) -> Tensor:
    """(R, 3, 384, 384) references in ``REFERENCE384`` → (R, 3, S, S) of ``spec``."""
    points = torch.tensor(REFERENCE384.template).expand(len(crops), -1, -1)
    return warp_crops(crops, torch.arange(len(crops)), similarity_from_landmarks(points, spec), spec.size)


def portrait_of(crops: Tensor) -> Tensor:
    """(3, 192, 192) in [0, 1]: the best of (R, 3, 384, 384) references, as reports show it."""
    return recrop(crops[:1], PORTRAIT)[0].clamp(0, 1)
