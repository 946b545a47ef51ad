"""The report of a clip: every row of the ledger, the figures over it, and a page to look at.

::

    report = build_report(records, settings=..., identities=cast, thresholds=judge.thresholds,
                          fps=Fraction(12), frames=360, kind="generate")
    write_report(report, Path("clip.report.json"), Path("clip.report.html"))
    report.verdict, report.share_recognised, report.misses(0.99)

Figures are worked out of the rows as they are written, so that whoever reads the JSON finds the same. It
is documented key by key in docs/report.md and docs/report.schema.json; the page is made from it alone, so it
can be made again. No row is ever dropped: a ledger with a missing frame is an error.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from facelock import __version__
from facelock.appearance import jpeg, to_bytes
from facelock.bootstrap import Array
from facelock.files import atomic_write
from facelock.report.comparison import Honesty, Stillness, flicker, honesty, motion_signals, stillness
from facelock.report.figures import Series, clip_figures
from facelock.report.model import (
    Character,
    ClipInfo,
    JudgeInfo,
    LedgerEntry,
    Report,
    Row,
    SheetFrame,
    Step,
    schema_text,
)
from facelock.report.verdict import say
from facelock.types import AlignRecord, ChunkRecords, Identity, LedgerRow, Status, Thresholds

__all__ = ["Report", "build_report", "schema_text", "write_report"]

SHEET_FRAMES = 24
"""Faces on the contact sheet, evenly along time; the least alike ones come on top of these."""
WORST_FRAMES = 6
DEFAULT_TARGET = 0.99


def build_report(
    records: Iterable[ChunkRecords],
    *,
    settings: Mapping[str, Any],
    identities: Sequence[Identity],
    thresholds: Thresholds,
    fps: Fraction | float,
    frames: int,
    kind: Literal["generate", "verify", "lock"],
    encoder: str = "",
    ceiling: float | None = None,
    target: float | None = None,
    times: Sequence[float] | None = None,
) -> Report:
    """Put the records of all chunks together and work the figures out.

    ``thresholds`` are the judge's, ``encoder`` its id, ``ceiling`` the similarity of second pictures of the
    same person where it is known, ``target`` the share of rows that should be recognised (else
    ``settings["target"]``, else 0.99), ``times`` the second at which each frame is shown (default: at a steady
    ``fps``). Raises FaceLockError unless every frame × character has one row.
    """
    made = _Made([identity.name for identity in identities], frames, float(fps), times)
    for chunk in records:
        made.add(chunk)
    ledger, unlocked = made.sorted_rows()
    judge = JudgeInfo(encoder=encoder, **vars(thresholds))
    characters = tuple(_character(identity, made, thresholds, ceiling) for identity in identities)
    share = sum(judge.recognises(row) for row in ledger) / len(ledger) if ledger else 0.0
    wanted = float(target if target is not None else settings.get("target") or DEFAULT_TARGET)
    outcome, verdict = say({each.name: each.figures for each in characters}, share, wanted)
    return Report(
        facelock=__version__,
        kind=kind,
        outcome=outcome,
        verdict=verdict,
        target=wanted,
        share_recognised=share,
        clip=ClipInfo(frames=frames, fps=_fraction(fps), seconds=round(frames / float(fps), 6)),
        judge=judge,
        characters=characters,
        stage_seconds={stage: round(seconds, 3) for stage, seconds in made.seconds.items()},
        settings=json.loads(json.dumps(dict(settings), default=str)),
        sheet=_sheet(made, ledger),
        ledger=ledger,
        ledger_unlocked=unlocked,
    )


class _Made:
    """What the chunks recorded, in the report's own rows; no chunk is held once it was added."""

    def __init__(
        self, cast: Sequence[str], frames: int, fps: float, times: Sequence[float] | None = None
    ) -> None:
        self.cast, self.frames, self.fps, self.times = cast, frames, fps, times
        self.rows: list[LedgerEntry] = []
        self.unlocked: list[Row] = []
        self.images: dict[int, str] = {}
        self.images_unlocked: dict[int, str] = {}
        self.seconds: dict[str, float] = {}

    def add(self, chunk: ChunkRecords) -> None:
        """Take a chunk's rows and pictures over."""
        lock = {(each.frame, each.character): each for each in chunk.lock}
        restore = {(each.frame, each.character): each for each in chunk.restore}
        unlocked = {(row.frame, row.character): row for row in chunk.ledger_unlocked}
        for row in chunk.ledger:
            key = (row.frame, row.character)
            stages = {"lock": _step(lock.get(key)), "restore": _step(restore.get(key))}
            self.rows.append(LedgerEntry(**self._values(row), **_without(unlocked.get(key)), **stages))
        self.unlocked += [Row(**self._values(row)) for row in chunk.ledger_unlocked]
        self.images |= chunk.thumbnails
        self.images_unlocked |= chunk.thumbnails_unlocked
        for stage, seconds in chunk.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + float(seconds)

    def _values(self, row: LedgerRow) -> dict[str, Any]:
        """The row's values at the precision that they have, with its time."""
        values = {name: _short(getattr(row, name), _DIGITS.get(name, 5)) for name in _SHARED}
        time = self.times[row.frame] if self.times is not None else row.frame / self.fps
        return values | {"time": round(time, 4)}

    def sorted_rows(self) -> tuple[tuple[LedgerEntry, ...], tuple[Row, ...]]:
        """Both ledgers by frame, then in the order of the cast."""
        rank = {name: place for place, name in enumerate(self.cast)}

        def place(row: Row) -> tuple[int, int]:
            return row.frame, rank.get(row.character, len(rank))

        self.rows.sort(key=place)
        self.unlocked.sort(key=place)
        return tuple(self.rows), tuple(self.unlocked)

    def loop(self, name: str) -> tuple[Array, Array]:
        """(T,) similarity by the loop's recogniser before the first stage and after the last, NaN if none."""
        before, after = np.full(self.frames, np.nan), np.full(self.frames, np.nan)
        for row in self.rows:
            steps = [step for step in (row.lock, row.restore) if step and row.character == name]
            if steps:
                before[row.frame], after[row.frame] = steps[0].before, steps[-1].after
        return before, after


