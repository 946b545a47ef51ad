"""Compact super-resolution networks: plain convolutions at the input's size, one pixel shuffle at the end.

SRVGG of Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833): :class:`Srvgg` computes what its published checkpoints
(realesr-general-x4v3, realesr-animevideov3) were trained for, :class:`CompactSR` is our own smaller relative.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from facelock.nets.compact_layout import compact_shape


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
        shape = compact_shape({key: tuple(tensor.shape) for key, tensor in state.items()})
        net = cls(shape.width, shape.depth, shape.scale)
        expected = net.state_dict()
        wrong = [k for k in expected if k not in state or state[k].shape != expected[k].shape]
        strange = [k for k in state if k not in expected]
        if wrong or strange:
            raise ValueError(
                f"tensor {(wrong + strange)[0]!r} does not fit a net of {shape.depth + 2} convolutions"
            )
        net.load_state_dict(state)
        return net.float().eval()
