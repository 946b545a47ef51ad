"""Whether a long clip's colours and sharpness stay: the end against the beginning, and the slope between them.

Colour is measured in 4 × 4 fields of the frame in CIE L*a*b* (ΔE of 1976, the plain distance), so that a place that
turns into another is seen even where the frame's mean stays. Sharpness is the variance of the Laplacian of the
brightness on the scale 0 to 255, over the whole frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Array = NDArray[np.float64]
FIELDS = 4
"""Fields along each side of a frame."""
END_SECONDS = 10.0
"""Length of the beginning and of the end that are compared; a third of a clip that is shorter than three of them."""
SMALL = 1e-9


@dataclass(frozen=True)
class Trace:
    """What is kept of each of T frames."""

    rgb: Array
    """(T, 3) mean, 0 to 255."""
    lab: Array
    """(T, 16, 3) mean L*, a*, b* of each field."""
    sharpness: Array
    """(T,) variance of the Laplacian."""

    @classmethod
    def of(cls, frames: Tensor) -> Trace:
        """Of (T, 3, H, W) float32 RGB frames in [0, 1]."""
        pictures = [np.ascontiguousarray(f.permute(1, 2, 0).float().cpu().numpy()) for f in frames]
        small = functional.adaptive_avg_pool2d(frames.float().cpu(), FIELDS).permute(0, 2, 3, 1)
        fields = np.ascontiguousarray(small.reshape(len(frames), -1, 3).numpy())
        grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) * 255 for picture in pictures]
        return cls(
            np.stack([picture.reshape(-1, 3).mean(0, dtype=np.float64) * 255 for picture in pictures]),
            cv2.cvtColor(fields, cv2.COLOR_RGB2LAB).astype(np.float64),
            np.array([cv2.Laplacian(g, cv2.CV_32F).var(dtype=np.float64) for g in grey]),
        )

    @classmethod
    def joined(cls, parts: Iterable[Trace]) -> Trace:
        """One after the other."""
        parts = list(parts)
        columns = [np.concatenate([getattr(p, name) for p in parts]) for name in ("rgb", "lab", "sharpness")]
        return cls(*columns)

    @property
    def chroma(self) -> Array:
        """(T,) mean distance of the fields from grey, in L*a*b*."""
        return np.linalg.norm(self.lab[..., 1:], axis=-1).mean(-1)


def fading(trace: Trace, fps: float) -> dict[str, float]:
    """The figures of one clip of at least three frames; positive slopes and ratios above 1 are growth."""
    n = max(1, min(round(END_SECONDS * fps), len(trace.sharpness) // 3))
    first, last = slice(0, n), slice(-n, None)
    rgb = trace.rgb[last].mean(0) - trace.rgb[first].mean(0)
    lab = trace.lab[last].mean(0) - trace.lab[first].mean(0)
    return {
        "levels": float(np.sqrt(np.square(rgb).mean())),
        "delta_e": float(np.linalg.norm(lab, axis=-1).mean()),
        "chroma": _ratio(trace.chroma[last], trace.chroma[first]),
        "sharpness": _ratio(trace.sharpness[last], trace.sharpness[first]),
        "lightness_slope": slope(trace.lab[..., 0].mean(-1), fps),
        "chroma_slope": slope(trace.chroma, fps),
        "sharpness_slope": 100
        * slope(trace.sharpness, fps)
        / max(SMALL, float(trace.sharpness[first].mean())),
    }


def _ratio(after: Array, before: Array) -> float:
    return float(after.mean()) / max(SMALL, float(before.mean()))


def slope(values: Array, fps: float) -> float:
    """Least-squares slope per minute of (T,) values."""
    minutes = np.arange(len(values)) / fps / 60
    return float(np.polyfit(minutes, values, 1)[0])
