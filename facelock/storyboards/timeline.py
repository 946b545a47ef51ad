"""The film for an editor: an OpenTimelineIO timeline, and through its adapters an EDL and a Final Cut Pro 7 XML.

Each shot is a clip with its characters, seed and similarity as metadata, and a marker on every stretch of
frames in which a face is weak, wrong or lost. Needs ``opentimelineio`` (extra ``storyboard``).
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from facelock.errors import StorageError
from facelock.files import publish, storage_error
from facelock.report.model import LedgerEntry
from facelock.storyboards.cut import Cut, Placed
from facelock.storyboards.soundtrack import heard
from facelock.types import Status

logger = logging.getLogger(__name__)

COLOURS = {Status.WEAK: "YELLOW", Status.WRONG: "RED", Status.UNREADABLE: "CYAN", Status.ABSENT: "MAGENTA"}
"""Of markers, by what is the matter."""
WORDS = {Status.WEAK: "weak", Status.WRONG: "wrong", Status.UNREADABLE: "unreadable", Status.ABSENT: "lost"}
NTSC = Fraction(1000, 1001)
SMPTE_RATES = (
    24 * NTSC, Fraction(24), Fraction(25), 30 * NTSC, Fraction(30), Fraction(48), Fraction(50), 60 * NTSC, Fraction(60),
)  # fmt: skip
"""Frame rates that EDL and FCP7 XML can count in; 29.97 and 59.94 as drop-frame timecode."""
ADAPTERS = {"edl": ("cmx_3600", "otio_cmx3600_adapter"), "xml": ("fcp_xml", "otio_fcp_adapter")}


@dataclass(frozen=True)
class Stretch:
    """Consecutive frames of a shot in which one character's status stays the same."""

    character: str
    status: Status
    start: int
    """Frame of the shot."""
    length: int
    similarity: float | None
    """The lowest in it."""

    @property
    def name(self) -> str:
        """``maria wrong``."""
        return f"{self.character} {WORDS[self.status]}"


def doubtful(rows: Iterable[LedgerEntry]) -> list[Stretch]:
    """Stretches of a ledger that are not verified, by beginning, then by character."""
    found: list[Stretch] = []
    latest: dict[str, int] = {}
    for row in rows:
        if row.status is Status.VERIFIED:
            continue
        place = latest.get(row.character)
        last = found[place] if place is not None else None
        if last and place is not None and last.status is row.status and last.start + last.length == row.frame:
            lowest = min((s for s in (last.similarity, row.similarity) if s is not None), default=None)
            found[place] = Stretch(row.character, row.status, last.start, last.length + 1, lowest)
        else:
            latest[row.character] = len(found)
            found.append(Stretch(row.character, row.status, row.frame, 1, row.similarity))
    return found


def write_timelines(cut: Cut, folder: Path, name: str = "film") -> dict[str, Path]:
    """Write ``film.otio``, ``film.edl`` and ``film.xml`` into ``folder``; what cannot be is said once and left out.

    Returns the files by kind. Raises ``StorageError`` when the disk is full.
    """
    kinds, rate = writable(cut), smpte_rate(cut.fps)
    if "otio" not in kinds:
        logger.info("no timeline for editors is written: pip install 'facelock-video[storyboard]'")
        return {}
    written = {"otio": _write(timeline(cut, folder), folder / f"{name}.otio", "otio_json")}
    for suffix, (adapter, _) in ADAPTERS.items():
        if rate is None:
            logger.info("no %s.%s is written: it cannot count %s frames a second", name, suffix, cut.fps)
        elif suffix not in kinds:
            logger.info("no %s.%s is written: pip install 'facelock-video[storyboard]'", name, suffix)
        else:
            shown = timeline(cut, folder, rate=rate, dissolves=suffix != "edl")
            options = {"rate": float(rate)} if suffix == "edl" else {}
            written[suffix] = _write(shown, folder / f"{name}.{suffix}", adapter, **options)
    return written


def writable(cut: Cut) -> set[str]:
    """Kinds of timelines that can be written here: what is installed, and can count the film's frames."""
    if importlib.util.find_spec("opentimelineio") is None:
        return set()
    counts = smpte_rate(cut.fps) is not None
    return {"otio"} | {
        kind for kind, (_, module) in ADAPTERS.items() if counts and importlib.util.find_spec(module)
    }


def smpte_rate(fps: Fraction) -> Fraction | None:
    """The lowest rate of EDL and XML that is a whole multiple of ``fps``: no cut falls between two frames."""
    return next((rate for rate in SMPTE_RATES if (rate / fps).denominator == 1), None)


def timeline(cut: Cut, folder: Path, *, rate: Fraction | None = None, dissolves: bool = True) -> Any:
    """The film as an ``otio.schema.Timeline``, its media relative to ``folder``.

    ``rate`` counts in other frames than the film's, a whole multiple. ``dissolves=False`` puts a cut in the
    middle of each, for EDL, whose adapter repeats the markers of the clip that a dissolve leaves.
    """
    return _Builder(cut, folder, rate, dissolves).build()


