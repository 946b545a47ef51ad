"""Whole-frame super-resolution by Real-ESRGAN's compact network, without a library of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from facelock.nets.compact_sr import Srvgg
from facelock.restoration.formats import not_compact, require_scale
from facelock.restoration.precision import dtype_of
from facelock.restoration.tiles import TiledFrames
from facelock.weights.state_dicts import load_state_dict


class CompactUpscaler:
    """The upscaler ``compact_upscaler``: realesr-general-x4v3, realesr-animevideov3 and any other file of
    ``SRVGGNetCompact`` with PReLU, ``.pth`` or ``.safetensors``; width, depth and scale are read off the file."""

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
        """Load the file. ``tile`` 0 enlarges whole frames; a tile's side and ``overlap`` are in pixels of the input.

        Raises ``ModelError`` for a file of another kind or scale, ``ConfigError`` for half precision on a CPU.
        """
        dtype = dtype_of(precision, device)
        try:
            net = Srvgg.from_state(load_state_dict(path))
        except ValueError as error:
            raise not_compact(path, error) from error
        require_scale(path, net.scale, scale)
        self.path, self.scale, self.reach = Path(path), net.scale, net.reach
        net = net.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frames = TiledFrames(
            net,
            str(path),
            scale=net.scale,
            device=device,
            batch=1 if torch.device(device).type == "cpu" else min(batch, 4),
            tile=tile,
            overlap=overlap,
        )

    def upscale(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) → (T, 3, H·scale, W·scale), both float32 in [0, 1].

        Raises ``DeviceError`` when the memory does not suffice for tiles of half the size either, ``ModelError``
        where the network gives no numbers.
        """
        return self.frames(frames)
