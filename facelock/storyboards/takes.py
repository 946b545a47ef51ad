"""One shot after the other, each with its own journal, on a pipeline that stays loaded.

A take is an idempotent unit: its files are named by a digest of all that decides its bytes, so that the same
work is never done twice, a changed shot is another take, and a killed one goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from facelock import __version__
from facelock.clip import Clip
from facelock.errors import (
    EnvironmentFailure,
    FaceLockError,
    InputError,
    InterruptedRunError,
    OutputBusyError,
    StorageError,
)
from facelock.identity import consensus
from facelock.job import Job
from facelock.journal import Resume
from facelock.pipeline import Made, Pipeline
from facelock.protocols import Progress
from facelock.recipe import Recipe
from facelock.report.model import Report
from facelock.storyboard import CastMember, Storyboard
from facelock.storyboards.events import ChunkMade, Event, OnEvent, ShotBegan, ShotEnded, StageDone
from facelock.storyboards.film import FilmFolder, Take
from facelock.storyboards.plan import Unit
from facelock.types import ChunkRecords, Identity
from facelock.weights import sha256_file

Build = Callable[[Recipe, str], Pipeline]
logger = logging.getLogger(__name__)


class WatchedClip(Clip):
    """A clip that shows its chunks' records to ``watch`` while it is saved."""

    watch: Callable[[ChunkRecords], None] | None = None

    def made(self, resume: Resume | None = None) -> Generator[Made, None, None]:
        """See :meth:`Clip.made`."""
        for made in super().made(resume):
            if self.watch:
                self.watch(made.records)
            yield made


@dataclass
class Pace:
    """How far the film is, and how fast."""

    total: int
    """Frames of the film."""
    done: int = 0
    """Frames of shots that are finished."""
    made: int = 0
    """Frames that this run has computed."""
    spared: int = 0
    """Frames of later shots that were made by an earlier run, as far as can be told beforehand."""
    began: float = field(default_factory=time.monotonic)

    def eta(self, shot_frames: int) -> float | None:
        """Seconds left, while ``shot_frames`` of the present shot are done."""
        left = max(0, self.total - self.done - shot_frames - self.spared)
        return (time.monotonic() - self.began) / self.made * left if self.made else None


class Worker:
    """Makes takes; keeps the models of one recipe, and the faces read with them, from shot to shot."""

    def __init__(
        self,
        board: Storyboard,
        film: FilmFolder,
        on_event: OnEvent,
        device: str = "auto",
        build: Build | None = None,
    ) -> None:
        """``build`` makes a pipeline of a recipe and a device; :meth:`Pipeline.from_recipe` by default."""
        self.board, self.film, self.device = board, film, device
        self._build = build or Pipeline.from_recipe
        self._on_event = on_event
        self._unheard: Exception | None = None
        self._recipe: Recipe | None = None
        self._pipeline: Pipeline | None = None
        self._faces: dict[str, Identity] = {}

    def tell(self, event: Event) -> None:
        """Pass an event on; what the callback raises ends the run and is no shot's failure."""
        try:
            self._on_event(event)
        except Exception as error:
            self._unheard = error
            raise

    def pipeline(self, recipe: Recipe) -> Pipeline:
        """The pipeline of ``recipe``; the one before is let go, since two may not fit."""
        if self._pipeline is None or self._recipe != recipe:
            self._pipeline, self._faces = None, {}
            self._pipeline = self._build(recipe, self.device)
            self._recipe = recipe
        return self._pipeline

    def key(self, unit: Unit, number: int) -> str:
        """Digest of all that decides the bytes of a take.

        Raises ``InputError`` for a file that is gone, ``ModelError`` and ``DeviceError`` for the recipe.
        """
        parts = self.pipeline(unit.recipe).parts
        inputs = {
            "facelock": __version__,
            "inputs": {**unit.job(number).inputs(), "audio": _sha256(unit.audio) if unit.audio else None},
            "faces": [[name, *self._face_digests(self.board.cast[name])] for name in unit.characters],
            "recipe": unit.recipe.settings(),
            "weights": dict(parts.weights),
            "device": parts.device,
        }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:20]

    def base(self, unit: Unit) -> str | None:
        """Key of the shot's take 0; None where its inputs cannot be read, which its first take will tell."""
        try:
            return self.key(unit, 0)
        except FaceLockError as error:
            if stops_everything(error):
                raise
            return None

    def make(self, unit: Unit, number: int, pace: Pace, shots: int) -> Take:
        """Make take ``number`` of a shot, or find it made; a failure that is its own is returned, not raised.

        Raises what would stop every shot: ``StorageError``, ``OutputBusyError``, ``InterruptedRunError``.
        """
        seed, key = unit.seed_of_take(number), ""
        self.tell(ShotBegan(unit.name, unit.index + 1, shots, number, seed, unit.frames))
        try:
            key = self.key(unit, number)
            reused = self.film.is_made(key)
            report = self._read(key) if reused else self._save(unit, number, key, pace)
        except Exception as error:
            if stops_everything(error) or error is self._unheard:
                raise
            return self._failed(unit, Take(number, seed, key, "failed"), error)
        share = report.share_recognised
        take = Take(
            number=number,
            seed=seed,
            key=key,
            outcome="accepted" if share >= unit.target else "missed",
            share=share,
            misses=report.misses(unit.target),
            sentence=report.verdict,
        )
        self.tell(ShotEnded(unit.name, number, seed, take.outcome, share, take.sentence, reused))
        return take

    def _save(self, unit: Unit, number: int, key: str, pace: Pace) -> Report:
        pipeline = self.pipeline(unit.recipe)
        cast = [self.identity(pipeline, name) for name in unit.characters]
        listener = _Listener(unit, pace, self.tell, pipeline.parts.device)
        clip = _watched(pipeline, unit.job(number), cast, listener)
        return clip.save(self.film.files(key).video, audio=unit.audio, target=unit.target, overwrite=True)

    def _read(self, key: str) -> Report:
        path = self.film.files(key).report_json
        try:
            return Report.from_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read back. Remove it, and render again.") from error

    def _failed(self, unit: Unit, take: Take, error: Exception) -> Take:
        sentence = str(error).rstrip(".")
        if not isinstance(error, FaceLockError):
            logger.debug("shot %s", unit.name, exc_info=error)
            sentence = f"this is a bug: {type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, FaceLockError) else 1
        take = replace(take, sentence=sentence, exit_code=code)
        self.tell(ShotEnded(unit.name, take.number, take.seed, "failed", None, sentence, False))
        return take

    def identity(self, pipeline: Pipeline, name: str) -> Identity:
        """A character, read once. Raises ``InputError`` when a picture shows no face that can be used."""
        if name not in self._faces:
            member = self.board.cast[name]
            several = [
                pipeline.identities([self.board.path(face)], [member.face_index])[0] for face in member.face
            ]
            self._faces[name] = replace(centre(several), name=name)
        return self._faces[name]

    def _face_digests(self, member: CastMember) -> list[Any]:
        return [member.face_index, *[_sha256(self.board.path(face)) for face in member.face]]


