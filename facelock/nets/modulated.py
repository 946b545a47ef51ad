"""Residual blocks whose features are modulated by the identity embedding.

Adaptive normalisation as in AdaIN (Huang & Belongie 2017, arXiv:1703.06868) and DiT's adaLN (Peebles & Xie 2023,
arXiv:2212.09748).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Modulated(nn.Module):
    """A residual block whose normalised features are scaled and shifted by the identity."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        self.modulation = nn.Linear(condition, 4 * channels)
        self.norm = nn.GroupNorm(8, channels, affine=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W) and (B, condition) → (B, C, H, W)."""
        a, b, c, d = self.modulation(condition)[..., None, None].chunk(4, 1)
        h = self.first(F.silu(self.norm(x) * (1 + a) + b))
        return x + self.second(F.silu(self.norm(h) * (1 + c) + d))
