"""Whole-frame super-resolution by any network that spandrel knows (extra ``sr``)."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from facelock.restoration.formats import require_scale
from facelock.restoration.spandrel_net import FRAMES, load_spandrel, placed, same_noise
from facelock.restoration.tiles import TiledFrames

logger = logging.getLogger(__name__)


class SpandrelUpscaler:
    """The upscaler ``spandrel_upscaler``: ESRGAN, SPAN, SwinIR, DAT, HAT and friends, one frame or tile at a time.

    spandrel itself pads what does not satisfy a network's size requirements, and cuts the padding off again.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        scale: int = 4,
        batch: int = 4,
        device: torch.device | str = "cpu",
        tile: int = 0,
        overlap: int = 40,
        precision: str = "float32",
    ) -> None:
        """Load the file; ``batch`` is not used, spandrel's call takes one picture.

        ``tile`` 0 enlarges whole frames; a tile's side and ``overlap`` are in pixels of the input. Raises
        ``EnvironmentFailure`` without spandrel, ``ModelError`` for a file of another kind or scale, ``ConfigError``
        for a precision that the network or the device does not support.
        """
        net = load_spandrel(path, FRAMES)
        require_scale(path, net.scale, scale)
        dtype = placed(net, path, precision, device)
        self.path, self.scale, self.descriptor = Path(path), scale, net
        self.frames = TiledFrames(
            self._once,
            str(path),
            scale=scale,
            device=device,
            dtype=dtype,
            tile=self._tile(tile),
            overlap=overlap,
            multiple=net.size_requirements.multiple_of,
        )

    def _once(self, frames: Tensor) -> Tensor:
        with same_noise(frames.device):
            return self.descriptor(frames)

    def _tile(self, tile: int) -> int:
        """``tile``, or 0 for a network that does its own tiling; a word about those that look at the whole."""
        kind = self.descriptor.tiling.name
        if tile and kind == "INTERNAL":
            logger.info("%s: cuts its own tiles; tile in [restore] is not used", self.path)
            return 0
        if tile and kind == "DISCOURAGED":
            logger.warning("%s: looks at whole pictures; tiles may show", self.path)
        return tile

    def upscale(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) → (T, 3, H·scale, W·scale), both float32 in [0, 1].

        Raises ``DeviceError`` when the memory does not suffice for tiles of half the size either, ``ModelError``
        where the network gives no numbers.
        """
        return self.frames(frames)