def stops_everything(error: Exception) -> bool:
    """Whether an error is no single shot's: the disk, another run, a signal."""
    return isinstance(error, StorageError | OutputBusyError | InterruptedRunError)


def is_worth_another_seed(take: Take) -> bool:
    """Whether another seed may help: the target was missed, or a stage returned no picture."""
    hopeless = (InputError.exit_code, EnvironmentFailure.exit_code)
    return take.outcome == "missed" or (
        take.exit_code not in hopeless and "this is a bug" not in take.sentence
    )


def centre(several: Sequence[Identity]) -> Identity:
    """One identity of several pictures of a person: the robust middle of their embeddings, as enrolment has it.

    The portrait is the first picture's; the digest is that of all of them.
    """
    first = several[0]
    if len(several) == 1:
        return first
    embeddings = {
        encoder: torch.from_numpy(
            consensus.centre(torch.stack([each.embeddings[encoder] for each in several]).double().numpy())
        ).float()
        for encoder in first.embeddings
    }
    digest = hashlib.sha256("".join(each.sha256 for each in several).encode()).hexdigest()
    notes = tuple(note for each in several for note in each.notes)
    return replace(first, embeddings=embeddings, sha256=digest, notes=notes)


def _watched(pipeline: Pipeline, job: Job, cast: Sequence[Identity], listener: _Listener) -> Clip:
    clip = pipeline.clip(job, list(cast), progress=listener.step)
    watched = WatchedClip(clip.pipeline, clip.job, clip.identities, clip.progress)
    watched.watch = listener.chunk
    return watched


class _Listener:
    """Turns a clip's progress into events."""

    def __init__(self, unit: Unit, pace: Pace, tell: OnEvent, device: str) -> None:
        self.unit, self.pace, self.tell, self.device = unit, pace, tell, device
        self.similarities: list[float] = []
        self.chunks, self.length = 0, 0
        self.step: Progress = self._step

    def chunk(self, records: ChunkRecords) -> None:
        """Hear of a chunk that is made but not yet on the disk."""
        self.similarities += [row.similarity for row in records.ledger if row.similarity is not None]
        self.length = records.length

    def _step(self, stage: str, done: int, total: int) -> None:
        self.tell(StageDone(self.unit.name, stage, done, total))
        if stage != "encode":
            return
        self.pace.made += self.length
        likeness = sum(self.similarities) / len(self.similarities) if self.similarities else None
        event = ChunkMade(
            shot=self.unit.name,
            chunk=_chunk_of(self.unit, done),
            frame=done,
            frames=total,
            similarity=likeness,
            film_frame=self.pace.done + done,
            film_frames=self.pace.total,
            eta=self.pace.eta(done),
            peak_memory=peak_memory(self.device),
        )
        self.tell(event)


def _chunk_of(unit: Unit, frames: int) -> int:
    """Index of the chunk that ends at ``frames``."""
    first = unit.recipe.blueprint.window
    new = first - unit.recipe.blueprint.context
    return max(0, -(-(frames - first) // new))


def peak_memory(device: str) -> int:
    """Bytes: the most that this process has held so far, on the GPU where it computes there."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the file.") from error
