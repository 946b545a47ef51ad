"""Similarity over time as inline SVG: two lines, the thresholds, and a strip of statuses under them.

Colours are classes, so the page's style decides them, light or dark. Long clips are drawn by buckets that
keep the lowest and the highest similarity and the worst status, so that no dip is smoothed away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from facelock.report.model import JudgeInfo, LedgerEntry
from facelock.report.verdict import clock
from facelock.types import Status

WIDTH, HEIGHT = 960, 330
LEFT, RIGHT, TOP = 46, 78, 14
PLOT_BOTTOM = 246
STRIP_HEIGHT = 12
BUCKETS = 420
"""Most points along the time axis; about one per two pixels."""
_BADNESS = [Status.VERIFIED, Status.WEAK, Status.UNREADABLE, Status.ABSENT, Status.WRONG]
_STEPS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


@dataclass(frozen=True)
class Bucket:
    """Some consecutive frames: times in seconds, the range of similarity (None: unreadable)."""

    begin: float
    end: float
    low: float | None
    high: float | None
    status: Status


def buckets(values: Sequence[tuple[float | None, Status]], fps: float) -> list[Bucket]:
    """Group (similarity, status) per frame; similarity counts only where the face was readable."""
    size = -(-len(values) // BUCKETS)
    result = []
    for first in range(0, len(values), max(size, 1)):
        part = values[first : first + size]
        seen = [v for v, status in part if v is not None and status not in (Status.UNREADABLE, Status.ABSENT)]
        worst = max((status for _, status in part), key=_BADNESS.index)
        low, high = (min(seen), max(seen)) if seen else (None, None)
        result.append(Bucket(first / fps, (first + len(part)) / fps, low, high, worst))
    return result


@dataclass(frozen=True)
class _Axes:
    seconds: float
    bottom: float
    top: float

    def x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / max(self.seconds, 1e-9)

    def y(self, similarity: float) -> float:
        return PLOT_BOTTOM - (PLOT_BOTTOM - TOP) * (similarity - self.bottom) / (self.top - self.bottom)


def similarity_plot(rows: Sequence[LedgerEntry], judge: JudgeInfo, fps: float) -> str:
    """The SVG of one character's rows (one per frame, in order)."""
    final = buckets([(row.similarity, row.status) for row in rows], fps)
    plain = [(row.similarity_unlocked, row.status_unlocked or Status.ABSENT) for row in rows]
    has_plain = any(row.status_unlocked is not None for row in rows)
    other = buckets(plain, fps) if has_plain else []
    axes = _axes(final + other, judge, len(rows) / fps)
    parts = [
        *_grid(axes),
        *_thresholds(axes, judge),
        *(_line(axes, other, "plain") if other else []),
        *_line(axes, final, "locked"),
        *_strip(axes, final, PLOT_BOTTOM + 26, "locked" if other else "status"),
        *(_strip(axes, other, PLOT_BOTTOM + 26 + STRIP_HEIGHT + 6, "unlocked") if other else []),
    ]
    label = f"Similarity over {clock(axes.seconds)}, with thresholds and statuses"
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _axes(drawn: Iterable[Bucket], judge: JudgeInfo, seconds: float) -> _Axes:
    lows = [bucket.low for bucket in drawn if bucket.low is not None]
    lowest = min([*lows, judge.far_1e2, 0.0])
    return _Axes(seconds, max(-1.0, lowest - 0.05), 1.0)


def _grid(axes: _Axes) -> list[str]:
    left, right = LEFT, WIDTH - RIGHT
    parts = []
    for tenth in range(-10, 11, 2):
        value = tenth / 10
        if value >= axes.bottom:
            y = axes.y(value)
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            text = f"{value:.1f}".replace("-", "−")
            parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for second in _ticks(axes.seconds):
        x = axes.x(second)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{PLOT_BOTTOM}" y2="{PLOT_BOTTOM + 5}"/>'
        )
        place = f'x="{x:.1f}" y="{PLOT_BOTTOM + 18}" text-anchor="middle"'
        parts.append(f'<text class="tick" {place}>{_tick(second)}</text>')
    return parts


def _ticks(seconds: float) -> list[float]:
    step = next((step for step in _STEPS if seconds / step <= 10), _STEPS[-1])
    return [index * step for index in range(int(seconds / step + 1e-9) + 1)]


def _tick(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _thresholds(axes: _Axes, judge: JudgeInfo) -> list[str]:
    levels = [(judge.far_1e4, "FAR 1e-4"), (judge.far_1e3, "FAR 1e-3"), (judge.far_1e2, "FAR 1e-2")]
    parts, previous = [], float("-inf")
    for level, name in levels:
        y = axes.y(level)
        text_y = max(y + 4, previous + 12)  # labels of close thresholds make room for each other
        previous = text_y
        right = WIDTH - RIGHT
        parts.append(f'<line class="level" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="level-name" x="{right + 6}" y="{text_y:.1f}">{name}</text>')
    return parts


def _line(axes: _Axes, drawn: Sequence[Bucket], name: str) -> list[str]:
    """One polyline per stretch of readable frames; a lone frame becomes a dot."""
    parts = []
    for stretch in _stretches(drawn):
        points = [point for bucket in stretch for point in _points(axes, bucket)]
        if len(points) == 1:
            x, y = points[0]
            parts.append(f'<circle class="{name}-dot" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>')
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline class="{name}" points="{path}"/>')
    return parts


def _stretches(drawn: Sequence[Bucket]) -> list[list[Bucket]]:
    result: list[list[Bucket]] = [[]]
    for bucket in drawn:
        if bucket.low is None:
            result.append([])
        else:
            result[-1].append(bucket)
    return [stretch for stretch in result if stretch]


def _points(axes: _Axes, bucket: Bucket) -> list[tuple[float, float]]:
    if bucket.low is None or bucket.high is None:
        return []
    x = axes.x((bucket.begin + bucket.end) / 2)
    ends = [bucket.high] if bucket.high == bucket.low else [bucket.high, bucket.low]
    return [(x, axes.y(value)) for value in ends]


def _strip(axes: _Axes, drawn: Sequence[Bucket], top: float, name: str) -> list[str]:
    """Coloured stretches of equal status, each with its times as a tooltip."""
    parts = []
    for first, last in _runs(drawn):
        begin, end = axes.x(drawn[first].begin), axes.x(drawn[last].end)
        status = drawn[first].status
        title = f"{status.value}: {clock(drawn[first].begin)} to {clock(drawn[last].end)}"
        parts.append(
            f'<rect class="s-{status.value}" x="{begin:.1f}" y="{top}" width="{max(end - begin, 0.8):.1f}" '
            f'height="{STRIP_HEIGHT}"><title>{title}</title></rect>'
        )
    text = (
        f'<text class="strip-name" x="{WIDTH - RIGHT + 6}" y="{top + STRIP_HEIGHT - 2}">{escape(name)}</text>'
    )
    return [*parts, text]


def _runs(drawn: Sequence[Bucket]) -> list[tuple[int, int]]:
    """(first, last) index of each run of equal status."""
    starts = [i for i in range(len(drawn)) if i == 0 or drawn[i].status != drawn[i - 1].status]
    return [(start, end - 1) for start, end in zip(starts, [*starts[1:], len(drawn)], strict=True)]