class _Builder:
    def __init__(self, cut: Cut, folder: Path, rate: Fraction | None, dissolves: bool) -> None:
        import opentimelineio as otio

        self.otio, self.cut, self.folder, self.dissolves = otio, cut, folder, dissolves
        self.own_rate = rate is None  # the XML's adapter cannot read such a track beside dissolves
        self.rate = float(rate or cut.fps)
        self.factor = int(rate / cut.fps) if rate else 1

    def build(self) -> Any:
        otio = self.otio
        board = self.cut.plan.board
        film = otio.schema.Timeline(
            " ".join(board.title.split()) or "film",  # an EDL's title is one line
            global_start_time=self.time(0),
            metadata={"facelock": {"film": self.facts()}},
        )
        pictures = otio.schema.Track("V1", kind=otio.schema.TrackKind.Video)
        film.tracks.append(pictures)
        for shot in self.cut.shots:
            if shot.overlap and self.dissolves:
                pictures.append(self.dissolve(shot))
            pictures.append(self.clip(shot))
        if self.own_rate and any(heard(shot) for shot in self.cut.shots):
            film.tracks.append(self.speech())
        if board.audio:
            film.tracks.append(self.sound(board.path(board.audio), len(film.tracks)))
        return film

    def time(self, frames: int) -> Any:
        return self.otio.opentime.RationalTime(frames * self.factor, self.rate)

    def range(self, start: int, length: int) -> Any:
        return self.otio.opentime.TimeRange(self.time(start), self.time(length))

    def facts(self) -> dict[str, Any]:
        return {"fps": str(self.cut.fps), "frames": self.cut.frames, "shots": len(self.cut.shots)}

    def clip(self, shot: Placed) -> Any:
        """The shot from the middle of one transition to the middle of the next; the rest of it are handles."""
        otio = self.otio
        start = shot.overlap // 2
        end = shot.frames - (shot.overlap_after - shot.overlap_after // 2)
        available = self.range(0, shot.frames)
        if shot.result.video:
            url = Path(os.path.relpath(shot.result.video, self.folder)).as_posix()
            media: Any = otio.schema.ExternalReference(url, available_range=available)
        else:
            media = otio.schema.MissingReference("not made", available_range=available)
        clip = otio.schema.Clip(shot.unit.name, media, self.range(start, end - start), metadata=_facts(shot))
        if not self.dissolves:  # an EDL's reel is one word; a name with a space would be read as two
            clip.metadata["cmx_3600"] = {"reel": f"SHOT{shot.unit.index + 1:04d}"}
        rows = shot.report.ledger if shot.report else ()
        clip.markers.extend(self.marker(stretch) for stretch in doubtful(rows))
        return clip

    def marker(self, stretch: Stretch) -> Any:
        facts = {
            "character": stretch.character,
            "status": str(stretch.status),
            "similarity": stretch.similarity,
        }
        return self.otio.schema.Marker(
            stretch.name,
            self.range(stretch.start, stretch.length),
            color=COLOURS[stretch.status],
            metadata={"facelock": facts},
        )

    def dissolve(self, shot: Placed) -> Any:
        half = shot.overlap // 2
        kind = self.otio.schema.TransitionTypes.SMPTE_Dissolve
        return self.otio.schema.Transition("dissolve", kind, self.time(half), self.time(shot.overlap - half))

    def speech(self) -> Any:
        """The shots' own sounds, which their files hold, under their pictures; cut in the middle of dissolves."""
        otio = self.otio
        track = otio.schema.Track("A1", kind=otio.schema.TrackKind.Audio)
        for shot in self.cut.shots:
            clip = self.clip(shot)
            clip.markers.clear()
            track.append(clip if heard(shot) else otio.schema.Gap(source_range=clip.source_range))
        return track

    def sound(self, path: Path, number: int) -> Any:
        otio = self.otio
        track = otio.schema.Track(f"A{number}", kind=otio.schema.TrackKind.Audio)
        url = Path(os.path.relpath(path, self.folder)).as_posix()
        whole = self.range(0, self.cut.frames)
        track.append(otio.schema.Clip(path.name, otio.schema.ExternalReference(url, whole), whole))
        return track


def _facts(shot: Placed) -> dict[str, Any]:
    take = shot.result.take
    report = shot.report
    likeness = {each.name: each.figures.mean.value for each in report.characters} if report else {}
    facts = {
        "characters": list(shot.unit.characters),
        "scene": shot.unit.scene,
        "prompt": shot.unit.prompt,
        "outcome": shot.result.outcome,
        "seed": take.seed if take else shot.unit.seed,
        "share_recognised": take.share if take else None,
        "similarity": likeness,
        "transition": f"{shot.unit.begins.kind} {shot.unit.begins.seconds:g}",
    }
    return {"facelock": facts}


def _write(film: Any, path: Path, adapter: str, **options: Any) -> Path:
    """Write through an adapter, whole or not at all."""
    import opentimelineio as otio

    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        otio.adapters.write_to_file(film, str(part), adapter_name=adapter, **options)
        publish(part, path)
    except OSError as error:
        raise storage_error(error, path) from error
    except otio.exceptions.OTIOError as error:
        raise StorageError(f"{path}: cannot be written ({error}). Check the disk.") from error
    finally:
        part.unlink(missing_ok=True)
    return path
