"""A tiny causal video decoder in TAEHV's layout: latents to frames at a small part of a video VAE's cost.

TAEHV ("Tiny AutoEncoder for Hunyuan Video", Ollin Boer Bohan, github.com/madebyollin/taehv, MIT) names its tensors by
the place of each layer in one sequence, and so does this: ``decoder.1.weight``, ``decoder.3.conv.0.weight``,
``decoder.7.conv.weight``, ... Published files of that layout (Hunyuan, Wan 2.1 and 2.2) load as they are. Three stages
of memory blocks; after each, space may double and time may double. A memory block sees its own frame and the one
before it, so that no frame depends on a later one.

Shapes: B clips, z latent channels, F latents, h w their size; T frames, H W pixels; C channels.
"""

from __future__ import annotations

from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from facelock.nets.taehv_layout import BLOCKS, STAGES


class SoftClamp(nn.Module):
    """Latents beyond ±3 are outside of what was trained on: they saturate."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """A residual block that also sees the frame before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, H, W) → the same shape; before the first frame lie zeros."""
        past = functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        seen = torch.cat([x, past], 2).flatten(0, 1)
        return functional.relu(self.conv(seen).view_as(x) + x)


class TimeGrowth(nn.Module):
    """Each frame becomes ``stride`` frames of the same width."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, H, W) → (B, T·stride, C, H, W)."""
        batch, time, width, height, across = x.shape
        return self.conv(x.flatten(0, 1)).view(batch, time * self.stride, width, height, across)


class TinyDecoder(nn.Module):
    """(B, z, F, h, w) normalised latents → (B, T, 3, H, W) in [0, 1], T = 1 + (F - 1) · ``time``."""

    def __init__(
        self,
        channels: int = 16,
        widths: tuple[int, int, int, int] = (256, 128, 64, 64),
        growth: tuple[int, int, int] = (1, 2, 2),
        enlarge: tuple[bool, bool, bool] = (True, True, True),
        patch: int = 1,
    ) -> None:
        """``widths`` of the three stages and of what follows them, ``growth`` in time after each stage.

        ``enlarge`` says which stages double height and width; each output value is a square of ``patch`` pixels.
        """
        super().__init__()
        self.channels, self.patch = channels, patch
        self.time = prod(growth)
        """Frames per latent."""
        self.space = patch * 2 ** sum(enlarge)
        """Pixels per latent, along each side."""
        layers: list[nn.Module] = [SoftClamp(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
        for stage, stride in enumerate(growth):
            width, following = widths[stage : stage + 2]
            layers += [MemoryBlock(width) for _ in range(BLOCKS)]
            layers += [nn.Upsample(scale_factor=2.0) if enlarge[stage] else nn.Identity()]
            layers += [TimeGrowth(width, stride), nn.Conv2d(width, following, 3, padding=1, bias=False)]
        layers += [nn.ReLU(), nn.Conv2d(widths[3], 3 * patch**2, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        """Decode; of the T frames only ``frames`` (indices, ascending), where given, which is cheaper.

        While training, values are not clamped, so that all of them teach.
        """
        x = latents.transpose(1, 2)
        for place, layer in enumerate(self.decoder):
            if isinstance(layer, MemoryBlock | TimeGrowth):
                x = layer(x)
            else:
                x = cast(Tensor, layer(x.flatten(0, 1))).unflatten(0, x.shape[:2])
            if place == STAGES[-1] + BLOCKS + 1:  # from here on no frame sees another
                x = x[:, self.time - 1 :]  # what the first latent grows into beyond its one frame
                x = x if frames is None else x[:, frames]
        if self.patch > 1:
            x = functional.pixel_shuffle(x, self.patch)
        return x if self.training else x.clamp(0, 1)
