"""RGB bytes to YUV 4:2:0 bytes in torch, as ffmpeg's scaler makes them: on a GPU half the bytes cross to the encoder.

What ``scale=out_color_matrix=…:out_range=tv:flags=accurate_rnd+full_chroma_int+bitexact`` does (libswscale's
``rgb24ToY_c``, ``rgb24ToUV_half_c``, ``yuv2planeX_8_c`` and the bicubic filter of ``initFilter``): luma and chroma in
integers of 15 bits, chroma averaged over two columns and filtered over eight rows. Tests hold that all bytes are the
same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SHIFT = 15
"""Bits of the factors."""
FACTORS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "bt709": ((5983, 20127, 2032), (-3298, -11094, 14392), (14392, -13073, -1320)),
    "bt601": ((8414, 16519, 3208), (-4865, -9528, 14392), (14392, -12061, -2332)),
}
"""Matrix, in ffmpeg's words → factors of red, green and blue for Y, U and V in limited range."""
ROWS = (-58, -172, 492, 1786, 1786, 492, -172, -58)
"""The bicubic filter (B = 0, C = 0.6) at half the rows, in 1/4096."""
SMALLEST = 16
"""Pixels of the shorter side from which the filter has all of its rows; below, ffmpeg takes another."""
_EDGE = (len(ROWS) - 2) // 2


def planes_420(pixels: Tensor, matrix: str) -> Tensor:
    """(T, 3, H, W) uint8 RGB → (T, H·3/2, W) uint8, rows of Y and then, packed, of U and V; H and W even.

    ``matrix`` is one of :data:`FACTORS`.
    """
    luma, *chroma = FACTORS[matrix]
    channels = pixels.int()
    y = (_mixed(channels, luma, (32 << (SHIFT - 1)) + (1 << (SHIFT - 7)), SHIFT - 6) * 2 + 64) >> 7
    pairs = channels[..., 0::2] + channels[..., 1::2]
    halves = [
        _mixed(pairs, factors, (256 << SHIFT) + (1 << (SHIFT - 6)), SHIFT - 5) * 2 for factors in chroma
    ]
    parts = [y.clamp(0, 255), *(_half_the_rows(half) for half in halves)]
    packed = torch.cat([part.flatten(1) for part in parts], 1).to(torch.uint8)
    return packed.view(len(pixels), -1, pixels.shape[-1])


def _mixed(channels: Tensor, factors: tuple[int, int, int], offset: int, shift: int) -> Tensor:
    """The weighted sum of red, green and blue of (T, 3, h, w): (T, h, w) int32."""
    red, green, blue = channels.unbind(1)
    return (red * factors[0] + green * factors[1] + blue * factors[2] + offset) >> shift


def _half_the_rows(plane: Tensor) -> Tensor:
    """(T, h, w) int32 of 15 bits → (T, h/2, w) in 0..255; beyond the border the outer row is repeated."""
    height = plane.shape[1]
    rows = torch.arange(-_EDGE, height + _EDGE, device=plane.device).clamp(0, height - 1)
    wide = plane.index_select(1, rows)
    total = torch.full_like(plane[:, ::2], 64 << 12)
    for place, factor in enumerate(ROWS):
        total += wide[:, place : place + height : 2] * factor
    return (total >> 19).clamp(0, 255)
