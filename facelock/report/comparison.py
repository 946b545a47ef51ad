"""Figures that set a locked clip beside the unlocked one: stillness, flicker, honesty.

No drift is easily bought with no motion, with flicker, or by pleasing the one recogniser that the loop
climbs. Each has its figure here; all take plain arrays over frames, NaN where there is no value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from facelock.bootstrap import Array, Figure
from facelock.report.figures import Series

FEWEST_FRAMES = 8
"""Frames readable in both clips below which variances say nothing."""
SMOOTH_SECONDS = 0.25
"""Signals are averaged over this long first, so that a detector's jitter is not taken for life."""
LEAST_GAIN = 0.02
"""In-loop gain below which honesty is not stated: the loop had nothing to do."""
LEAST_MOTION = {
    "yaw": 0.25,
    "pitch": 0.25,
    "roll": 0.25,
    "mouth": 1e-5,
    "eyes": 1e-5,
    "landmarks": 1e-6,
}
"""Variance of the unlocked clip (degrees², relative brightness², eye distances² per frame²) below which
that signal is still anyway and its ratio is null."""


class Stillness(Figure):
    """Motion kept by the lock: variance in the locked clip ÷ variance in the unlocked one."""

    value: float | None = None
    """Geometric mean of the ratios; 0.95 and more is wanted."""
    ratios: dict[str, float | None] = Field(default_factory=dict)
    """Per signal: yaw, pitch, roll, mouth, eyes, landmarks; null where the unlocked clip is still."""
    frames: int = 0
    """Frames readable in both clips."""
    reason: str | None = None
    """Why the value is null."""


class Flicker(Figure):
    """Restlessness of the face, and how it relates to the unlocked clip's (1.1 and less is wanted)."""

    residual: float | None = None
    """Mean absolute difference in [0, 1] of the face to the frame before, after motion compensation."""
    residual_ratio: float | None = None
    """The same divided by the unlocked clip's, over the frames that both have."""
    jitter: float | None = None
    """Standard deviation of the similarity's change from frame to frame."""
    jitter_ratio: float | None = None
    """The same divided by the unlocked clip's."""
    reason: str | None = None
    """Why a value is null."""


class Honesty(Figure):
    """Whether an outside judge sees the gain that the loop's own recogniser reports."""

    judge_gain: float | None = None
    """Mean similarity after minus before, by the judge."""
    loop_gain: float | None = None
    """The same by the recogniser inside the loop."""
    ratio: float | None = None
    """judge_gain ÷ loop_gain; 0.8 and more is wanted."""
    frames: int = 0
    """Frames that both measured, before and after."""
    reason: str | None = None
    """Why the ratio is null."""


def motion_signals(series: Series) -> dict[str, Array]:
    """The signals of stillness by name, each (T, n).

    Landmarks are in eye distances, as steps from frame to frame; the rest as in the ledger.
    """
    points = _seen(series, series.landmarks)
    eyes = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
    scale = np.nanmean(eyes) if np.isfinite(eyes).any() else np.nan
    flat = points.reshape(len(points), -1) / scale
    signals = {
        name: _seen(series, getattr(series, name)[:, None]) for name in LEAST_MOTION if name != "landmarks"
    }
    return signals | {"landmarks": np.diff(flat, axis=0, prepend=np.full((1, flat.shape[1]), np.nan))}


def _variance(signal: Array, keep: NDArray[np.bool_], window: int) -> float:
    """Variance over the kept frames of a moving average of the signal, averaged over its columns."""
    kernel = np.full(min(window, int(keep.sum())), 1 / min(window, int(keep.sum())))
    columns = [np.convolve(column, kernel, mode="valid") for column in signal[keep].T]
    return float(np.mean([column.var() for column in columns]))


def _ratio(name: str, ours: Array, theirs: Array, window: int) -> float | None:
    keep = np.isfinite(np.concatenate([ours, theirs], 1)).all(1)
    if keep.sum() < FEWEST_FRAMES:
        return None
    base = _variance(theirs, keep, window)
    return None if base < LEAST_MOTION.get(name, 1e-12) else _variance(ours, keep, window) / base


