"""What all backbones share: decoding when memory is short."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from facelock.blueprint.common import decoded
from facelock.errors import FaceLockError


class Vae:
    """Has room for tiles only."""

    def __init__(self) -> None:
        self.tiles = False
        self.held: list[weakref.ref[Tensor]] = []
        self.left: list[bool] = []

    def enable_tiling(self) -> None:
        self.tiles = True

    def decode(self) -> Tensor:
        self.left.append(any(ref() is not None for ref in self.held))
        features = torch.zeros(1, 3, 2, 4, 4)
        self.held.append(weakref.ref(features))
        if not self.tiles:
            raise torch.OutOfMemoryError("full")
        return features + 0.5


def test_tiles_have_the_memory_of_what_failed() -> None:
    """Within its except clause an error still holds every tensor that was alive when it was raised."""
    vae = Vae()
    frames = decoded(vae, vae.decode)
    assert frames.shape == (2, 3, 4, 4) and bool((frames == 0.75).all())
    assert vae.left == [False, False]


def test_frames_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(FaceLockError, match="not finite"):
        decoded(Vae(), lambda: torch.full((1, 3, 1, 2, 2), torch.nan))
