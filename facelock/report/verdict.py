"""The report's first sentence, and the one word for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from facelock.bootstrap import Estimate
from facelock.report.figures import ClipFigures

Outcome = Literal["held", "doubtful", "lost", "unseen"]
"""held: the target is met and nobody else is seen; doubtful: the target is missed, or it was met by pasting;
lost: somebody else is seen for half a second or more; unseen: no readable face."""

TELLING = 0.1
"""Similarity: an interval wider than this to either side cannot support "no drift"."""
SLIGHT = 0.04
"""Similarity: a change from start to end up to this is called slight. True renders of one person lose .033 from one
place and light to another (``facelock bench across``)."""


def say(figures: Mapping[str, ClipFigures], share: float, target: float) -> tuple[Outcome, str]:
    """Return the outcome and the sentence; ``figures`` by character, ``share`` of rows recognised."""
    outcome = _outcome(figures, share, target)
    names = _listed(list(figures))
    rows = sum(each.frames for each in figures.values())
    seen = sum(round((each.share_above.far_1e3 or 0.0) * each.readable) for each in figures.values())
    if outcome == "unseen":
        return outcome, f"No readable face of {names} is seen in {_count(rows, 'frame')}."
    where = "frames" if len(figures) == 1 else f"places ({len(figures)} characters × frames)"
    counted = f"{names} {'is' if len(figures) == 1 else 'are'} recognised in {seen} of {rows} {where}"
    sentence = f"{counted} ({percent(seen, rows)}), {_drifts(figures)}"
    return outcome, f"{sentence}{_but(figures, outcome, target)}."


def _outcome(figures: Mapping[str, ClipFigures], share: float, target: float) -> Outcome:
    if not any(each.readable for each in figures.values()):
        return "unseen"
    if any(each.wrong_spans for each in figures.values()):
        return "lost"
    pasted = any(each.ceiling.copy_paste for each in figures.values())
    return "doubtful" if pasted or share < target else "held"


def _drifts(figures: Mapping[str, ClipFigures]) -> str:
    """The change from start to end of the character that changes most."""
    drifts = [
        each.drift for each in figures.values() if each.drift.value is not None and each.drift.low is not None
    ]
    if not drifts:
        return "in a clip too short to tell a drift"
    most = max(drifts, key=lambda each: abs(each.value or 0.0))
    stated = f"loss from start to end {interval(most)}"
    if not all(each.contains(0.0) for each in drifts):
        word = "drifts" if abs(most.value or 0.0) > SLIGHT else "changes slightly"
        return f"and {word} ({stated})"
    if any((each.high or 0.0) - (each.low or 0.0) > 2 * TELLING for each in drifts):
        return f"in a clip too short or too restless to tell a drift ({stated})"
    return f"with no measurable drift ({stated})"


def _but(figures: Mapping[str, ClipFigures], outcome: Outcome, target: float) -> str:
    if outcome == "lost":
        spans = [span for each in figures.values() for span in each.wrong_spans]
        seconds = sum(span.end - span.start for span in spans)
        first = min(span.start for span in spans)
        return f"; but somebody else is seen for {seconds:.1f} s, first at {clock(first)}"
    if outcome == "doubtful":
        pasted = any(each.ceiling.copy_paste for each in figures.values())
        return (
            "; but more alike than a second picture could be" if pasted else f"; the target is {target:.0%}"
        )
    return ""


def percent(part: int, whole: int) -> str:
    """A share as text that says 100 % for all of them only."""
    share = 100 * part / whole if whole else 0.0
    return "100 %" if part == whole and whole else f"{min(share, 99.9):.1f} %"


def interval(estimate: Estimate, *, sign: bool = True) -> str:
    """``+0.003 [−0.020, +0.025]`` with true minus signs; ``sign=False`` leaves the plus signs out."""
    if estimate.value is None:
        return "–"
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = (signed(end, sign=sign) if end is not None else "" for end in ends)
    return f"{value} [{low}, {high}]" if low and high else value


def signed(value: float, *, sign: bool = True) -> str:
    """Three decimals with a sign."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else ("−" if value < 0 else "+" if sign else "") + text


def clock(seconds: float) -> str:
    """``4.2 s``, or ``3:04.2`` from a minute on."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}" if minutes else f"{rest:.1f} s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}" if names else "nobody"
