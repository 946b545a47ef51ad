"""RGB to the planes that H.264 codes, on the device where the frames are: half the bytes of RGB cross the bus.

Used for frames on a GPU. On a CPU ffmpeg's own scaler does it, whose bytes stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

KR, KB = 0.2126, 0.0722
"""Shares of red and blue in the brightness: ITU-R BT.709, item 3.2."""


def yuv420(frames: Tensor) -> Tensor:
    """(T, 3, H, W) RGB in [0, 1], H and W even → (T, H·3/2, W) uint8: Y, then U and V as ffmpeg's yuv420p has them.

    BT.709, limited range (Y 16–235, U and V 16–240). A chroma sample is the mean of its four pixels, as ffmpeg's
    scaler makes and reads it.
    """
    red, green, blue = frames.float().clamp(0, 1).unbind(1)
    bright = KR * red + (1 - KR - KB) * green + KB * blue
    chroma = torch.stack([(blue - bright) / (2 * (1 - KB)), (red - bright) / (2 * (1 - KR))], 1)
    count, (height, width) = len(frames), frames.shape[-2:]
    small = functional.avg_pool2d(chroma, 2)
    luma = (16 + 219 * bright).round().to(torch.uint8)
    planes = (128 + 224 * small).round().to(torch.uint8)
    return torch.cat([luma.flatten(1), planes.flatten(1)], 1).view(count, height * 3 // 2, width)
