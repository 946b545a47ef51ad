"""Where each shot lies in the film, in frames: the one place that knows how transitions take time.

A dissolve of d frames overlaps the last d frames of the shot before; a fade out of black takes none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from facelock import __version__
from facelock.errors import InputError
from facelock.report.model import Report
from facelock.storyboards.film import Film, ShotResult
from facelock.storyboards.plan import Plan, Unit


@dataclass(frozen=True)
class Placed:
    """A shot in the film."""

    unit: Unit
    result: ShotResult
    report: Report | None
    """None where no take can be used."""
    start: int
    """Film frame of its first frame."""
    overlap: int
    """Frames that dissolve from the shot before into this one."""
    fade: int
    """Frames that it takes out of black."""
    overlap_after: int = 0
    """Frames at its end that dissolve into the next shot."""

    @property
    def frames(self) -> int:
        """All frames of the shot."""
        return self.unit.frames


@dataclass(frozen=True)
class Cut:
    """The film: its shots in their places."""

    plan: Plan
    shots: tuple[Placed, ...]

    @property
    def fps(self) -> Fraction:
        """Frames per second, exact."""
        return self.plan.fps

    @property
    def frames(self) -> int:
        """Length of the film."""
        last = self.shots[-1]
        return last.start + last.frames

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels: the largest shot's, the first of several."""
        return self.shots[self.largest].unit.shape

    @property
    def largest(self) -> int:
        """Index of the shot whose size is the film's."""
        areas = [shot.unit.shape[0] * shot.unit.shape[1] for shot in self.shots]
        return areas.index(max(areas))

    def key(self, sounds: Sequence[str]) -> str:
        """Digest of all that decides the edit; ``sounds`` are the digests of the audio files."""
        shots = [_facts(shot) for shot in self.shots]
        whole: list[Any] = [__version__, self.plan.board.title, shots, list(sounds)]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:20]


def _facts(shot: Placed) -> list[Any]:
    unit, take = shot.unit, shot.result.take
    facts = [unit.name, unit.prompt, unit.scene, unit.target, list(unit.characters), shot.result.outcome]
    return [*facts, shot.result.takes, take.key if take else "", shot.start, shot.overlap, shot.fade]


def place(plan: Plan, film: Film) -> Cut:
    """Lay the shots out. Raises ``InputError`` for a report that cannot be read."""
    shots: list[Placed] = []
    for unit, result in zip(plan.units, film.shots, strict=True):
        frames = _length(unit, shots[-1].frames if shots else unit.frames, plan.fps)
        overlap = frames if unit.begins.kind == "dissolve" and shots else 0
        start = shots[-1].start + shots[-1].frames - overlap if shots else 0
        fade = frames if unit.begins.kind == "fade" else 0
        shots.append(Placed(unit, result, _report(result), start, overlap, fade))
    after = [shot.overlap for shot in shots[1:]] + [0]
    placed = tuple(
        Placed(s.unit, s.result, s.report, s.start, s.overlap, s.fade, later)
        for s, later in zip(shots, after, strict=True)
    )
    return Cut(plan, placed)


def _length(unit: Unit, before: int, fps: Fraction) -> int:
    """Frames of a shot's transition: at most half of the shorter shot, whatever was rounded up."""
    return min(round(unit.begins.seconds * fps), before // 2, unit.frames // 2)


def _report(result: ShotResult) -> Report | None:
    if result.report is None:
        return None
    try:
        return Report.from_json(result.report.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{result.report}: cannot be read back. Remove it, and render again.") from error
