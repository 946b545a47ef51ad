"""The figures of a clip, as docs/report.md defines them: does the face stay, is it seen, does it live.

Everything works on plain arrays with one value per frame, NaN where the face could not be judged, so the
report, ``facelock verify`` and ``facelock bench`` share it::

    series = Series.from_rows(rows, frames=720)            # the ledger's rows of one character
    figures = clip_figures(series, encoder.thresholds, fps=12.0)
    figures.drift.value, figures.drift.low, figures.drift.high
    pool([figures, ...]).slope.contains(0.0)               # over clips

Similarity is cosine in [-1, 1]. Nothing here raises on a short or faceless clip: such figures are null
and carry a reason. What compares two clips (stillness, flicker, honesty) is in ``facelock.report.comparison``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

import numpy as np

from facelock.bootstrap import Array, Estimate, Figure, linear_estimate, missing, over_clips
from facelock.errors import FaceLockError
from facelock.report.spans import Flags, LostSpan, Reason, Span, lost_spans, spans
from facelock.types import Status, Thresholds, Unreadable

EDGE_SHARE = 0.15
"""Share of the readable frames at either end that drift compares (FramePack's start-end contrast)."""
SLOPE_SECONDS = 2.0
"""Readable seconds below which a slope per minute says nothing."""
BRIDGE_SECONDS = 0.5
"""An unreadable gap up to this long does not end a run below a threshold."""
COPY_PASTE = 1.05
"""Fraction of the ceiling above which a face is pasted rather than alike."""

READABLE = frozenset({Status.VERIFIED, Status.WEAK, Status.WRONG})
"""Statuses of a face that could be judged."""
_SCALARS = ("yaw", "pitch", "roll", "face_height", "sharpness", "mouth", "eyes", "residual")


class Measured(Protocol):
    """What a row of a ledger must know, :class:`facelock.types.LedgerRow` or a report's."""

    @property
    def frame(self) -> int: ...
    @property
    def status(self) -> Status: ...
    @property
    def similarity(self) -> float | None: ...
    @property
    def unreadable(self) -> Unreadable | None: ...
    @property
    def landmarks(self) -> tuple[tuple[float, float], ...] | None: ...


@dataclass(frozen=True)
class Series:
    """One character's ledger as arrays over the T frames of a clip; NaN where there is no value."""

    similarity: Array
    """(T,) cosine, NaN unless the face is readable."""
    readable: Flags
    wrong: Flags
    status: tuple[Status, ...]
    reason: tuple[Reason | None, ...]
    """Why the character is not seen as itself in a frame; None where it is."""
    yaw: Array
    pitch: Array
    roll: Array
    face_height: Array
    sharpness: Array
    mouth: Array
    eyes: Array
    residual: Array
    landmarks: Array
    """(T, 5, 2) pixels."""

    def __len__(self) -> int:
        return len(self.similarity)

    @classmethod
    def from_rows(cls, rows: Iterable[Measured], *, frames: int, start: int = 0) -> Series:
        """Lay out one character's rows of ``frames`` frames from ``start``.

        Raises FaceLockError when a frame has no row or two, since no row may ever be dropped.
        """
        ordered = _one_row_per_frame(rows, frames, start)
        readable = np.array([row.status in READABLE for row in ordered], dtype=bool)
        similarity = _column([row.similarity for row in ordered])
        return cls(
            similarity=np.where(readable, similarity, np.nan),
            readable=readable,
            wrong=np.array([row.status is Status.WRONG for row in ordered], dtype=bool),
            status=tuple(row.status for row in ordered),
            reason=tuple(_reason(row) for row in ordered),
            landmarks=_landmarks(ordered),
            **{name: _column([getattr(row, name) for row in ordered]) for name in _SCALARS},
        )


def _reason(row: Measured) -> Reason | None:
    why = row.unreadable or Status.UNREADABLE if row.status is Status.UNREADABLE else row.status
    return next((reason for reason in get_args(Reason) if reason == why), None)


def _one_row_per_frame(rows: Iterable[Measured], frames: int, start: int) -> list[Measured]:
    by_frame: dict[int, Measured] = {}
    for row in rows:
        if row.frame in by_frame:
            raise FaceLockError(f"the ledger has two rows for frame {row.frame}. This is a bug of FaceLock.")
        by_frame[row.frame] = row
    wanted = range(start, start + frames)
    lost = [frame for frame in wanted if frame not in by_frame]
    if lost or len(by_frame) != frames:
        found = f"frame {lost[0]} has none" if lost else "some lie outside the clip"
        raise FaceLockError(
            f"the ledger has {len(by_frame)} rows for {frames} frames: {found}. This is a bug of FaceLock."
        )
    return [by_frame[frame] for frame in wanted]


def _column(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _landmarks(rows: Sequence[Measured]) -> Array:
    unknown = [(np.nan, np.nan)] * 5
    points = [row.landmarks if row.landmarks is not None else unknown for row in rows]
    return np.array(points, dtype=np.float64).reshape(len(rows), 5, 2)


class PerThreshold(Figure):
    """One value per threshold of the judge, named by its false-accept rate."""

    far_1e2: float | None = None
    far_1e3: float | None = None
    far_1e4: float | None = None


class Ceiling(Figure):
    """The clip beside real second pictures of the same person."""

    value: float | None = None
    """Mean similarity of second pictures (or true renders) at matched pose and size; null: not given."""
    fraction: float | None = None
    """Mean similarity divided by the ceiling."""
    copy_paste: bool | None = None
    """True above 1.05: more alike than a second picture is, hence pasted. An alarm, not a success."""


class StatusCounts(Figure):
    """Rows per status; together the clip's frames."""

    verified: int = 0
    weak: int = 0
    wrong: int = 0
    unreadable: int = 0
    absent: int = 0


class ClipFigures(Figure):
    """What the judge says of one character in one clip. Similarity is never without its coverage."""

    frames: int
    """Frames in which the character is expected."""
    readable: int
    """Frames with a readable face."""
    coverage: float | None
    """readable ÷ frames."""
    statuses: StatusCounts
    mean: Estimate
    """Mean similarity over readable frames."""
    minimum: float | None = None
    p1: float | None = None
    """First percentile of similarity."""
    share_above: PerThreshold
    """Share of readable frames at or above each threshold."""
    longest_below: PerThreshold
    """Longest run below each threshold, in seconds; unreadable gaps up to 0.5 s do not end a run."""
    drift: Estimate
    """Mean similarity of the first 15 % of readable frames minus the last 15 %: positive is loss."""
    slope: Estimate
    """Change of similarity per minute, least squares: negative is loss."""
    corrected_slope: Estimate
    """The slope with pose, size and sharpness as covariates."""
    ceiling: Ceiling
    wrong_spans: tuple[Span, ...] = ()
    """Spans of at least 0.5 s in which somebody else is seen."""
    spans: tuple[LostSpan, ...] = ()
    """Spans of at least 0.5 s in which the character is not seen as itself, each with its reason."""
    reason: str | None = None
    """Why figures are null."""


def _readable(similarity: Array) -> tuple[Array, Array]:
    """The readable frames' indices and similarities."""
    index = np.flatnonzero(np.isfinite(similarity))
    return index.astype(np.float64), similarity[index.astype(np.int64)]


def _trend(times: Array) -> Array:
    """(n, 2) constant and centred time."""
    return np.stack([np.ones_like(times), times - times.mean()], 1)


def mean_similarity(similarity: Array, *, fps: float, seed: int = 0) -> Estimate:
    """Mean over readable frames; ``similarity`` is (T,) with NaN where unreadable."""
    index, values = _readable(similarity)
    if not len(values):
        return missing("no readable face")
    weights = np.full(len(values), 1 / len(values))
    return linear_estimate(weights, values, _trend(index), fps=fps, seed=seed)


def drift(similarity: Array, *, fps: float, seed: int = 0) -> Estimate:
    """First 15 % of readable frames minus the last 15 %; positive means the face was lost."""
    index, values = _readable(similarity)
    if len(values) < 2:
        return missing(f"{len(values)} readable frames; drift needs two")
    edge = max(1, round(EDGE_SHARE * len(values)))
    weights = np.zeros(len(values))
    weights[:edge] = 1 / edge
    weights[-edge:] -= 1 / edge
    return linear_estimate(weights, values, _trend(index), fps=fps, seed=seed)


def slope(similarity: Array, *, fps: float, seed: int = 0) -> Estimate:
    """Change of similarity per minute by least squares over readable frames."""
    index, values = _readable(similarity)
    if len(values) < 3 or (index[-1] - index[0]) / fps < SLOPE_SECONDS:
        return missing(f"{len(values)} readable frames; a slope needs {SLOPE_SECONDS:.0f} s of them")
    design = _trend(index / fps / 60)
    return linear_estimate(np.linalg.pinv(design)[1], values, design, fps=fps, seed=seed)


def corrected_slope(similarity: Array, covariates: Array, *, fps: float, seed: int = 0) -> Estimate:
    """Slope per minute with ``covariates`` (T, p) in the regression: pose, size, sharpness, say.

    Frames in which one of them is missing are left out; covariates that never change are ignored. Where
    they explain time itself (R² > .99), nothing can be told apart and the value is null.
    """
    keep = np.isfinite(similarity) & np.isfinite(covariates).all(1)
    index, values, extra = np.flatnonzero(keep).astype(np.float64), similarity[keep], covariates[keep]
    if len(values) < 3 * (extra.shape[1] + 2) or (index[-1] - index[0]) / fps < SLOPE_SECONDS:
        return missing(f"{len(values)} frames with pose, size and sharpness are too few")
    spread = extra.std(0)
    moving = spread > 1e-6 * (1 + np.abs(extra).max(0))
    extra = (extra[:, moving] - extra[:, moving].mean(0)) / spread[moving]
    design = np.concatenate([_trend(index / fps / 60), extra], 1)
    if _explained(design[:, 1], extra) > 0.99:
        return missing("pose, size and sharpness change with time alone; they cannot be told from it")
    return linear_estimate(np.linalg.pinv(design)[1], values, design, fps=fps, seed=seed)


def _explained(target: Array, columns: Array) -> float:
    """R² of the (centred) target on (centred) columns."""
    if not columns.shape[1]:
        return 0.0
    rest = target - columns @ np.linalg.lstsq(columns, target, rcond=None)[0]
    return 1 - float(rest @ rest) / float(target @ target)


def covariates(series: Series) -> Array:
    """(T, 4): |yaw|, |pitch|, log face height, log sharpness."""
    positive = [np.log(np.maximum(column, 1e-6)) for column in (series.face_height, series.sharpness)]
    return np.stack([np.abs(series.yaw), np.abs(series.pitch), *positive], 1)


def longest_below(similarity: Array, threshold: float, *, fps: float) -> float | None:
    """Seconds of the longest run below ``threshold``; null without a readable frame."""
    index, values = _readable(similarity)
    if not len(values):
        return None
    longest, begin, last = 0, None, -1
    for frame, value in zip(index.astype(int), values, strict=True):
        if begin is not None and (frame - last - 1) / fps > BRIDGE_SECONDS:
            begin = None
        if value < threshold:
            begin = frame if begin is None else begin
            longest = max(longest, int(frame) - int(begin) + 1)
        else:
            begin = None
        last = int(frame)
    return longest / fps


def ceiling_figure(mean: float | None, ceiling: float | None) -> Ceiling:
    """Relate a mean similarity to the ceiling; above 1.05 the copy-paste alarm is raised."""
    if mean is None or ceiling is None or ceiling <= 0:
        return Ceiling(value=ceiling)
    return Ceiling(value=ceiling, fraction=mean / ceiling, copy_paste=mean / ceiling > COPY_PASTE)


def _per_threshold(
    similarity: Array, thresholds: Thresholds, fps: float
) -> tuple[PerThreshold, PerThreshold]:
    values = similarity[np.isfinite(similarity)]
    levels = {name: getattr(thresholds, name) for name in PerThreshold.model_fields}
    above = {name: float((values >= level).mean()) if len(values) else None for name, level in levels.items()}
    below = {name: longest_below(similarity, level, fps=fps) for name, level in levels.items()}
    return PerThreshold(**above), PerThreshold(**below)


def clip_figures(
    series: Series, thresholds: Thresholds, *, fps: float, ceiling: float | None = None, seed: int = 0
) -> ClipFigures:
    """All figures of one character in one clip; ``ceiling`` is a similarity, where one is known."""
    similarity, frames, readable = series.similarity, len(series), int(series.readable.sum())
    values = similarity[np.isfinite(similarity)]
    above, below = _per_threshold(similarity, thresholds, fps)
    mean = mean_similarity(similarity, fps=fps, seed=seed)
    return ClipFigures(
        frames=frames,
        readable=readable,
        coverage=readable / frames if frames else None,
        statuses=StatusCounts(**{status.value: series.status.count(status) for status in Status}),
        mean=mean,
        minimum=float(values.min()) if len(values) else None,
        p1=float(np.quantile(values, 0.01)) if len(values) else None,
        share_above=above,
        longest_below=below,
        drift=drift(similarity, fps=fps, seed=seed),
        slope=slope(similarity, fps=fps, seed=seed),
        corrected_slope=corrected_slope(similarity, covariates(series), fps=fps, seed=seed),
        ceiling=ceiling_figure(mean.value, ceiling),
        wrong_spans=spans(series.wrong, series.readable, fps=fps),
        spans=lost_spans(series.reason, series.readable, fps=fps),
        reason=None if readable else "no readable face in the clip",
    )


class PooledFigures(Figure):
    """The same over several clips; every interval is a bootstrap over clips."""

    clips: int
    coverage: Estimate
    mean: Estimate
    drift: Estimate
    slope: Estimate
    corrected_slope: Estimate
    above_far_1e2: Estimate
    """Mean over clips of the share of readable frames at or above the threshold at FAR 1e-2."""
    above_far_1e3: Estimate
    above_far_1e4: Estimate
    minimum: float | None
    """The lowest similarity of any clip."""
    longest_below_far_1e3: float | None
    """Seconds of the longest run below that threshold in any clip."""
    wrong_spans: int
    """Spans of a wrong person in all clips."""


def pool(clips: Sequence[ClipFigures], *, seed: int = 0) -> PooledFigures:
    """Pool clips (of different identities, best): the mean over clips, the interval over clips."""

    def mean_of(values: Iterable[float | None]) -> Estimate:
        return over_clips(list(values), seed=seed)

    minima = [clip.minimum for clip in clips if clip.minimum is not None]
    longest = [clip.longest_below.far_1e3 for clip in clips if clip.longest_below.far_1e3 is not None]
    return PooledFigures(
        clips=len(clips),
        coverage=mean_of(clip.coverage for clip in clips),
        mean=mean_of(clip.mean.value for clip in clips),
        drift=mean_of(clip.drift.value for clip in clips),
        slope=mean_of(clip.slope.value for clip in clips),
        corrected_slope=mean_of(clip.corrected_slope.value for clip in clips),
        above_far_1e2=mean_of(clip.share_above.far_1e2 for clip in clips),
        above_far_1e3=mean_of(clip.share_above.far_1e3 for clip in clips),
        above_far_1e4=mean_of(clip.share_above.far_1e4 for clip in clips),
        minimum=min(minima, default=None),
        longest_below_far_1e3=max(longest, default=None),
        wrong_spans=sum(len(clip.wrong_spans) for clip in clips),
    )
