"""Held-out faces with their exact parameters, on which the model cards' figures of aligner and restorer are measured.

Each is one frame of a moving 64 px clip, seen through insightface's 128 px crop: what the lock cuts out. The true
answer is the wanted person rendered on the rays of that very crop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from facelock.miniature import data, world
from facelock.miniature.alignment import CROP_TEMPLATE, SIDE, warp
from facelock.miniature.parameters import Params, sample_appearance, sample_nuisance, take

FRAME = 64
"""Pixels of the blueprint's frames."""
PEOPLE = 200
"""Held-out characters that the clips show; the ones wanted in their place come after them."""
SHOWN = 8
"""Which of a window's frames is cut out: one that the autoencoder has to carry over from those before."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, the last two excluded."""


def cut_box(pictures: Tensor, box: Box) -> Tensor:
    """The part of pictures (..., H, W) inside ``box``."""
    left, top, right, bottom = box
    return pictures[..., top:bottom, left:right]


@dataclass(frozen=True)
class Faces:
    """N faces: who, in what look and moment, and the (N, 2, 3) similarities from frame pixels to crop pixels."""

    face: Params
    look: Params
    now: Params
    matrices: Tensor

    def render(self, side: int = SIDE, box: Box | None = None) -> Tensor:
        """Their crops, (N, 3, side, side) in [0, 1]; or what of those is inside ``box``."""
        rays = self._rays(side)
        if box:
            rays = world.Rays(cut_box(rays.x, box), cut_box(rays.y, box), rays.pitch)
        return world.render_rays(self.face, self.look, self.now, rays)

    def draw_face(self, side: int = SIDE) -> tuple[Tensor, Tensor]:
        """Only their heads' fronts, on black: (N, 3, side, side), and the coverage (N, 1, side, side)."""
        return world.Portrait(self.face, self.look, self.now, self._rays(side)).draw_face()

    def landmarks(self) -> Tensor:
        """Exact five landmarks in the 128 px crop, (N, 5, 2)."""
        return data.apply(self.matrices, world.landmarks(self.face, self.now, FRAME)[0])

    def changed(self, name: str, value: float) -> Faces:
        """The same with one parameter of the look or of the moment at ``value`` in all of them."""
        group = "look" if name in self.look else "now"
        known: Params = getattr(self, group)
        return replace(self, **{group: {**known, name: torch.full_like(known[name], value)}})

    def _rays(self, side: int) -> world.Rays:
        zoom = side / SIDE
        scaled = self.matrices * zoom
        scaled[:, :, 2] += (zoom - 1) / 2  # the centre of the first pixel is at 0
        return world.crop_rays(scaled, side, FRAME)


@dataclass(frozen=True)
class Scenes:
    """Clips of held-out people, and who else could stand in each."""

    clips: Tensor
    """(N, 17, 3, 64, 64) in [0, 1]: windows, of which frame :data:`SHOWN` is cut out."""
    shown: Faces
    """Who is in that frame."""
    stranger: Faces
    """Somebody else in the same moment and look."""

    def cut(self, clips: Tensor) -> Tensor:
        """The crops of ``clips``, as they are or were decoded: (N, 3, 128, 128)."""
        return warp(clips[:, SHOWN], self.shown.matrices)


def scenes(count: int, seed: int = 41) -> Scenes:
    """``count`` scenes; the same ones for a seed."""
    face, look, now, _ = data.draw_clips("heldout", seed, count, PEOPLE, data.WINDOW)
    clips = world.render(face, look, now, FRAME).view(count, data.WINDOW, 3, FRAME, FRAME)
    at = torch.arange(count) * data.WINDOW + SHOWN
    shown = _cropped(
        take(face, at), take(look, at), take(now, at), data.seeded(data.SPLITS["heldout"], 10, seed)
    )
    strangers = take(data.identities("heldout", PEOPLE + count), slice(PEOPLE, PEOPLE + count))
    return Scenes(clips, shown, replace(shown, face=strangers))


def elsewhere(faces: Faces, seed: int = 42) -> Faces:
    """The same people in another look and moment: what a reference shows."""
    g = data.seeded(data.SPLITS["heldout"], 11, seed)
    count = len(faces.matrices)
    look, now = sample_appearance(count, g, faces.face["feminine"]), sample_nuisance(count, g)
    return _cropped(faces.face, look, now, g)


def _cropped(face: Params, look: Params, now: Params, g: torch.Generator) -> Faces:
    points, _ = world.landmarks(face, now, FRAME)
    return Faces(face, look, now, data.jitter(data.fit_similarity(points, CROP_TEMPLATE), SIDE, g))
