"""A small residual recogniser with ArcFace's input and output (Deng et al. 2019, arXiv:1801.07698)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3×3 convolutions with batch norm around an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return x + self.body(x)


def _down(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.PReLU(outputs))


class Recogniser(nn.Module):
    """(B, 3, 112, 112) RGB in [-1, 1] → (B, 512) embedding, not normalised.

    The picture is averaged to 56×56 first: the miniature's faces hold no more. ``lift`` is a fixed orthonormal
    map from the ``code`` dimensions to 512, so that the file has ArcFace's shape and the same cosines.
    """

    def __init__(
        self, width: int = 32, blocks: tuple[int, int, int] = (1, 2, 2), code: int = 64, size: int = 512
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for i, count in enumerate(blocks):
            stages.append(_down(channels, width * 2**i, 5 if i == 0 else 3))
            channels = width * 2**i
            stages += [Residual(channels) for _ in range(count)]
        stages += [nn.Conv2d(channels, 64, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)]
        self.features = nn.Sequential(*stages)
        self.code = nn.Linear(64 * 49, code)
        self.whiten = nn.Linear(code, code)
        nn.init.eye_(self.whiten.weight)
        nn.init.zeros_(self.whiten.bias)
        basis = torch.linalg.qr(torch.randn(size, code, generator=torch.Generator().manual_seed(5)))[0]
        self.register_buffer("lift", basis.contiguous())

    def forward_code(self, x: Tensor) -> Tensor:
        """(B, 3, 56, 56) in [-1, 1] → (B, code), before whitening; what training sees."""
        return self.code(self.features(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) in [-1, 1] → (B, 512)."""
        lift = self.get_buffer("lift")
        return self.whiten(self.forward_code(F.avg_pool2d(x, 2))) @ lift.T
