"""Compact super-resolution networks: plain convolutions at the input's size, one pixel shuffle at the end.

SRVGG of Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833): :class:`Srvgg` computes what its published checkpoints
(realesr-general-x4v3, realesr-animevideov3) were trained for, :class:`CompactSR` is our own smaller relative.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

MOST_LAYERS = 400
"""Layers of a body, activations counted; published ones have 35 and 67."""


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


class Srvgg(nn.Module):
    """(B, 3, H, W) in [0, 1] → (B, 3, scale·H, scale·W), not clamped: Real-ESRGAN's ``SRVGGNetCompact`` with PReLU.

    The names of its parameters are those of the published files: ``body.0.weight``, ``body.0.bias``,
    ``body.1.weight`` (PReLU), ... The residual lies on top of the nearest-neighbour enlargement.
    """

    def __init__(self, width: int = 64, depth: int = 16, scale: int = 4) -> None:
        """``depth`` counts the convolutions between the first and the last."""
        super().__init__()
        self.width, self.depth, self.scale = width, depth, scale
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 3 * scale * scale, 3, padding=1))

    @property
    def reach(self) -> int:
        """Pixels of the input, to each side, that an output pixel depends on."""
        return self.depth + 2

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge. Only the residual is computed in the weights' type: bfloat16 has no room for 256 shades."""
        base = F.interpolate(x, scale_factor=float(self.scale), mode="nearest")
        residual = self.body(x.to(self.body[0].weight.dtype))
        return base + F.pixel_shuffle(residual, self.scale).to(x.dtype)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Srvgg:
        """Width, depth and scale read off the tensors, all of which must fit. Raises ``ValueError`` saying what
        does not."""
        width, depth, scale = _shape(state)
        net = cls(width, depth, scale)
        expected = net.state_dict()
        wrong = [k for k in expected if k not in state or state[k].shape != expected[k].shape]
        strange = [k for k in state if k not in expected]
        if wrong or strange:
            raise ValueError(
                f"tensor {(wrong + strange)[0]!r} does not fit a net of {depth + 2} convolutions"
            )
        net.load_state_dict(state)
        return net.float().eval()


def _shape(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(width, depth, scale) of a state dict in SRVGG's layout."""
    numbers = [int(found[1]) for key in state if (found := re.fullmatch(r"body\.(\d{1,4})\.weight", key))]
    first, last = state.get("body.0.weight"), max(numbers, default=0)
    if first is None or first.ndim != 4 or not 2 <= last <= MOST_LAYERS or last % 2:
        raise ValueError("it has no body.0.weight ... body.N.weight of convolutions and activations")
    if state.get("body.1.weight") is None:
        raise ValueError("its activations are not PReLU, and which they are is not written in it")
    outputs = state[f"body.{last}.weight"].shape[0]
    scale = math.isqrt(outputs // 3)
    if first.shape[1] != 3 or outputs != 3 * scale * scale or not 1 <= scale <= 8:
        raise ValueError(f"it leads from {first.shape[1]} channels to {outputs}, not from 3 to 3·scale²")
    return int(first.shape[0]), last // 2 - 1, scale
