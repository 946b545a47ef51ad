"""A compact ×4 super-resolution network in the manner of SRVGG (Real-ESRGAN, Wang et al. 2021, arXiv:2107.10833)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CompactSR(nn.Module):
    """(B, 3, H, W) in [0, 1] → (B, 3, 4H, 4W): plain convolutions, then a pixel shuffle on top of bilinear."""

    def __init__(self, channels: int = 32, depth: int = 5) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.PReLU(channels)]
        for _ in range(depth):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.PReLU(channels)]
        last = nn.Conv2d(channels, 48, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(*layers, last, nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge four times."""
        base = F.interpolate(x, scale_factor=4.0, mode="bilinear", align_corners=False)
        return base + self.body(x * 2 - 1)
