"""What a film's rendering tells while it runs: one frozen dataclass per kind of event.

::

    def on_event(event: Event) -> None:
        match event:
            case ChunkMade(shot=shot, similarity=similarity, eta=eta): ...

    facelock.render(board, "film/", on_event=on_event)

Events come from the thread that renders; an exception raised in the callback ends the run, resumably.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["accepted", "missed", "failed"]
"""accepted: the take meets its target; missed: it was made but too few frames show their characters; failed:
it could not be made."""


@dataclass(frozen=True)
class ShotBegan:
    """A take of a shot begins, or goes on after a kill."""

    shot: str
    number: int
    """Of the shot, from 1."""
    shots: int
    take: int
    """From 0; each take has another seed."""
    seed: int
    frames: int


@dataclass(frozen=True)
class StageDone:
    """One stage of one chunk is done: the finest step; raise here to stop between two steps."""

    shot: str
    stage: str
    """blueprint, lock, restore, judge, encode, or finish."""
    frame: int
    """Frames of the shot that have passed the stage."""
    frames: int


@dataclass(frozen=True)
class ChunkMade:
    """A chunk of a shot is on the disk."""

    shot: str
    chunk: int
    """From 0."""
    frame: int
    """Frames of the shot that are done."""
    frames: int
    similarity: float | None
    """Mean similarity, by the judge, of the faces of this take that this run has made; None without a face."""
    film_frame: int
    """Frames of the film that are done, first takes only counted once."""
    film_frames: int
    eta: float | None
    """Seconds left if every shot meets its target and goes as fast as those of this run; None at the start."""
    peak_memory: int
    """Bytes: the most this process has held so far, on the GPU where there is one."""


@dataclass(frozen=True)
class ShotEnded:
    """A take has come to its end."""

    shot: str
    take: int
    seed: int
    outcome: Outcome
    share: float | None
    """Share of frames that show their characters; None when it failed."""
    sentence: str
    """The report's verdict, or why it failed."""
    reused: bool
    """The same work lay there already: nothing was computed."""


@dataclass(frozen=True)
class FilmMade:
    """The edit is written."""

    files: tuple[Path, ...]


Event = ShotBegan | StageDone | ChunkMade | ShotEnded | FilmMade
OnEvent = Callable[[Event], None]
