"""Face restoration by image diffusion at one low strength, told whose face it is.

The diffusion is that of the aligner ``faceid`` (:mod:`facelock.portrait`). As a restorer it adds detail: most of the
crop is kept, and what is invented is invented towards the identity. The constrained loop takes the rest back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from torch import Tensor

from facelock.portrait.diffusion import CoreOptions, PortraitDiffusion
from facelock.types import CropSpec


class FaceIDRestorer:
    """The face restorer ``faceid_restorer``: :class:`facelock.protocols.FaceRestorer`."""

    def __init__(
        self,
        path: str | Path,
        *,
        strength: float = 0.25,
        core: PortraitDiffusion | None = None,
        **options: Unpack[CoreOptions],
    ) -> None:
        """Load the checkpoint folder ``path`` and the adapter, or work with a ``core`` that has loaded them.

        ``strength`` in (0, 1] is the share of noise; ``options`` and errors are those of
        :class:`facelock.portrait.PortraitDiffusion`.
        """
        self.core = core or PortraitDiffusion(path, **options)
        self.encoder, self.strength = options["encoder"], strength

    @property
    def crop(self) -> CropSpec:
        """The portrait crop, of the checkpoint's size."""
        return self.core.crop

    def restore(self, crops: Tensor, identity: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] and (N, E) unit norm → (N, 3, S, S) float32 in [0, 1].

        A face whose diffusion is not finite, in float32 neither, comes back as NaN and stands for "not restored".
        Raises ``DeviceError`` when the memory does not suffice.
        """
        return self.core.repaint(crops, identity, self.strength)
