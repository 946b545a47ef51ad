"""What the points of a dense landmark reader mean: contours as lists of indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layout:
    """The points of one reader. Contours run around their part once; left and right are as seen in the picture."""

    name: str
    count: int
    """Points per face, P."""
    oval: tuple[int, ...]
    """The face's outline, forehead and all."""
    left_eye: tuple[int, ...]
    right_eye: tuple[int, ...]
    left_brow: tuple[int, ...]
    right_brow: tuple[int, ...]
    outer_lips: tuple[int, ...]
    inner_lips: tuple[int, ...]
    nose: tuple[int, ...]
    """The nose's tip and wings."""
    loose: tuple[int, ...] = ()
    """Points that move within the face, such as pupils: no part of a mesh."""

    @property
    def mesh(self) -> tuple[int, ...]:
        """All points but the loose ones."""
        return tuple(i for i in range(self.count) if i not in self.loose)


def indices(text: str) -> tuple[int, ...]:
    """Numbers in a text."""
    return tuple(map(int, text.split()))


MEDIAPIPE478 = Layout(
    "mediapipe478",
    478,
    oval=indices(
        "10 338 297 332 284 251 389 356 454 323 361 288 397 365 379 378 400 377 152 148 176 149 "
        "150 136 172 58 132 93 234 127 162 21 54 103 67 109"
    ),
    left_eye=indices("33 246 161 160 159 158 157 173 133 155 154 153 145 144 163 7"),
    right_eye=indices("362 398 384 385 386 387 388 466 263 249 390 373 374 380 381 382"),
    left_brow=(70, 63, 105, 66, 107, 55, 65, 52, 53, 46),
    right_brow=(336, 296, 334, 293, 300, 276, 283, 282, 295, 285),
    outer_lips=indices("61 185 40 39 37 0 267 269 270 409 291 375 321 405 314 17 84 181 91 146"),
    inner_lips=indices("78 191 80 81 82 13 312 311 310 415 308 324 318 402 317 14 87 178 88 95"),
    nose=(1, 4, 98, 327, 2),
    loose=(468, 469, 470, 471, 472, 473, 474, 475, 476, 477),
)
"""MediaPipe's face mesh with attention; the last ten points are the irises."""

_FOREHEAD = 7
INSIGHTFACE106 = Layout(
    "insightface106",
    106 + _FOREHEAD,
    oval=indices(
        "1 9 10 11 12 13 14 15 16 2 3 4 5 6 7 8 0 24 23 22 21 20 19 18 32 31 30 29 28 27 26 25 17 "
        "112 111 110 109 108 107 106"
    ),
    left_eye=(35, 41, 40, 42, 39, 37, 33, 36),
    right_eye=(89, 95, 94, 96, 93, 91, 87, 90),
    left_brow=(43, 48, 49, 51, 50, 46, 47, 45, 44),
    right_brow=(102, 103, 104, 105, 101, 100, 99, 98, 97),
    outer_lips=(52, 64, 63, 71, 67, 68, 61, 58, 59, 53, 56, 55),
    inner_lips=(65, 66, 62, 70, 69, 57, 60, 54),
    nose=(86, 78, 79, 80, 85, 84),
    loose=(34, 38, 88, 92),
)
"""insightface's 106 points, and seven of a forehead that it does not read."""


def with_forehead(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """(106, 2) → (113, 2): points of the forehead, from the left temple to the right, above the brows.

    They lie on a curve from the outline's ends over the brows, as high above the eyes as the nose's tip lies below.
    """
    left, right = points[1].astype(np.float64), points[17].astype(np.float64)
    eyes = points[[*INSIGHTFACE106.left_eye, *INSIGHTFACE106.right_eye]].mean(0, dtype=np.float64)
    up = eyes - points[86]
    ways = np.arange(1, _FOREHEAD + 1)[:, None] / (_FOREHEAD + 1)
    arch = left + (right - left) * ways + up * np.sin(np.pi * ways) ** 0.5
    return np.concatenate([points, arch]).astype(np.float32)
