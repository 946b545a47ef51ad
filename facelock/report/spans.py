"""Spans of a clip: where somebody else is seen, and where a character cannot be judged, with the reason.

Nothing but ``wrong`` is a loss of identity: a profile view, a small or a cropped face is no drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from facelock.bootstrap import Figure

SPAN_SECONDS = 0.5
"""Shortest span of a wrong person that is reported."""
SPAN_SHARE = 0.8
"""Share of the readable frames of such a span that are wrong; one lucky frame does not hide it."""

Flags = NDArray[np.bool_]
Reason = Literal["wrong", "absent", "cropped", "small", "turned", "blurred", "unreadable"]
"""Why a character is not seen as itself; ``unreadable`` where the ledger does not say more."""


class Span(Figure):
    """A stretch of the clip."""

    start: float
    """Seconds from the clip's beginning."""
    end: float
    """Seconds; the first moment after it."""


class LostSpan(Span):
    """A stretch in which the character is not seen as itself, for one reason."""

    reason: Reason
    """wrong: somebody else is seen; absent: no face; cropped, small, turned, blurred: a face that cannot be
    judged, which is no drift; unreadable: the same without a known reason."""


def spans(flags: Flags, readable: Flags, *, fps: float) -> tuple[Span, ...]:
    """Spans of at least ``SPAN_SECONDS`` in which nearly all readable frames are flagged.

    Both are (T,) bool. A window counts where at least half of it is readable and ``SPAN_SHARE`` of that is
    flagged, so one frame that happens to pass does not hide half a second of a stranger.
    """
    total = len(flags)
    window = min(total, max(1, round(SPAN_SECONDS * fps)))
    if not total:
        return ()
    marked = np.zeros(total, dtype=bool)
    hits, seen = (np.concatenate([[0], np.cumsum(mask)]) for mask in (flags & readable, readable))
    for begin in range(total - window + 1):
        count, base = hits[begin + window] - hits[begin], seen[begin + window] - seen[begin]
        if 2 * base >= window and count >= SPAN_SHARE * base:
            inside = begin + np.flatnonzero((flags & readable)[begin : begin + window])
            marked[inside[0] : inside[-1] + 1] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(int), [0]])))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return tuple(Span(start=float(begin / fps), end=float(end / fps)) for begin, end in pairs)


def lost_spans(reasons: Sequence[Reason | None], readable: Flags, *, fps: float) -> tuple[LostSpan, ...]:
    """Where a character is wrong, absent or cannot be judged, told apart, by time.

    ``wrong`` is counted among readable frames, as in :func:`spans`; the others among all frames.
    """
    everywhere = np.ones(len(reasons), dtype=bool)
    found = [
        LostSpan(start=span.start, end=span.end, reason=why)
        for why in get_args(Reason)
        for span in spans(
            np.array([reason == why for reason in reasons], dtype=bool),
            readable if why == "wrong" else everywhere,
            fps=fps,
        )
    ]
    return tuple(sorted(found, key=lambda span: (span.start, span.end)))
