"""People and moments, drawn on the CPU from a seed and packed to be rendered where a network learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from facelock.miniature import data, world
from facelock.miniature.parameters import (
    APPEARANCE,
    IDENTITY,
    NUISANCE,
    Params,
    sample_appearance,
    sample_identity,
)

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
    face = sample_identity(n, generator)
    look, base, action, motion, now = data.moving(face, frames, generator)
    return face, look, base, now, action, motion


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
    look, now, matrices = data.portraits(face, generator)
    return packed(face | look, STILL), packed(now, MOVING), matrices
