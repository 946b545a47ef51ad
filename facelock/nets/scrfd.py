"""A tiny single-shot face detector with SCRFD's outputs (Guo et al. 2021, arXiv:2105.04714)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from facelock.nets.recogniser import Residual, _down

STRIDES = (8, 16, 32)
ANCHORS = 2


class Head(nn.Module):
    """Score, box distances and five landmarks per anchor of one pyramid level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.PReLU(channels)
        )
        self.score = nn.Conv2d(channels, ANCHORS, 3, padding=1)
        self.box = nn.Conv2d(channels, 4 * ANCHORS, 3, padding=1)
        self.points = nn.Conv2d(channels, 10 * ANCHORS, 3, padding=1)
        nn.init.constant_(self.score.bias, -4.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, h, w) → (B, n, 1) logits, (B, n, 4) and (B, n, 10) in strides; n = h · w · anchors, row-major."""
        h = self.shared(x)

        def rows(y: Tensor, k: int) -> Tensor:
            return y.permute(0, 2, 3, 1).reshape(y.shape[0], -1, k)

        return rows(self.score(h), 1), rows(self.box(h), 4), rows(self.points(h), 10)


class Scrfd(nn.Module):
    """(B, 3, H, W) RGB, ``(x - 127.5) / 128`` → three levels of (logits, boxes, landmarks). Sides divisible by 32."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(_down(3, w), _down(w, 2 * w), Residual(2 * w))
        self.level8 = nn.Sequential(_down(2 * w, 4 * w), Residual(4 * w), Residual(4 * w))
        self.level16 = nn.Sequential(_down(4 * w, 6 * w), Residual(6 * w), Residual(6 * w))
        self.level32 = nn.Sequential(_down(6 * w, 6 * w), Residual(6 * w))
        self.side8, self.side16 = nn.Conv2d(4 * w, 4 * w, 1), nn.Conv2d(6 * w, 4 * w, 1)
        self.side32 = nn.Conv2d(6 * w, 4 * w, 1)
        self.heads = nn.ModuleList([Head(4 * w) for _ in STRIDES])

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per stride: logits (B, n, 1), distances left/top/right/bottom (B, n, 4), offsets (B, n, 10), in strides."""
        c8 = self.level8(self.stem(x))
        c16 = self.level16(c8)
        c32 = self.level32(c16)
        p32 = self.side32(c32)
        p16 = self.side16(c16) + F.interpolate(p32, scale_factor=2.0, mode="nearest")
        p8 = self.side8(c8) + F.interpolate(p16, scale_factor=2.0, mode="nearest")
        return [head(p) for head, p in zip(self.heads, (p8, p16, p32), strict=True)]


class ScrfdExport(nn.Module):
    """The nine outputs in the order insightface reads: three scores, three boxes, three landmark sets."""

    def __init__(self, net: Scrfd) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → scores in [0, 1], boxes, landmarks for the strides 8, 16, 32."""
        levels = self.net(x)
        scores = [level[0].sigmoid() for level in levels]
        return (*scores, *(level[1] for level in levels), *(level[2] for level in levels))