_SHARED = tuple(field.name for field in fields(LedgerRow))
_DIGITS = {"box": 2, "face_height": 2, "yaw": 2, "pitch": 2, "roll": 2, "sharpness": 2, "landmarks": 2}
_NO_OTHER = "no unlocked clip was measured"


def _short(value: Any, digits: int) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_short(item, digits) for item in value)
    return round(value, digits) if isinstance(value, float) else value


def _without(row: LedgerRow | None) -> dict[str, Any]:
    if row is None:
        return {}
    return {"similarity_unlocked": _short(row.similarity, 5), "status_unlocked": row.status}


def _step(record: AlignRecord | None) -> Step | None:
    return None if record is None else Step(**{key: _short(getattr(record, key), 5) for key in _STEP})


_STEP = ("before", "after", "rung", "met", "consistency", "share")


def _character(identity: Identity, made: _Made, thresholds: Thresholds, ceiling: float | None) -> Character:
    """All figures of one character, with and without the lock."""
    final = _series(made.rows, identity.name, made.frames)
    other = _series(made.unlocked, identity.name, made.frames) if made.unlocked else None
    portrait = identity.portrait
    return Character(
        name=identity.name,
        source=identity.source,
        sha256=identity.sha256,
        notes=identity.notes,
        portrait=jpeg(to_bytes(portrait), 90) if portrait is not None else None,
        figures=clip_figures(final, thresholds, fps=made.fps, ceiling=ceiling),
        unlocked=clip_figures(other, thresholds, fps=made.fps, ceiling=ceiling) if other else None,
        stillness=_stillness(final, other, made.fps),
        flicker=flicker(final, other),
        honesty=_honesty(final, other, *made.loop(identity.name)),
    )


def _series(rows: Iterable[Row], name: str, frames: int) -> Series:
    return Series.from_rows((row for row in rows if row.character == name), frames=frames)


def _stillness(final: Series, other: Series | None, fps: float) -> Stillness:
    if other is None:
        return Stillness(reason=_NO_OTHER)
    return stillness(motion_signals(final), motion_signals(other), fps=fps)


def _honesty(final: Series, other: Series | None, before: Array, after: Array) -> Honesty:
    if other is None:
        return Honesty(reason=_NO_OTHER)
    return honesty(other.similarity, final.similarity, before, after)


def _fraction(fps: Fraction | float) -> str:
    exact = Fraction(fps).limit_denominator(100_000)
    return f"{exact.numerator}/{exact.denominator}"


def _sheet(made: _Made, ledger: Sequence[Row]) -> tuple[SheetFrame, ...]:
    """Moments evenly along time, and the least alike ones, of those that have a thumbnail."""
    available = sorted(made.images)
    steps = np.linspace(0, len(available) - 1, min(SHEET_FRAMES, len(available)))
    regular = sorted({available[round(step)] for step in steps.tolist()})
    moments = [(frame, False) for frame in regular]
    moments += [(frame, True) for frame in _worst(ledger, made.images)]
    return tuple(
        SheetFrame(
            frame=frame,
            time=round(frame / made.fps, 4),
            image=made.images[frame],
            image_unlocked=made.images_unlocked.get(frame),
            worst=worst,
        )
        for frame, worst in moments
    )


def _worst(ledger: Sequence[Row], available: Container[int]) -> list[int]:
    """Frames with a thumbnail that are not verified: wrong ones first, then by similarity."""
    rank = [Status.WRONG, Status.ABSENT, Status.UNREADABLE, Status.WEAK]
    doubtful = [
        (rank.index(row.status), row.similarity if row.similarity is not None else -1.0, row.frame)
        for row in ledger
        if row.status is not Status.VERIFIED and row.frame in available
    ]
    frames = list(dict.fromkeys(frame for *_, frame in sorted(doubtful)))
    return sorted(frames[:WORST_FRAMES])


def write_report(report: Report, json_path: Path, html_path: Path) -> None:
    """Write the JSON and the page, each under a temporary name first. Raises StorageError."""
    from facelock.report.page import render_page

    atomic_write(json_path, report.to_json().encode())
    atomic_write(html_path, render_page(report).encode())
