"""Between frames and canonical crops: similarities from five landmarks, crops out, crops back in, head pose.

::

    matrices = similarity_from_landmarks(faces.landmarks, INSWAPPER128)          # (N, 2, 3) frame → crop
    crops = warp_crops(frames, faces.frame, matrices, INSWAPPER128.size)         # (N, 3, 128, 128)
    frames = paste_crops(frames, faces.frame, matrices, crops, soft_mask(128))

Coordinates follow OpenCV: the centre of the top-left pixel is (0, 0). Every face is worked on by itself and
sums are taken in a fixed order, so that its bits never depend on the other faces of a batch. Faces that
shrink on their way are averaged over the area of each new pixel; they do not alias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from facelock.types import CropSpec

ARCFACE_TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""ArcFace's published landmark positions in a square of 112 pixels (Deng et al. 2019)."""
ARCFACE112 = CropSpec("arcface112", 112, ARCFACE_TEMPLATE)
"""What recognisers look at."""
INSWAPPER128 = CropSpec("inswapper128", 128, tuple((x + 8.0, y) for x, y in ARCFACE_TEMPLATE))
"""What inswapper-format aligners and restorers look at: the same scale, 8 pixels to the right."""

REFERENCE384 = CropSpec(
    "reference384", 384, tuple(((x - 56) * 2.2 + 192, (y - 64) * 2.2 + 192) for x, y in ARCFACE_TEMPLATE)
)
"""A reference as an identity keeps it: the whole head at the resolution of a close-up."""

FFHQ512 = CropSpec(
    "ffhq512",
    512,
    (
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ),
)
"""What face restorers trained on FFHQ look at (GFPGAN, RestoreFormer, CodeFormer): the five points of facexlib's
``FaceRestoreHelper``, "standard 5 landmarks for FFHQ faces with 512 x 512"."""


