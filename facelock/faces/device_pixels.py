"""What OpenCV does to pictures on the CPU, for frames that lie on a GPU: they stay there, as bytes.

Detectors and recognisers look at pictures as OpenCV 5 makes them. ``resized`` gives ``cv2.resize``'s bytes, all of
them: its bilinear weights are integers of 11 bits. ``warped`` follows ``cv2.warpAffine``, which works in float32 and in
an order of its own: where a value lies halfway between two, about one byte in 10 000, it may be one off.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BITS = 11
"""Of ``cv2.resize``'s weights."""


def as_bytes(frames: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1], or bytes → uint8 where they lie: the nearest, halves to even, as OpenCV rounds."""
    if frames.dtype == torch.uint8:
        return frames
    return (frames.detach().float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) uint8 at ``size`` (height, width): the bytes of ``cv2.resize(..., interpolation=INTER_LINEAR)``."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    rows, columns = (_weights(old, new) for old, new in zip(pixels.shape[-2:], size, strict=True))
    left, right, low, high = _there(columns, pixels.device)
    wide = pixels[..., left].int() * low + pixels[..., right].int() * high
    above, below, low, high = _there(rows, pixels.device)
    parts = [
        (weight[:, None] * (wide[..., at, :] >> 4)) >> 16 for at, weight in ((above, low), (below, high))
    ]
    return ((parts[0] + parts[1] + 2) >> 2).clamp_(0, 255).to(torch.uint8)


def _weights(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """The first of the two pixels that each new one lies between, its share of the second, and their number."""
    at = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(at)
    return first.astype(np.int64), np.asarray(at - first, np.float32), old


def _there(
    axis: tuple[NDArray[np.int64], NDArray[np.float32], int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices of both pixels and their integer weights on ``device``; beyond the border the outer pixel is repeated."""
    first, share, count = axis
    low, high = (np.rint(part * 2**BITS) for part in (1 - share, share))
    pixels = [first.clip(0, count - 1), (first + 1).clip(0, count - 1)]
    table = torch.from_numpy(np.stack([*pixels, low, high]).astype(np.int64)).to(device)
    return table[0], table[1], table[2].int(), table[3].int()


def warped(pixels: Tensor, matrix: NDArray[np.float64], side: int) -> Tensor:
    """A crop (3, side, side) uint8 of the picture (3, H, W) uint8, black outside, as ``cv2.warpAffine`` cuts it.

    ``matrix`` (2, 3) leads from picture to crop.
    """
    back = cv2.invertAffineTransform(matrix).astype(np.float32)
    numbers = torch.from_numpy(np.concatenate([back.ravel(), np.arange(side, dtype=np.float32)])).to(
        pixels.device
    )
    (a, b, x, c, d, y), line = numbers[:6], numbers[6:]
    across = a * line + (b * line[:, None] + x)
    down = c * line + (d * line[:, None] + y)
    left, top = across.floor(), down.floor()
    corners = [_at(pixels, top.long() + dy, left.long() + dx) for dy in (0, 1) for dx in (0, 1)]
    u, v = across - left, down - top
    above, below = (one + u * (other - one) for one, other in (corners[:2], corners[2:]))
    return (above + v * (below - above)).round().clamp(0, 255).to(torch.uint8)


def _at(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(3, n, n) float32 values at (n, n) places, 0 outside of the picture."""
    height, width = pixels.shape[-2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return pixels[:, rows.clamp(0, height - 1), columns.clamp(0, width - 1)].float() * inside


def squares(pixels: Tensor, inner: Sequence[int], outer: Sequence[int]) -> Tensor:
    """(T, 3, *outer) float32 in 0..255: the pictures (T, 3, H, W) uint8, resized to ``inner``, at the top left of black
    ones."""
    full = torch.zeros((len(pixels), 3, *outer), device=pixels.device)
    full[..., : inner[0], : inner[1]] = resized(pixels, (inner[0], inner[1]))
    return full
