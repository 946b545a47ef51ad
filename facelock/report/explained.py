"""What ``facelock verify --explain`` adds to a report: which part of a face differs, in the clip and its weak spans.

::

    watch = Watch(judge.pack, cast)                    # refuses a judge that cannot say
    watch.see(frames, rows, start=0)                   # chunk by chunk, beside the judge
    report = explained(report, watch)
    print(*lines(report), sep="\\n")                    # maria, whole clip: what differs most: brows (5.1 sigma)

What a part is and what sigma means: :mod:`facelock.explain`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from facelock.explain import PartsTable, table_of
from facelock.identity import embedding_of
from facelock.protocols import FacePack
from facelock.report.figures import READABLE
from facelock.report.model import Character, LedgerEntry, Part, Report, Shown
from facelock.report.spans import spans
from facelock.report.verdict import clock
from facelock.types import Faces, Identity, LedgerRow, Status

NAMED = 3
"""Parts that a line names, at most."""


class Watch:
    """Keeps the judge's embedding of every readable face: 4 bytes × D per frame and character."""

    def __init__(self, pack: FacePack, cast: Sequence[Identity]) -> None:
        """Raises ``ConfigError`` where the pack's encoder cannot tell parts apart, ``ModelError`` for its table."""
        self.table: PartsTable = table_of(pack.encoder)
        self.references = {each.name: embedding_of(each, pack.encoder.id) for each in cast}
        self._pack = pack
        self._seen: dict[str, dict[int, Tensor]] = {each.name: {} for each in cast}

    def see(self, frames: Tensor, rows: Sequence[LedgerRow], *, start: int = 0) -> None:
        """Embed the faces that ``rows`` found in (T, 3, H, W) ``frames``, of which ``start`` is the first."""
        readable = [row for row in rows if row.status in READABLE]
        if not readable:
            return
        faces = Faces(
            torch.tensor([row.frame - start for row in readable]),
            torch.tensor([row.box for row in readable]),
            torch.tensor([row.landmarks for row in readable]),
            torch.tensor([row.score for row in readable]),
        )
        for row, embedding in zip(readable, self._pack.embed(frames, faces).cpu(), strict=True):
            self._seen[row.character][row.frame] = embedding

    def between(self, name: str, first: int, last: int) -> Tensor:
        """(N, D) embeddings of a character from frame ``first`` to before ``last``."""
        seen = self._seen[name]
        rows = [seen[frame] for frame in range(first, last) if frame in seen]
        return torch.stack(rows) if rows else torch.zeros(0, len(self.references[name]))


def explained(report: Report, watch: Watch) -> Report:
    """The same report, saying of each character which parts differ: in the clip, in each weak span, at its end."""
    fps = report.clip.frames / report.clip.seconds if report.clip.seconds else 1.0
    characters = tuple(
        each.model_copy(update={"differs": _character(each, report, watch, fps)})
        for each in report.characters
    )
    return report.model_copy(update={"characters": characters})


def _character(who: Character, report: Report, watch: Watch, fps: float) -> tuple[Shown, ...]:
    rows = [row for row in report.ledger if row.character == who.name]
    whole = _shown(watch, who.name, (0, len(rows)), fps, whole=True)
    stretches = _weak(rows, fps)
    end = _end(len(rows), fps)
    if end and not any(last > end[0] for _, last in stretches):
        stretches.append(end)
    each = [_shown(watch, who.name, ends, fps) for ends in stretches]
    return tuple(shown for shown in (whole, *each) if shown is not None)


def _end(frames: int, fps: float) -> tuple[int, int] | None:
    """The last quarter of a clip, a second at least, where drift shows; None of a clip under two seconds."""
    length = max(round(fps), frames // 4)
    return (frames - length, frames) if frames >= 2 * round(fps) > 0 else None


def _weak(rows: Sequence[LedgerEntry], fps: float) -> list[tuple[int, int]]:
    """Frames from and to of each span in which the character is readable, but not verified."""
    readable = np.array([row.status in READABLE for row in rows], dtype=bool)
    weak = readable & np.array([row.status is not Status.VERIFIED for row in rows], dtype=bool)
    return [(round(span.start * fps), round(span.end * fps)) for span in spans(weak, readable, fps=fps)]


def _shown(
    watch: Watch, name: str, ends: tuple[int, int], fps: float, *, whole: bool = False
) -> Shown | None:
    """What differs between two frames; None where no face is readable."""
    rows = watch.between(name, *ends)
    if not len(rows):
        return None
    parts = watch.table.explain(watch.references[name], rows)
    return Shown(
        start=round(ends[0] / fps, 4),
        end=round(ends[1] / fps, 4),
        whole=whole,
        frames=len(rows),
        limit=round(watch.table.limit(len(rows)), 3),
        parts=tuple(Part(part=each.part, sigma=round(each.sigma, 3)) for each in parts),
    )


def lines(report: Report) -> list[str]:
    """A line per character and span, as ``facelock verify --explain`` prints them."""
    return [
        f"{who.name}, {where(shown)}: {said(shown)}" for who in report.characters for shown in who.differs
    ]


def where(shown: Shown) -> str:
    """``whole clip``, or from when to when."""
    return "whole clip" if shown.whole else f"{clock(shown.start)} to {clock(shown.end)}"


def said(shown: Shown) -> str:
    """``what differs most: brows (5.1 sigma), then head (2.4)``."""
    beyond = [each for each in shown.parts if each.sigma > shown.limit][:NAMED]
    if not beyond:
        most = shown.parts[0]
        nearest = f"most: {most.part}, {most.sigma:.1f} sigma; " if most.sigma else ""
        return f"no part differs beyond noise ({nearest}unchanged faces reach {shown.limit:.1f} sigma)"
    rest = "".join(f", then {each.part} ({each.sigma:.1f})" for each in beyond[1:])
    return f"what differs most: {beyond[0].part} ({beyond[0].sigma:.1f} sigma){rest}"