def stillness(signals: Mapping[str, Array], other: Mapping[str, Array], *, fps: float) -> Stillness:
    """Compare the motion of a clip with another's, over the frames where both are known.

    Both map a name to (T, n) values (:func:`motion_signals`).
    """
    window = max(1, round(SMOOTH_SECONDS * fps))
    ratios = {name: _ratio(name, signals[name], other[name], window) for name in other if name in signals}
    known = np.array([ratio for ratio in ratios.values() if ratio is not None])
    shared = _shared_frames(signals, other)
    if not len(known):
        still = shared >= FEWEST_FRAMES
        reason = "the unlocked clip hardly moves" if still else f"{shared} frames are readable in both clips"
        return Stillness(ratios=ratios, frames=shared, reason=reason)
    value = float(np.exp(np.log(np.maximum(known, 1e-6)).mean()))
    return Stillness(value=value, ratios=ratios, frames=shared)


def _shared_frames(signals: Mapping[str, Array], other: Mapping[str, Array]) -> int:
    pairs = [np.concatenate([signals[name], other[name]], 1) for name in other if name in signals]
    return max((int(np.isfinite(pair).all(1).sum()) for pair in pairs), default=0)


def _steps(similarity: Array) -> Array:
    """Changes between neighbouring frames that are both readable; (T,) with NaN elsewhere."""
    return np.diff(similarity, prepend=np.nan)


def _quotient(
    ours: Array, theirs: Array, measure: Callable[[Array], np.float64]
) -> tuple[float | None, float | None]:
    """The measure of ``ours``, and its ratio to that of ``theirs`` over the frames that both have."""
    own = np.isfinite(ours)
    if own.sum() < 2:
        return None, None
    both = np.isfinite(np.stack([ours, theirs])).all(0)
    base = float(measure(theirs[both])) if both.sum() >= 2 else 0.0
    return float(measure(ours[own])), float(measure(ours[both])) / base if base > 1e-9 else None


def _seen(series: Series, values: Array) -> Array:
    """``values`` (T, ...) with NaN wherever the face is not readable."""
    return np.where(series.readable.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)


def flicker(series: Series, other: Series | None = None) -> Flicker:
    """The face's restlessness, and relative to ``other`` (the unlocked clip) where there is one."""
    nothing = np.full(len(series), np.nan)
    residuals = _seen(other, other.residual) if other else nothing
    steps = _steps(other.similarity) if other else nothing
    residual, residual_ratio = _quotient(_seen(series, series.residual), residuals, np.mean)
    jitter, jitter_ratio = _quotient(_steps(series.similarity), steps, np.std)
    reason = None
    if residual is None or jitter is None:
        reason = "fewer than two pairs of neighbouring readable frames"
    elif residual_ratio is None or jitter_ratio is None:
        reason = "no unlocked clip was measured" if other is None else "the unlocked clip has no such value"
    return Flicker(
        residual=residual,
        residual_ratio=residual_ratio,
        jitter=jitter,
        jitter_ratio=jitter_ratio,
        reason=reason,
    )


def honesty(
    judge_before: Array,
    judge_after: Array,
    loop_before: Array,
    loop_after: Array,
    *,
    control_gain: float = 0.0,
) -> Honesty:
    """Judge's gain ÷ loop's gain over the frames that all four (T,) arrays know.

    ``control_gain`` is the judge's gain towards strangers, where it was measured; it is taken off.
    """
    keep = np.isfinite(np.stack([judge_before, judge_after, loop_before, loop_after])).all(0)
    frames = int(keep.sum())
    if not frames:
        return Honesty(reason="no frame was measured before and after by both")
    judge = float((judge_after[keep] - judge_before[keep]).mean()) - control_gain
    loop = float((loop_after[keep] - loop_before[keep]).mean())
    if loop < LEAST_GAIN:
        reason = f"the loop gained only {loop:.3f}; there is nothing to compare"
        return Honesty(judge_gain=judge, loop_gain=loop, frames=frames, reason=reason)
    return Honesty(judge_gain=judge, loop_gain=loop, ratio=judge / loop, frames=frames)
