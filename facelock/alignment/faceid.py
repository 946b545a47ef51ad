"""The aligner ``faceid``: image diffusion at low strength on the portrait crop, told the identity's embedding.

::

    aligner = FaceID(folder, adapter=file, encoder=pack.encoder.id, batch=8, device="cuda", start="warp")
    crops = aligner.align(crops, identity, 0.35, references=identities)

Its ladder is one of denoising strengths in (0, 1]: a low one keeps pose, expression and light, a high one takes over
more of the identity. What does the work is :class:`facelock.portrait.PortraitDiffusion`; this adds where it starts
from: the frame's own crop, or with ``start = "warp"`` the result of the aligner ``warp``, so that the texture is the
reference's from the beginning and diffusion has only to mend it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional

from facelock.alignment.warp import SIZES, WarpAligner
from facelock.errors import ConfigError, InputError, ModelError
from facelock.faces.dense import DenseReader
from facelock.portrait.diffusion import CoreOptions, PortraitDiffusion
from facelock.types import CropSpec, Identity

logger = logging.getLogger(__name__)

STARTS = ("warp",)
"""Aligners that it can start from."""


class FaceID:
    """The aligner ``faceid``: :class:`facelock.protocols.Aligner`. Each row is independent of the others."""

    takes_strength = True
    """The ladder's strengths are its own, in (0, 1]; it wants the reference's plain embedding."""

    def __init__(
        self,
        path: str | Path,
        *,
        start: str | None = None,
        reader: DenseReader | None = None,
        opened: PortraitDiffusion | None = None,
        **core: Unpack[CoreOptions],
    ) -> None:
        """Load the folder ``path``; ``core`` are the options of :class:`facelock.portrait.PortraitDiffusion`.
        Or work with one that somebody has ``opened``.

        ``start`` is ``warp`` or None; where the landmarks that warping needs are not on this machine, that is said
        once and faces start from the frame. ``reader`` finds them in place of the default one. Raises
        ``ConfigError``, ``ModelError``, ``DeviceError``.
        """
        if start not in (None, *STARTS):
            raise ConfigError(
                f"faceid cannot start from {start!r}. Give {' or '.join(STARTS)}, or leave it out."
            )
        self.core = opened or PortraitDiffusion(path, **core)
        self.encoder = core["encoder"]
        self._start = WarpStart.open(self.encoder, self.crop.size, reader) if start == "warp" else None

    @property
    def crop(self) -> CropSpec:
        """The portrait crop, of the checkpoint's size."""
        return self.core.crop

    @property
    def only_changes(self) -> bool:
        """With a mask, pixels outside of it keep their bits."""
        return self.core.settings.mask is not None

    def align(
        self, crops: Tensor, identity: Tensor, strength: float, *, references: Sequence[Identity] = ()
    ) -> Tensor:
        """(N, 3, S, S) in [0, 1] → the same shape with the face of ``identity``, (N, E) unit norm.

        ``strength`` in [0, 1] is the share of noise. ``references``, one per row, hold the photos that the warp takes
        its texture from. Errors are those of :meth:`facelock.portrait.PortraitDiffusion.repaint`.
        """
        if not self.core.schedule(strength):
            return crops.clone()
        begun = crops if self._start is None else self._start(crops, references)
        return self.core.repaint(begun, identity, strength)


class WarpStart:
    """The reference's texture on the frame's face, at the size of the diffusion's crop."""

    def __init__(self, warp: WarpAligner) -> None:
        self.warp = warp
        self._said: set[str] = set()

    @classmethod
    def open(cls, encoder: str, size: int, reader: DenseReader | None = None) -> WarpStart | None:
        """For crops of ``size`` pixels; None, said once, without landmarks."""
        fitting = next((side for side in SIZES if side >= size), SIZES[-1])
        try:
            return cls(WarpAligner(encoder=encoder, size=fitting, reader=reader))
        except ModelError as error:
            logger.warning("faceid starts from the frame itself, not from the warp: %s", error)
            return None

    def __call__(self, crops: Tensor, references: Sequence[Identity]) -> Tensor:
        """(N, 3, S, S) → the same shape; rows whose reference cannot be warped come back as they are."""
        rows = [row for row, whose in enumerate(references) if self._usable(whose)]
        if not rows:
            return crops
        result, side = crops.clone(), self.warp.crop.size
        seen = _resized(crops[rows], side)
        warped = self.warp.align(seen, seen.new_zeros(len(rows), 0), references=[references[r] for r in rows])
        result[rows] = (crops[rows] + _resized(warped - seen, crops.shape[-1])).clamp(0, 1)
        return result

    def _usable(self, identity: Identity) -> bool:
        """Whether it holds pictures with landmarks; once per character it is said that it does not."""
        try:
            return bool(self.warp.sources(identity))
        except InputError as error:
            if identity.name not in self._said:
                self._said.add(identity.name)
                logger.warning("faceid starts from the frame itself, not from the warp: %s", error)
            return False


def _resized(pictures: Tensor, side: int) -> Tensor:
    """(N, 3, S, S) at another size; themselves when they have it. Row by row, so that no row sees another."""
    if pictures.shape[-1] == side:
        return pictures
    rows = [
        functional.interpolate(row[None], (side, side), mode="bilinear", antialias=side < row.shape[-1])
        for row in pictures
    ]
    return torch.cat(rows)
