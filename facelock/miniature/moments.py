"""People and moments, drawn on the CPU from a seed and packed to be rendered where a network learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from facelock.miniature import data, world
from facelock.miniature.motion import clip_nuisance
from facelock.miniature.parameters import (
    ACTIONS,
    APPEARANCE,
    IDENTITY,
    MOTIONS,
    NUISANCE,
    Params,
    sample_appearance,
    sample_identity,
    sample_nuisance,
)
from facelock.miniature.recognition import SIZE, TEMPLATE

FRAME = 256
"""Pixels of the frame that canonical crops are cut from."""
STILL = (*IDENTITY, *APPEARANCE)
MOVING = tuple(NUISANCE)


def packed(params: Params, names: Sequence[str]) -> Tensor:
    """(len(names), N): one tensor to carry over instead of dozens."""
    return torch.stack([params[name] for name in names])


def unpacked(table: Tensor, names: Sequence[str]) -> Params:
    """The reverse of :func:`packed`."""
    return dict(zip(names, table, strict=True))


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU for what is small."""
    return torch.Generator().manual_seed(seed)


def people(n: int, generator: torch.Generator) -> tuple[Params, Params]:
    """Faces and looks of ``n`` people of the training split."""
    face = sample_identity(n, generator)
    return face, sample_appearance(n, generator, face["feminine"])


def clips(
    n: int, frames: int, generator: torch.Generator
) -> tuple[Params, Params, Params, Params, Tensor, Tensor]:
    """Face, look and start (n,), the moments of all frames (n · frames,), action and motion (n,)."""
    face, look = people(n, generator)
    base = sample_nuisance(n, generator)
    action = torch.randint(0, len(ACTIONS), (n,), generator=generator)
    motion = torch.randint(0, len(MOTIONS), (n,), generator=generator)
    return face, look, base, clip_nuisance(base, action, motion, frames, generator), action, motion


def shown(still: Tensor, moving: Tensor) -> tuple[Params, Params, Params]:
    """Packed people (P, n) and moments (M, n · frames) → face, look and moment of every frame."""
    every = still.repeat_interleave(moving.shape[1] // still.shape[1], 1)
    both, now = unpacked(every, STILL), unpacked(moving, MOVING)
    return {k: both[k] for k in IDENTITY}, {k: both[k] for k in APPEARANCE}, now


def rendered(still: Tensor, moving: Tensor, matrices: Tensor, side: int) -> Tensor:
    """Canonical crops (n, 3, side, side) in [0, 1] of frames of ``FRAME`` pixels, rendered directly."""
    return world.render_rays(*shown(still, moving), world.crop_rays(matrices, side, FRAME))


def portraits(face: Params, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A look and a moment for each face, packed, and the recogniser's crop of it with a detector's jitter."""
    n = len(face["jaw"])
    look, now = sample_appearance(n, generator, face["feminine"]), sample_nuisance(n, generator)
    matrices = data.fit_similarity(world.landmarks(face, now, FRAME)[0], TEMPLATE)
    return packed(face | look, STILL), packed(now, MOVING), data.jitter(matrices, SIZE, generator)
