"""An existing clip whose faces are to be locked: iterate it for frames, or save it, resumably.

::

    footage = facelock.lock("clip.mp4", "maria.face")
    for chunk in footage: ...               # nothing is written
    report = footage.save("fixed.mp4")      # fixed.mp4, fixed.report.json, fixed.report.html

The clip is looked at once (:mod:`facelock.footage.people`): every frame's time, and who is who. Then it is read,
locked, restored, judged and encoded chunk by chunk. The result has the source's frames at the source's own times, its
size (a rotation that the source asks for is done: the result is upright and asks for none), pixel shape, bits, chroma
and colour tags, and its sound.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from facelock import __version__
from facelock.closed_loop import Cast
from facelock.errors import InputError
from facelock.footage.parts import LockParts
from facelock.footage.people import Casting, find_cast, look_around, sampled
from facelock.job import Span, plan_chunks
from facelock.journal import Journal, Resume, Tail, claim
from facelock.making import BYTES_PER_FRAME, BYTES_PER_PIXEL, Making, fingerprint
from facelock.pipeline import Made
from facelock.protocols import Progress
from facelock.report import Report, build_report, write_report
from facelock.runtime import require_space
from facelock.steps import Home, Steps
from facelock.types import AlignRecord, Chunk, ChunkRecords, Identity
from facelock.video.crossing import lifted
from facelock.video.reading import Still, probe, read_chunks, read_stills
from facelock.video.writing import SegmentWriter, Timing, join_segments
from facelock.weights import sha256_file

if TYPE_CHECKING:
    from facelock.video.reading import VideoInfo

logger = logging.getLogger(__name__)

STAGES = ("lock", "restore", "judge", "encode")
"""What ``progress`` hears of for each chunk, in order; ``survey`` comes first and ``finish`` last."""
FRAMES = 24
"""Most frames of a chunk."""
PIXELS = 12_000_000
"""Most pixels of a chunk, all frames together."""
_LOOKED_AT = 8
"""Frames held at once while the clip is looked at."""


@dataclass(frozen=True)
class Survey:
    """What one look at the whole clip has found."""

    pts: tuple[int, ...]
    """When each frame is shown, in units of the source's time base."""
    last: int
    """Duration of the last one in the same units; 0: unknown."""
    casting: Casting

    def as_json(self) -> dict[str, Any]:
        """Plain values, exact."""
        cast = self.casting.cast
        return {
            "pts": list(self.pts),
            "last": self.last,
            "own": [rows.tolist() for rows in cast.own],
            "others": cast.others.tolist(),
            "width": int(cast.own[0].shape[1]),
            "floor": cast.floor,
            "people": self.casting.people,
            "notes": list(self.casting.notes),
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Survey:
        """What :meth:`as_json` gave."""
        own = tuple(torch.tensor(rows, dtype=torch.float32) for rows in kept["own"])
        others = torch.tensor(kept["others"], dtype=torch.float32).reshape(-1, kept["width"])
        casting = Casting(Cast(own, others, kept["floor"]), kept["people"], tuple(kept["notes"]))
        return cls(tuple(kept["pts"]), kept["last"], casting)


class Footage(Making):
    """What :func:`facelock.lock` returns: a clip that is locked when it is iterated or saved.

    Both can be done any number of times; each makes the same frames again.
    """

    stages = STAGES

    def __init__(
        self,
        parts: LockParts,
        video: str | Path,
        identities: Sequence[Identity],
        *,
        replace: Sequence[Identity] = (),
        swap: bool = True,
        target: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Probe ``video``; see :func:`facelock.lock`. Raises ``InputError`` when it cannot be read."""
        self.parts, self.video, self.identities = parts, Path(video), tuple(identities)
        self.replace, self.swap, self.target, self.progress = tuple(replace), swap, target, progress
        self.encoder = parts.recipe.encode.encoder
        self.info: VideoInfo = probe(self.video)
        self.home = Home(parts.frames_device)
        """Where frames stay from the file to the encoder."""
        self._seen: Survey | None = None

    @property
    def fps(self) -> Fraction:
        """Frames per second, on average."""
        return self.info.fps

    @property
    def frames(self) -> int:
        """Number of frames: counted once the clip was looked at, before that as its header says."""
        return len(self._seen.pts) if self._seen else self.info.frames

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, upright."""
        return self.info.height, self.info.width

    def __repr__(self) -> str:
        height, width = self.size
        return f"Footage({self.video.name!r}, {self.frames} frames of {width}x{height})"

    def __iter__(self) -> Iterator[Chunk]:
        """Lock the clip and yield its final frames chunk by chunk, on the CPU; nothing is written."""
        for made in self.made():
            yield made.chunk.cpu()

    def survey(self) -> Survey:
        """Go once through the whole clip, or return what was found then. Raises ``InputError`` for a clip that is
        damaged or cut short, without faces, or in which nobody can be told to be meant."""
        if self._seen is None:
            self._seen = self._surveyed()
        return self._seen

    def made(self, resume: Resume | None = None) -> Generator[Made, None, None]:
        """Lock the clip's chunks in order, from the beginning or from where ``resume`` says."""
        resume = resume or Resume()
        self.survey()
        tail, plan = resume.tail, self._plan()[resume.chunks :]
        if not plan:
            return
        chunks = read_chunks(self.video, self._length(), start=plan[0].start, raw=True)
        for span, chunk in zip(plan, chunks, strict=True):
            made = self._one(span, lifted(chunk.frames, self.home.device), tail)
            tail = made.tail
            yield made

    def save(
        self,
        path: str | Path | Journal,
        *,
        overwrite: bool = False,
        restart: bool = False,
        target: float | None = None,
    ) -> Report:
        """Lock the clip, or what is missing of it, into ``path`` (.mp4) and return its report.

        ``fixed.mp4``, ``fixed.report.json`` and ``fixed.report.html`` are left; until then ``fixed.mp4.partial/``
        holds what is finished, and after a kill the same call goes on from there to the same frames. ``target`` is
        the share in [0, 1] of frames that must match, recorded in the report.

        Raises ``InputError`` (output or clip cannot be used), ``OutputBusyError``, ``StorageError``,
        ``EncoderError``, ``DeviceError``.
        """
        if isinstance(path, Journal):
            return self._save(path, restart, target)
        refuse_onto_itself(self.video, path)
        with claim(path, overwrite=overwrite, restart=restart) as journal:
            return self._save(journal, restart, target)

    def _save(self, journal: Journal, restart: bool, target: float | None) -> Report:
        refuse_onto_itself(self.video, journal.files.video)
        return self._run(journal, self._run_inputs(), restart, lambda: self._prepare(journal, target))

    def _begin(self, journal: Journal) -> None:
        kept = journal.survey()
        if kept is not None and self._seen is None:
            self._seen = Survey.from_json(kept)
        else:
            journal.keep_survey(self.survey().as_json())

    def _surveyed(self) -> Survey:
        wanted = sampled(self.info.frames)
        stills: list[Still] = []
        batches = self._sampled_batches(stills, wanted)
        seen = look_around(batches, self.parts.pack)
        casting = find_cast(
            seen, self.identities, self.parts.pack.encoder, replace=self.replace, swap=self.swap
        )
        for note in casting.notes:
            logger.warning("%s: %s", self.video.name, note)
        return Survey(tuple(still.pts for still in stills), stills[-1].duration, casting)

    def _sampled_batches(
        self, stills: list[Still], wanted: Sequence[int]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """The frames to look at, a few at a time; all frames are noted, without pixels, in ``stills``."""
        pictures = self._noted(stills, wanted)
        while batch := list(islice(pictures, _LOOKED_AT)):
            yield [index for index, _ in batch], torch.stack([pixels for _, pixels in batch])

    def _noted(self, stills: list[Still], wanted: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        for still in read_stills(self.video, only=wanted):
            stills.append(replace(still, pixels=None))
            if still.pixels is not None:
                self._report_survey(still.index)
                yield still.index, still.pixels
        self._report_survey(len(stills) - 1)

    def _report_survey(self, index: int) -> None:
        if self.progress:
            self.progress("survey", index + 1, max(self.info.frames, index + 1))

    def _length(self) -> int:
        """Frames of a chunk."""
        return max(1, min(FRAMES, PIXELS // (self.size[0] * self.size[1])))

    def _plan(self) -> tuple[Span, ...]:
        return plan_chunks(self.frames, first=self._length(), chunk=self._length())

    def _done(self, resume: Resume) -> int:
        return sum(span.length for span in self._plan()[: resume.chunks])

    def _one(self, span: Span, raw: Tensor, tail: Tail | None) -> Made:
        """One chunk through the stages. Every frame's pixels depend on that frame alone."""
        parts, cast, start = self.parts, self.survey().casting.cast, span.start
        step = Steps(span, self.frames, self.progress, self.home)
        locked, aligned = step("lock", parts.locker.lock, raw, self.identities, start=start, cast=cast)
        final, restored = step("restore", self._restore, locked, start, cast)
        records = step("judge", self._judge, final, raw, span, tail)
        records = replace(records, lock=tuple(aligned), restore=tuple(restored), seconds=step.seconds)
        end = Tail.of_footage(_last(final), _last(raw))
        return Made(span, Chunk(final, start, self.fps), end, records)

    def _restore(self, locked: Tensor, start: int, cast: Cast) -> tuple[Tensor, Sequence[AlignRecord]]:
        if self.parts.restorer is None:
            return locked, ()
        return self.parts.restorer.restore(locked, self.identities, start=start, cast=cast)

    def _judge(self, final: Tensor, raw: Tensor, span: Span, tail: Tail | None) -> ChunkRecords:
        """Measure the final frames and, for comparison, the source's."""
        judge, cast, start = self.parts.judge, self.identities, span.start
        rows = judge.measure(final, cast, start=start, before=tail.final[0] if tail else None)
        faces = judge.thumbnails(final, rows, start=start)
        plain = judge.measure(raw, cast, start=start, before=tail.raw[0] if tail else None)
        others = judge.thumbnails(raw, plain, start=start, at=set(faces))
        return ChunkRecords(
            start,
            span.length,
            ledger=tuple(rows),
            ledger_unlocked=tuple(plain),
            thumbnails=faces,
            thumbnails_unlocked=others,
        )

    def _write(self, path: Path, frames: Tensor) -> None:
        crf, encoder, look = self.parts.recipe.encode.crf, self.encoder, self.info.look
        with SegmentWriter(
            path, self.size, self.fps, crf=crf, look=look, encoder=encoder, device=frames.device
        ) as writer:
            writer.write(frames)

    def _prepare(self, journal: Journal, target: float | None) -> None:
        """Join the segments and write the report, inside the journal's folder."""
        seen, chunks = self.survey(), len(self._plan())
        timing = Timing(seen.pts, self.info.time_base, seen.last)
        video, report_json, report_html = journal.prepared()
        join_segments(
            journal.segments(chunks),
            video,
            fps=self.fps,
            timing=timing,
            sound_of=self.video,
            metadata=self._metadata(),
        )
        report = build_report(
            journal.records(chunks),
            settings=self._settings(target),
            identities=self.identities,
            thresholds=self.parts.judge.thresholds,
            fps=self.fps,
            frames=self.frames,
            kind="lock",
            encoder=self.parts.judge.encoder,
            times=[float((pts - seen.pts[0]) * timing.base) for pts in seen.pts],
        )
        write_report(report, report_json, report_html)

    def _run_inputs(self) -> dict[str, Any]:
        """Everything that decides the bytes of the clip."""
        return {
            "facelock": __version__,
            "kind": "lock",
            "inputs": {"video": sha256_file(self.video), "swap": self.swap},
            "faces": [fingerprint(identity) for identity in self.identities],
            "replace": [fingerprint(identity) for identity in self.replace],
            **self.parts.settings,
        }

    def _settings(self, target: float | None) -> dict[str, Any]:
        asked = self.target if target is None else target
        casting = self.survey().casting
        return {
            "facelock": __version__,
            "inputs": {"video": self.video.name},
            "target": self.parts.recipe.target if asked is None else asked,
            "people": casting.people,
            "notes": list(casting.notes),
            **self.parts.settings,
        }

    def _metadata(self) -> Mapping[str, str]:
        name, aligner = self.parts.recipe.name, self.parts.aligner
        return {
            "title": self.info.title or self.video.stem,
            "comment": f"AI-modified video: faces locked by FaceLock {__version__}, recipe {name}, aligner {aligner}.",
            "ai_modified": "true",
            "facelock_version": __version__,
            "facelock_recipe": name,
        }

    def _require_space(self, journal: Journal, resume: Resume) -> None:
        """Segments that are missing, the joined clip, and a fifth on top."""
        height, width = self.size
        values = height * width * (2 if self.info.look.chroma == (1, 1) else 1)
        frame = values * BYTES_PER_PIXEL + BYTES_PER_FRAME
        contexts = 3 * 2 * 3 * height * width * 4
        missing = 2 * self.frames - self._done(resume)
        require_space(journal.folder, int(1.2 * (missing * frame + contexts)))


def refuse_onto_itself(video: str | Path, output: str | Path) -> None:
    """Raise ``InputError`` when the result would replace its own source."""
    video, output = Path(video), Path(output)
    if output.exists() and video.exists() and output.samefile(video):
        raise InputError(f"{output}: is the clip itself, which would be lost. Give another name with -o.")


def _last(frames: Tensor) -> Tensor:
    """The last frame in float32, where the others lie: exactly what a journal gives back."""
    return frames[-1:].detach().float().clone()
