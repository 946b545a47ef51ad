"""Several people side by side in one frame, by a backbone that was trained on one: a prompt per region.

::

    regions = Regions.across(2, width=28, window=16)
    shares("a woman talking | a man smiling", 2)     # ["a woman talking", "a man smiling"]
    velocity = regions.blend(latents, lambda part, region: predict(part, texts[region]))

Each region is a window as wide as the frames the backbone knows; in every denoising step each window's velocity is
predicted by itself under its own prompt, and where windows overlap the velocities are mixed. That is MultiDiffusion
(Bar-Tal et al. 2023, arXiv:2302.08113, equation 5: with one denoiser and weights per pixel its least-squares problem
has the weighted mean as its solution), with weights that ramp across the overlap so that no seam shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from facelock.blueprint.fits import region_starts
from facelock.errors import InputError

SEPARATOR = "|"
"""Between the prompts of regions, from left to right."""


@dataclass(frozen=True)
class Regions:
    """Windows along a frame's width, in latents."""

    starts: tuple[int, ...]
    """Left edges."""
    window: int
    """Width of each."""
    weights: Tensor
    """(R, W) float32, ``W`` the frame's width; every column sums to 1."""

    @classmethod
    def across(cls, count: int, width: int, window: int) -> Regions:
        """``count`` windows spread evenly over ``width``. Raises ``ConfigError`` where they leave gaps."""
        starts = region_starts(count, width, window)
        column = torch.arange(width) + 0.5
        # how deep inside its window a column lies: a ramp up, a ramp down, zero outside
        depth = torch.stack([torch.minimum(column - s, s + window - column).clamp(min=0) for s in starts])
        return cls(starts, window, depth / depth.sum(0))

    def blend(self, latents: Tensor, predict: Callable[[Tensor, int], Tensor]) -> Tensor:
        """(1, z, F, h, W) latents → what ``predict(part, region)`` says of each window, mixed, of the same shape."""
        whole = torch.zeros_like(latents)
        for region, start in enumerate(self.starts):
            here = slice(start, start + self.window)
            weight = self.weights[region, here].to(latents)
            whole[..., here] += predict(latents[..., here], region) * weight
        return whole


def shares(prompt: str, count: int) -> list[str]:
    """The prompt of each of ``count`` regions: the parts between ``|``, the last of them for all that are left.

    Raises ``InputError`` for more parts than regions, or an empty one.
    """
    parts = [part.strip() for part in prompt.split(SEPARATOR)] if count > 1 else [prompt]
    if len(parts) > count or not all(parts):
        raise InputError(
            f"The prompt has {len(parts)} parts divided by {SEPARATOR}, for {count} regions. "
            "Give one part per person, from left to right."
        )
    return parts + parts[-1:] * (count - len(parts))
