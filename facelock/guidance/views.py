"""Several looks at each face, so that a gradient cannot please one crop, one blur and one noise alone.

Views are drawn once per denoising step from a fixed seed, and are the same for every frame: what is asked of a face
does not depend on the frame's index, and the answer does not flicker for that.

Shapes: N faces, S side of the crop, T frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from facelock.geometry import warp_crops
from facelock.types import CropSpec

TURN, ZOOM, SHIFT = 4.0, 0.04, 0.02
"""Standard deviations of the jitter: degrees, logarithm of the scale, share of the crop's side."""
BLUR, NOISE, GAIN, LIFT = 1.2, 0.03, 0.1, 0.05
"""Most that an augmentation does: sigma in crop pixels, deviation in [0, 1], relative and absolute colour."""


@dataclass(frozen=True)
class View:
    """One look at every face."""

    jitter: Tensor
    """(2, 3) float64, from crop to crop."""
    mirrored: bool
    blur: float
    gain: Tensor
    """(3, 1, 1), per channel."""
    lift: Tensor
    """(3, 1, 1)."""
    noise: Tensor
    """(3, S, S)."""

    def of(self, frames: Tensor, frame_index: Tensor, matrices: Tensor, size: int) -> Tensor:
        """(N, 3, S, S) crops of ``frames`` (T, 3, H, W), differentiable; ``matrices`` (N, 2, 3) lead to the crops."""
        crops = warp_crops(frames, frame_index, composed(self.jitter, matrices), size)
        crops = _blurred(crops.flip(-1) if self.mirrored else crops, self.blur)
        gain, lift, noise = (part.to(crops) for part in (self.gain, self.lift, self.noise))
        return crops * gain + lift + noise


def plain_view(size: int) -> View:
    """The crop as the recogniser itself gets it."""
    one = torch.ones(3, 1, 1)
    identity = torch.eye(3, dtype=torch.float64)[:2]
    return View(identity, False, 0.0, one, one * 0, torch.zeros(3, size, size))


def draw_views(count: int, crop: CropSpec, seed: int) -> list[View]:
    """``count`` views for crops of ``crop``: the plain one first, then others drawn from ``seed``."""
    draw = torch.Generator().manual_seed(seed)
    return [plain_view(crop.size), *(_drawn(crop, draw) for _ in range(count - 1))][:count]


def _drawn(crop: CropSpec, draw: torch.Generator) -> View:
    turn, zoom, across, down = torch.randn(4, generator=draw, dtype=torch.float64).tolist()
    chance, blur, noise = torch.rand(3, generator=draw).tolist()
    gain, lift = torch.rand(2, 3, 1, 1, generator=draw) * 2 - 1
    middle = sum(x for x, _ in crop.template) / 5, sum(y for _, y in crop.template) / 5
    mirrored = chance < 0.5
    if mirrored:  # a mirrored face has its own middle elsewhere
        middle = crop.size - 1 - middle[0], middle[1]
    move = across * SHIFT * crop.size, down * SHIFT * crop.size
    return View(
        _turned(math.radians(turn * TURN), math.exp(zoom * ZOOM), middle, move),
        mirrored,
        blur * BLUR,
        1 + GAIN * gain,
        LIFT * lift,
        noise * NOISE * torch.randn(3, crop.size, crop.size, generator=draw),
    )


def _turned(angle: float, scale: float, middle: tuple[float, float], move: tuple[float, float]) -> Tensor:
    """(2, 3): a turn and a scaling about ``middle``, then a shift, all in crop pixels."""
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    x, y = middle
    rows = [[c, -s, x + move[0] - c * x + s * y], [s, c, y + move[1] - s * x - c * y]]
    return torch.tensor(rows, dtype=torch.float64)


def composed(after: Tensor, before: Tensor) -> Tensor:
    """(2, 3) after each of (N, 2, 3): (N, 2, 3) float32."""
    before = before.double()
    linear = after[:, :2] @ before[:, :, :2]
    return torch.cat([linear, after[:, :2] @ before[:, :, 2:] + after[:, 2:]], 2).float()


def _blurred(crops: Tensor, sigma: float) -> Tensor:
    """A Gaussian of ``sigma`` pixels, edges repeated."""
    if sigma < 0.1:
        return crops
    reach = math.ceil(2.5 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (weights / weights.sum()).to(crops).expand(3, 1, 1, -1)
    padded = functional.pad(crops, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