def wide_crop(size: int) -> CropSpec:
    """What :data:`REFERENCE384` shows, at ``size`` pixels: the crop of aligners that warp."""
    scale = size / REFERENCE384.size
    points = tuple(((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5) for x, y in REFERENCE384.template)
    return CropSpec(f"wide{size}", size, points)


HEAD = ((-0.5, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.57, 0.5), (-0.414, 1.155, 0.08), (0.414, 1.155, 0.08))
"""The landmarks of an average head in units of the eyes' distance: x right, y down, z towards the camera."""

_SHARP = 1.5
"""Source pixels per new pixel up to which bilinear sampling alone does not alias visibly."""
_POOLED = 4.0
"""Source pixels per new pixel from which the source is first reduced by a whole factor."""
_TINY = 1e-12

T = TypeVar("T", Tensor, NDArray[np.float64])
Affine = tuple[float, float, float, float, float, float]
"""``(a, b, tx, c, d, ty)``: ``x' = a·x + b·y + tx`` and ``y' = c·x + d·y + ty``."""


def similarity_from_landmarks(landmarks: Tensor, spec: CropSpec) -> Tensor:
    """Least-squares similarities (Umeyama 1991) from frame pixels to the crop of ``spec``.

    ``landmarks`` is (N, 5, 2) in pixels; returns (N, 2, 3) float32 on the CPU. Five landmarks in one point,
    which no detector should report, are answered with a shift.
    """
    points = landmarks.detach().cpu().numpy().astype(np.float64)  # numpy: few numbers, many operations
    template = np.array(spec.template, dtype=np.float64)
    middle, goal = _mean(list(points.transpose(1, 0, 2))), _mean(list(template))
    (a, c), (b, d) = (points - middle[:, None]).transpose(2, 1, 0), (template - goal).T
    power = _sum(list(a * a + c * c))
    along = _sum(list(a * b[:, None] + c * d[:, None]))
    across = _sum(list(a * d[:, None] - c * b[:, None]))
    usable = (power > _TINY) & (along * along + across * across > _TINY)
    power = np.where(usable, power, 1.0)
    cos, sin = np.where(usable, along, 1.0) / power, np.where(usable, across, 0.0) / power
    x = goal[0] - (cos * middle[:, 0] - sin * middle[:, 1])
    y = goal[1] - (sin * middle[:, 0] + cos * middle[:, 1])
    rows = np.stack([cos, -sin, x, sin, cos, y], 1).reshape(-1, 2, 3)
    return torch.from_numpy(rows.astype(np.float32))


def _sum(parts: Sequence[T]) -> T:
    """Sum from left to right; ``Tensor.sum`` may choose another order for another batch."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _mean(parts: Sequence[T]) -> T:
    return _sum(parts) / len(parts)


def warp_crops(frames: Tensor, frame_index: Tensor, matrices: Tensor, size: int) -> Tensor:
    """Cut canonical crops out of frames.

    ``frames`` (T, 3, H, W), ``frame_index`` (N,) says whose each crop is, ``matrices`` (N, 2, 3) lead from
    frame to crop. Returns (N, 3, size, size) on the frames' device; outside of a frame its edge is repeated.
    """
    crops = [
        _sample(frames[index], _inverse(affine), (0, 0, size, size), "border")
        for index, affine in zip(frame_index.tolist(), _affines(matrices), strict=True)
    ]
    return torch.stack(crops) if crops else frames.new_zeros(0, frames.shape[1], size, size)


def paste_crops(frames: Tensor, frame_index: Tensor, matrices: Tensor, crops: Tensor, mask: Tensor) -> Tensor:
    """Put crops back where they came from; returns new frames of the same shape.

    ``matrices`` (N, 2, 3) lead from frame to crop, as for :func:`warp_crops`; ``mask`` is (S, S) or (N, S, S)
    in [0, 1], the crop's share of each pixel. Only pixels under a face's own square change, all others keep
    their bits. Where faces of one frame overlap, the later one lies on top.
    """
    result = frames.clone()
    paste_onto(result, frame_index, matrices, crops, mask)
    return result


def paste_onto(frames: Tensor, frame_index: Tensor, matrices: Tensor, crops: Tensor, mask: Tensor) -> None:
    """:func:`paste_crops` into ``frames`` themselves: no copy, so its cost is that of the faces alone."""
    share = mask.to(crops).expand(len(crops), *crops.shape[-2:])[:, None]
    layers = torch.cat([crops * share, share], 1)
    for place, (index, affine) in enumerate(zip(frame_index.tolist(), _affines(matrices), strict=True)):
        window = _window(_inverse(affine), crops.shape[-1], frames.shape[-2:])
        left, top, width, height = window
        if width <= 0 or height <= 0:
            continue
        seen = _sample(layers[place], affine, window, "zeros").to(frames)
        target = frames[index, :, top : top + height, left : left + width]
        target.mul_(1 - seen[3:]).add_(seen[:3]).clamp_(0, 1)


def crop_window(matrix: Tensor, size: int, limits: Sequence[int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the pixels that a crop of ``size`` can touch in a frame of ``limits``.

    ``matrix`` (2, 3) leads from frame to crop, ``limits`` is (height, width). Outside of the frame width or height
    is not positive.
    """
    return _window(_inverse(_affines(matrix)[0]), size, limits)


def _affines(matrices: Tensor) -> list[Affine]:
    return [tuple(row) for row in matrices.detach().cpu().double().reshape(-1, 6).tolist()]


def _inverse(affine: Affine) -> Affine:
    a, b, x, c, d, y = affine
    det = a * d - b * c
    if abs(det) < _TINY:  # nothing can be seen through it: one pixel, everywhere
        return (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    a, b, c, d = d / det, -b / det, -c / det, a / det
    return (a, b, -(a * x + b * y), c, d, -(c * x + d * y))


def _window(back: Affine, side: int, limits: Sequence[int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the frame's pixels that a crop of ``side`` can touch."""
    a, b, x, c, d, y = back
    corners = [(u, v) for u in (-1.0, float(side)) for v in (-1.0, float(side))]
    xs = [a * u + b * v + x for u, v in corners]
    ys = [c * u + d * v + y for u, v in corners]
    left, top = max(0, math.floor(min(xs))), max(0, math.floor(min(ys)))
    right, bottom = min(limits[1], math.ceil(max(xs)) + 1), min(limits[0], math.ceil(max(ys)) + 1)
    return left, top, right - left, bottom - top


def _sample(source: Tensor, affine: Affine, window: tuple[int, int, int, int], padding: str) -> Tensor:
    """The picture (C, H, W) seen through ``affine``, which leads from the window's pixels to the source's."""
    a, b, x, c, d, y = affine
    step = math.sqrt(abs(a * d - b * c))
    if step > _POOLED:
        factor = int(step / 2)
        source = functional.avg_pool2d(source[None], factor, ceil_mode=True, count_include_pad=False)[0]
        rest = (1 / factor - 1) / 2
        a, b, x, c, d, y = (value / factor for value in (a, b, x, c, d, y))
        x, y, step = x + rest, y + rest, step / factor
    fine = 1 if step <= _SHARP else math.ceil(step)
    grid = _grid((a, b, x, c, d, y), window, fine, source)
    seen = functional.grid_sample(source[None], grid, "bilinear", padding, align_corners=False)
    return (functional.avg_pool2d(seen, fine) if fine > 1 else seen)[0]


def _grid(affine: Affine, window: tuple[int, int, int, int], fine: int, source: Tensor) -> Tensor:
    """Where to look for each of the window's pixels, ``fine`` × ``fine`` times: (1, h, w, 2) for torch."""
    a, b, x, c, d, y = affine
    left, top, width, height = window
    rows, columns = (
        (np.arange(count * fine, dtype=np.float64) + 0.5) / fine - 0.5 + start
        for count, start in ((height, top), (width, left))
    )
    high, wide = source.shape[-2:]
    x_across, x_down = columns * (2 * a / wide), rows * (2 * b / wide) + ((2 * x + 1) / wide - 1)
    y_across, y_down = columns * (2 * c / high), rows * (2 * d / high) + ((2 * y + 1) / high - 1)
    lines = [line.astype(np.float32) for line in (x_across, x_down, y_across, y_down)]
    if source.device.type != "cpu":  # a few numbers go there, and become millions there
        there = torch.from_numpy(np.concatenate(lines)).to(source.device, source.dtype)
        x_across, x_down, y_across, y_down = there.split([len(line) for line in lines])
        return torch.stack([x_across + x_down[:, None], y_across + y_down[:, None]], -1)[None]
    grid = np.empty(
        (1, len(rows), len(columns), 2), np.float32
    )  # numpy: a face's few numbers cost torch ten calls
    np.add(lines[0], lines[1][:, None], out=grid[0, ..., 0])
    np.add(lines[2], lines[3][:, None], out=grid[0, ..., 1])
    return torch.from_numpy(grid).to(source.device, source.dtype)


def soft_mask(size: int, edge: float = 0.3) -> Tensor:
    """A crop's share of each pixel, (size, size) float32: a rounded square that is 1 inside and fades to 0.

    ``edge`` is the fading part of the way from the middle to the border, in (0, 1]. The outer pixels are 0.
    """
    line = (torch.arange(size, dtype=torch.float64) * 2 - (size - 1)) / max(size - 1, 1)
    square = line.square() * line.square()
    distance = (square[:, None] + square).sqrt().sqrt()
    inward = ((1 - distance) / edge).clamp(0, 1)
    return (inward * inward * (3 - 2 * inward)).float()


def estimate_pose(landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Yaw, pitch and roll in degrees, (N,) float32 each, from (N, 5, 2) landmarks and an average head.

    Yaw is positive when the face looks to the picture's right, pitch when it looks up, roll when the head is
    turned clockwise. Five points of an unknown head leave an error of a few degrees, more in pitch, and most
    beyond 60 degrees.
    """
    points = landmarks.detach().cpu().double()
    points = points - _mean(points.unbind(1))[:, None]
    head = torch.tensor(HEAD, dtype=torch.float64)
    solver = torch.linalg.pinv(head - head.mean(0))  # (3, 5): landmarks → scaled orthographic camera
    rows = [
        [_sum([points[:, i, axis] * solver[k, i] for i in range(5)]) for k in range(3)] for axis in (0, 1)
    ]
    return _angles(rows[0], rows[1])


def _angles(right: Sequence[Tensor], down: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Yaw, pitch and roll of a camera's two rows of three, in the order nod, shake, tilt."""
    roll = torch.atan2(down[0], right[0])
    cos, sin = roll.cos(), roll.sin()
    across = [cos * right[axis] + sin * down[axis] for axis in range(3)]
    along = [cos * down[axis] - sin * right[axis] for axis in range(3)]
    pitch = torch.atan2(-along[2], along[1])
    yaw = torch.atan2(across[2], across[0] * pitch.cos())
    return tuple(torch.rad2deg(angle).float() for angle in (yaw, pitch, roll))  # type: ignore[return-value]
