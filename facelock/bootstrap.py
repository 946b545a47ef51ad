"""Values with honest intervals: block bootstrap within a clip, bootstrap over clips.

Similarities of neighbouring frames are correlated for about two seconds, so that 720 frames of a minute
are worth about twenty independent ones. Within a clip we resample blocks of eight seconds (a quarter of
the clip where that is shorter), and widen the interval by Student's t for the few blocks a short clip
has. Simulated on such noise (SD .06, 2 s; 10 s to 5 min; 150 to 400 clips each), the 95 % intervals of
drift and slope hold the truth in 94 to 100 %, those of a mean in 90 to 97 %; a test holds 87 % on fewer
clips. Shorter clips do worse (5 s: 79 to 95 %). Across clips, whole clips are resampled.

    >>> over_clips([0.01, -0.02, 0.0, 0.03]).value
    0.005
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import ndtri, stdtrit

Array = NDArray[np.float64]

BLOCK_SECONDS = 8.0
"""Length of a block, four times the correlation time of frame noise."""
FEWEST_BLOCKS = 4
"""A short clip is cut into this many blocks instead."""
SHORTEST_SECONDS = 5.0
"""Readable seconds below which no interval is stated."""
RESAMPLES = 2000
LEVEL = 0.95


class Figure(BaseModel):
    """Base of everything a report states: frozen, strict, never NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        populate_by_name=True,
    )


class Estimate(Figure):
    """A value with its 95 % interval; what cannot be stated is null, and the reason says why."""

    value: float | None = None
    """The estimate; null when there is too little to estimate it from."""
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    """Upper end of the 95 % interval."""
    reason: str | None = None
    """Why the value or its interval is null."""

    def contains(self, value: float) -> bool:
        """Whether the interval is stated and contains ``value``."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high


def missing(reason: str) -> Estimate:
    """An estimate that could not be made."""
    return Estimate(reason=reason)


def block_frames(count: int, fps: float) -> int:
    """Frames of a block for a series of ``count`` frames."""
    return max(1, int(min(BLOCK_SECONDS * fps, count / FEWEST_BLOCKS)))


def _resampled_sums(weights: Array, residuals: Array, block: int, seed: int) -> Array:
    """(RESAMPLES,) values of weights · residuals*, residuals* being circular blocks drawn anew."""
    rng = np.random.default_rng(seed)
    count = len(residuals)
    wrapped = np.concatenate([residuals, residuals[:block]])
    sums = np.zeros(RESAMPLES)
    for begin in range(0, count, block):
        length = min(block, count - begin)
        starts = rng.integers(0, count, RESAMPLES)
        sums += wrapped[starts[:, None] + np.arange(length)] @ weights[begin : begin + length]
    return sums


def _student(freedom: float) -> float:
    """How much wider than a normal interval one with few degrees of freedom must be."""
    tail = (1 + LEVEL) / 2
    return float(stdtrit(max(freedom, 1.0), tail) / ndtri(tail))


def linear_estimate(weights: Array, values: Array, design: Array, *, fps: float, seed: int = 0) -> Estimate:
    """Estimate ``weights · values`` with a block-bootstrap interval.

    ``values`` is (n,), one per readable frame in order; ``design`` (n, p) is the trend that is taken out
    before the residuals are resampled (constant and time, at least). Mean, drift and slope are all such
    weighted sums. The interval is null below ``SHORTEST_SECONDS``.
    """
    value = float(weights @ values)
    count, columns = design.shape
    seconds = count / fps
    block = block_frames(count, fps)
    if seconds < SHORTEST_SECONDS or count // block < FEWEST_BLOCKS or count <= 2 * columns:
        return Estimate(value=value, reason=f"no interval: {seconds:.1f} s of readable face are too few")
    residuals = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    blocks = count / block
    widen = _student(blocks - 2) * np.sqrt(blocks / (blocks - 2) * count / (count - columns))
    tails = np.quantile(_resampled_sums(weights, residuals, block, seed), [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    low, high = value - widen * tails
    return Estimate(value=value, low=float(low), high=float(high))


def over_clips(values: Sequence[float | None], *, seed: int = 0) -> Estimate:
    """Mean over clips with a bootstrap interval over clips; clips without a value are said, not hidden."""
    present = np.array([value for value in values if value is not None], dtype=np.float64)
    lost = len(values) - len(present)
    note = f"{lost} of {len(values)} clips have no such value" if lost else None
    if not len(present):
        return missing(note or "no clips")
    mean = float(present.mean())
    if len(present) < 2:
        return Estimate(value=mean, reason="; ".join(filter(None, [note, "no interval from one clip"])))
    draws = np.random.default_rng(seed).integers(0, len(present), (RESAMPLES, len(present)))
    tails = np.quantile(present[draws].mean(1) - mean, [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    widen = _student(len(present) - 1) * np.sqrt(len(present) / (len(present) - 1))
    low, high = mean - widen * tails
    return Estimate(value=mean, low=float(low), high=float(high), reason=note)
