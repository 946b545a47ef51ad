"""The aligner ``warp``: the reference's own texture on the frame's face. No generative network, nothing invented.

The classical face swap (Bitouk et al. 2008, "Face Swapping"; the piecewise affine warp of Cootes et al. 1998, "Active
Appearance Models"). For each crop, by itself:

1. dense landmarks (:mod:`facelock.faces.dense`) give a triangle mesh;
2. the face's coarse shape moves towards the reference's, and its surroundings with it; jaw, lids and lips stay as open
   as they are;
3. the reference photos nearest in pose are warped onto it, triangle by triangle, and mixed;
4. the mixture takes over the frame's low frequencies, that is its light and skin tone, away from beards and hair;
5. it is blended in within the landmarks' outline. Eyeballs and the inside of the mouth are the frame's.

What it cannot do: profiles (texture fades out to the frame's own where the mesh turns away or is stretched in either
picture), the inside of the mouth and the gaze (the frame's own), hair and head shape (the frame's own), glasses and
hands before the face (they are painted over or doubled), shadows baked into the photo (they stay). It is the baseline,
and where a generative aligner starts from. docs/warp.md shows figures.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facelock.alignment import mesh
from facelock.alignment.dressing import Dressing, Face, Source, five, head_pose
from facelock.errors import ConfigError, InputError
from facelock.faces.dense import DenseReader, load_reader
from facelock.faces.layouts import Layout
from facelock.geometry import REFERENCE384, wide_crop
from facelock.types import CropSpec, Identity

log = logging.getLogger(__name__)

SIZES = (256, 384, 512)
"""Sides in pixels a crop can have; the face's height is about half of it."""
DOUBTFUL, CERTAIN = 0.05, 0.25
"""The reader's confidence up to which a face is left as it is, and from which all is done; between them it fades."""
APART, TOGETHER = 0.35, 0.25
"""The same for the distance, in units between the eyes, of the mesh from the five points by which the crop was cut."""
REMEMBERED = 32
"""Identities whose meshes are kept at most."""


class WarpAligner:
    """The aligner ``warp``: :class:`facelock.protocols.Aligner`. Each row is independent of the others bit for bit."""

    only_changes = True
    """Its crops are the frame's own outside of the face, so that only what differs needs to be pasted."""

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        encoder: str,
        batch: int = 16,
        device: torch.device | str = "cpu",
        size: int = 384,
        reader: DenseReader | None = None,
        dressing: Dressing | None = None,
    ) -> None:
        """``path`` names the reader for :func:`facelock.faces.dense.load_reader`, unless a ``reader`` is given.

        ``encoder`` is the id of the recogniser in the loop; ``size`` the crop's side, one of ``SIZES``, the larger the
        sharper and the slower. It runs on the CPU, crop by crop, whatever ``batch`` and ``device`` are. Raises
        ``ModelError`` without landmarks, ``ConfigError`` for another size.
        """
        if size not in SIZES:
            raise ConfigError(f"warp has no crop of {size} pixels. Give one of {', '.join(map(str, SIZES))}.")
        if torch.device(device).type != "cpu":
            log.info(
                "the aligner warp runs on the CPU: its landmarks and its mesh have no code for %s", device
            )
        self.encoder, self.crop = encoder, wide_crop(size)
        self.dressing = dressing or Dressing()
        self.reader = reader or load_reader(path)
        self._known: dict[int, tuple[Tensor, list[Source]]] = {}

    def align(
        self, crops: Tensor, identity: Tensor, strength: float = 1.0, *, references: Sequence[Identity] = ()
    ) -> Tensor:
        """(N, 3, S, S) in [0, 1] → the same shape; pixels outside of the face keep their bits.

        ``strength`` in [0, 2]: up to 1 the share of the reference's texture, and throughout how far the face's shape
        goes. ``references``, one per row, hold the photos; the embedding ``identity`` is not looked at. Crops whose
        landmarks are doubtful come back as they are. Raises ``InputError`` for a reference without pictures or
        landmarks, ``ValueError`` without a reference for each row.
        """
        if len(references) != len(crops):
            raise ValueError(f"{len(crops)} crops need as many references, not {len(references)}")
        result = crops.clone()
        sources = [self.sources(whose) for whose in references]
        if strength <= 0 or not len(crops):
            return result
        points, sure = self.reader.read(crops)
        for row in range(len(crops)):
            trust = worth(_doubles(points[row]), float(sure[row]), self.reader.layout, self.crop)
            if trust > 0:
                face = Face(_picture(crops[row]), _doubles(points[row]), self.reader.layout, self.dressing)
                dressed = face.dressed(sources[row], strength, trust)
                result[row] = torch.from_numpy(dressed.transpose(2, 0, 1).copy()).to(crops)
        return result

    def sources(self, identity: Identity) -> list[Source]:
        """The reference's pictures with their meshes, best first; remembered for the next call.

        Raises ``InputError`` when it has no pictures, or no landmarks can be read in any.
        """
        crops = identity.crops
        if crops is None or not len(crops):
            raise InputError(
                f"{identity.name}: holds no picture of the reference, which warping needs. Give the photos, or a .face "
                "file made with --keep-crops."
            )
        known = self._known.get(id(crops))
        if known is None or known[0] is not crops:
            known = (crops, self._read(identity.name, crops))
            while len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[id(crops)] = known
        return known[1]

    def _read(self, name: str, crops: Tensor) -> list[Source]:
        points, sure = self.reader.read(crops)
        layout = self.reader.layout
        usable = [
            k
            for k in range(len(crops))
            if worth(_doubles(points[k]), float(sure[k]), layout, REFERENCE384) > 0
        ]
        if not usable:
            raise InputError(
                f"{name}: no landmarks could be read in the reference. Give a photo from the front, well lit."
            )
        inner = np.array(self.reader.layout.mesh)
        best = _doubles(points[usable[0]])[inner]
        triangles = inner[mesh.triangulate(best)].astype(np.int32)
        return [self._source(crops[k], _doubles(points[k]), triangles) for k in usable]

    def _source(self, crop: Tensor, points: mesh.Doubles, triangles: mesh.Triangles) -> Source:
        picture, layout = _picture(crop), self.reader.layout
        clear = Face(picture, points, layout, self.dressing).uncovered()
        return Source(picture, points, triangles, head_pose(points, layout), clear)


def worth(points: mesh.Doubles, confidence: float, layout: Layout, crop: CropSpec) -> float:
    """What a reading (P, 2) is worth, in [0, 1]: by its own confidence, and as it agrees with the detector's points."""
    template = np.array(crop.template)
    unit = float(np.linalg.norm(template[1] - template[0]))
    distance = float(np.linalg.norm(five(points, layout) - template, axis=1).mean()) / unit
    faded = mesh.smoothstep(
        np.array([(confidence - DOUBTFUL) / (CERTAIN - DOUBTFUL), (APART - distance) / (APART - TOGETHER)])
    )
    return float(faded.prod())


def _picture(crop: Tensor) -> mesh.Floats:
    """(3, S, S) → (S, S, 3) in [0, 1]: a picture that was resized may reach a little beyond."""
    return np.ascontiguousarray(crop.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy())


def _doubles(points: Tensor) -> mesh.Doubles:
    return points.numpy().astype(np.float64)
