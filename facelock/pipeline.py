"""The loop that chains the stages: blueprint → lock → restore → judge, one chunk at a time.

::

    pipeline = Pipeline.from_recipe("miniature", device="auto")    # models stay loaded
    clip = pipeline.generate("a woman talking", "maria.png", seconds=10, seed=1)
    clip.save("clip.mp4")

Nothing flows back but the locked tail, which is the next chunk's context, so memory does not depend on the
clip's length. Knows no model: the stages come in as :class:`Parts`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from facelock.blueprint import refuse_continuation
from facelock.errors import InputError
from facelock.identity import embedding_of
from facelock.identity.consent import remark_unknown, require_consent
from facelock.job import Job, Size, Span, check_size, plan_chunks
from facelock.journal import Resume, Tail
from facelock.parts import Parts
from facelock.preflight import require_features
from facelock.protocols import Progress
from facelock.recipe import Recipe, load_recipe
from facelock.recipe.uses import ALL, Uses
from facelock.recipe.words import backbone_prompt, crowd_warnings, vocabulary_warnings
from facelock.runtime import derive_seed
from facelock.sound import extended, fitted
from facelock.steps import Home, Steps
from facelock.types import AlignRecord, Chunk, ChunkRecords, Identity, Sound

if TYPE_CHECKING:
    from facelock.clip import Clip

logger = logging.getLogger(__name__)

Reference = "str | Path | Image | Identity"
"""What stands for one character: a picture's path or a ``.face`` file's, an open PIL picture, or an identity."""
Aligned = tuple[Tensor, Sequence[AlignRecord]]


@dataclass(frozen=True)
class Made:
    """One finished chunk, with all that the next one and the journal need."""

    span: Span
    chunk: Chunk
    tail: Tail
    """What the next chunk continues from."""
    records: ChunkRecords


def checked_job(job: Job, recipe: Recipe) -> Job:
    """The job, its size in pixels, if ``recipe`` can make it; asks for no model.

    Raises ``InputError`` for what no recipe can make and for a clip too long for this one, ``ConfigError`` for a size
    that it cannot reach.
    """
    job.check()
    if job.size is not None:
        job = replace(job, size=check_size(job.size, recipe.native_size))
    low = recipe.blueprint
    refuse_continuation(low.kind, window=low.window, frames=job.frame_count(low.fps), fps=low.fps)
    return job


class Pipeline:
    """Stages, loaded once and reused for any number of clips."""

    def __init__(self, recipe: Recipe, parts: Parts) -> None:
        self.recipe = recipe
        self.parts = parts

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Path | Recipe = "miniature",
        device: str = "auto",
        commercial: bool = False,
        used: Uses = ALL,
    ) -> Pipeline:
        """Build the pipeline that a recipe describes; ``device`` is auto, cpu, cuda or cuda:N.

        Of the recipe only what is ``used`` (:mod:`facelock.recipe.uses`) is asked for and can be worked with.

        Models are looked up and checked now and loaded when first needed; ``commercial`` refuses those whose
        licence does not allow commercial use. Raises ``ConfigError``, ``ModelError``, ``DeviceError``.
        """
        from facelock.assembly import Assembly

        recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        return cls(recipe, Assembly(recipe, device, commercial, used=used))

    @cached_property
    def home(self) -> Home:
        """Where the backbone's frames stay until they are encoded."""
        return Home(self.parts.frames_device)

    @property
    def fps(self) -> Fraction:
        """Frames per second, exact."""
        return self.recipe.blueprint.fps

    def identities(
        self, references: Any | Sequence[Any], faces: Sequence[int | None] = ()
    ) -> tuple[Identity, ...]:
        """One identity per reference, in order, with distinct names; ``faces`` picks among several faces.

        Raises ``InputError`` for a reference that cannot be used, or may not be (:mod:`facelock.identity.consent`).
        """
        several = isinstance(references, list | tuple)
        given: Sequence[Any] = references if several else [references]
        if not given:
            raise InputError("No reference is given. Give at least one picture of the face.")
        picks = [*faces, *[None] * len(given)]
        taken: list[str] = []
        cast = []
        for reference, face in zip(given, picks, strict=False):
            cast.append(self._identity(reference, face, taken))
            require_consent(cast[-1])
            remark_unknown(cast[-1])
            embedding_of(cast[-1], self.parts.judge.encoder)
            taken.append(cast[-1].name)
        return tuple(cast)

    def generate(
        self,
        prompt: str,
        identity: Any | Sequence[Any],
        *,
        seconds: float,
        seed: int = 0,
        size: Size | None = None,
        lock: bool = True,
        restore: bool = True,
        faces: Sequence[int | None] = (),
        progress: Progress | None = None,
    ) -> Clip:
        """Describe a clip; nothing is made until it is iterated or saved. See :func:`facelock.generate`."""
        job = Job(prompt, seconds, seed, size, lock, restore)
        return self.clip(job, identity, faces=faces, progress=progress)

    def clip(
        self,
        job: Job,
        identity: Any | Sequence[Any],
        *,
        faces: Sequence[int | None] = (),
        progress: Progress | None = None,
    ) -> Clip:
        """Check ``job`` against the recipe, read the references, and describe the clip."""
        from facelock.clip import Clip

        job = checked_job(job, self.recipe)
        for sentence in vocabulary_warnings(self.recipe, job.prompt):
            logger.warning("%s", sentence)
        cast = self.identities(identity, faces)
        require_features(self.recipe, [person.name for person in cast])
        for sentence in crowd_warnings(self.recipe, len(cast)):
            logger.warning("%s", sentence)
        return Clip(self, job, cast, progress)

    def run(
        self,
        job: Job,
        identities: Sequence[Identity],
        *,
        resume: Resume | None = None,
        progress: Progress | None = None,
    ) -> Generator[Made, None, None]:
        """Make the clip's chunks in order, from the beginning or from where ``resume`` says.

        The same arguments give the same bytes, whether resumed or not. Raises :class:`FaceLockError`
        naming chunk and stage when a stage returns something that is not a picture.
        """
        resume = resume or Resume()
        self._load_small(job)
        backbone, frames = self.parts.backbone, job.frame_count(self.fps)
        check_size(job.size, self.recipe.native_size)
        plan = plan_chunks(frames, first=backbone.first_chunk, chunk=backbone.chunk)[resume.chunks :]
        if self.recipe.speed.choices().overlap:
            from facelock.overlap import overlapped

            return overlapped(self, job, identities, plan, resume.tail, progress)
        return self._in_turn(job, identities, plan, resume.tail, progress)

    def _load_small(self, job: Job) -> None:
        """Open the stages after the blueprint, so that what is wrong with one is said before that is read."""
        if job.lock:
            _ = self.parts.locker
        _ = self.parts.restorer if job.restore else self.parts.upscaler

    def _in_turn(
        self,
        job: Job,
        identities: Sequence[Identity],
        plan: Sequence[Span],
        tail: Tail | None,
        progress: Progress | None,
    ) -> Generator[Made, None, None]:
        """One chunk after the other, one stage after the other."""
        frames = job.frame_count(self.fps)
        for span in plan:
            step = Steps(span, frames, progress, self.home)
            raw, sound = self.draw(step, job, identities, tail)
            locked, aligned = step("lock", self.locking(job), raw, identities, start=span.start)
            made = self.finish(step, job, identities, raw, locked, aligned, tail, sound)
            tail = made.tail
            yield made

    def draw(
        self, step: Steps, job: Job, identities: Sequence[Identity], tail: Tail | None
    ) -> tuple[Tensor, Sound | None]:
        """Stage 1: the frames of ``step``'s chunk, continued from ``tail``, and their sound if they have any."""
        context = _anchored(tail, self.recipe.blueprint.anchor) if tail else None
        seed = derive_seed(job.seed, step.span.index, "blueprint")
        extend, span = extended(self.parts.backbone), step.span
        prompt = backbone_prompt(self.recipe, job.prompt)
        raw, sound = step("blueprint", extend, prompt, context, seed=seed, references=identities)
        return raw[: span.length].to(self.home.device), fitted(
            sound, start=span.start, frames=span.length, fps=self.fps
        )

    def locking(self, job: Job) -> Callable[..., Aligned]:
        """Stage 2, or what stands in its place."""
        return self.parts.locker.lock if job.lock else _untouched

    def ended(self, locked: Tensor, tail: Tail | None) -> Tensor:
        """The last locked frames so far, from which the next chunk continues."""
        return _last(tail.context if tail else None, locked, self.parts.backbone.context)

    def finish(
        self,
        step: Steps,
        job: Job,
        identities: Sequence[Identity],
        raw: Tensor,
        locked: Tensor,
        aligned: Sequence[AlignRecord],
        tail: Tail | None,
        sound: Sound | None,
    ) -> Made:
        """Stage 3 and the judge; ``tail`` is the chunk's before."""
        span, size = step.span, check_size(job.size, self.recipe.native_size)
        final, restored = step("restore", self._enlarge, job, locked, identities, span, size)
        # they may lie elsewhere: where the GPU was given up just now, or the tail comes from a journal
        raw, tail = raw.to(final.device), tail and tail.to(final.device)
        measured = step("judge", self._judge, job, final, raw, identities, span, tail)
        ended = self.ended(locked, tail)
        end = Tail(ended, _last(None, final, 1), _last(None, raw, 1), tail.anchor if tail else ended.clone())
        records = replace(measured, lock=tuple(aligned), restore=tuple(restored), seconds=step.seconds)
        return Made(span, Chunk(final, span.start, self.fps, sound=sound), end, records)

    def _enlarge(
        self, job: Job, locked: Tensor, identities: Sequence[Identity], span: Span, size: tuple[int, int]
    ) -> Aligned:
        """Stage 3, or the upscaler alone; then the size that was asked for."""
        if job.restore:
            final, records = self.parts.restorer.restore(locked, identities, start=span.start)
        else:
            final, records = self.parts.upscaler.upscale(locked), ()
        return fit(final, size), records

    def _judge(
        self,
        job: Job,
        final: Tensor,
        raw: Tensor,
        identities: Sequence[Identity],
        span: Span,
        tail: Tail | None,
    ) -> ChunkRecords:
        """Measure the final frames and, for comparison, the blueprint's own, enlarged plainly."""
        judge, size, start = self.parts.judge, (int(final.shape[-2]), int(final.shape[-1])), span.start
        rows = tuple(judge.measure(final, identities, start=start, before=tail.final[0] if tail else None))
        faces = judge.thumbnails(final, rows, start=start)
        records = ChunkRecords(start, span.length, ledger=rows, thumbnails=faces)
        if not job.lock:
            return records
        before = fit(self.parts.upscaler.upscale(tail.raw), size)[0] if tail else None
        plain = fit(self.parts.upscaler.upscale(raw), size)
        rows = tuple(judge.measure(plain, identities, start=start, before=before))
        faces = judge.thumbnails(plain, rows, start=start, at=set(faces))
        return replace(records, ledger_unlocked=rows, thumbnails_unlocked=faces)

    def _identity(self, reference: Any, face: int | None, taken: Sequence[str]) -> Identity:
        if not isinstance(reference, Identity):
            reference = self.parts.identity(reference, name=None, face=face)
        if reference.name not in taken:
            return reference
        number = next(n for n in range(2, len(taken) + 3) if f"{reference.name}-{n}" not in taken)
        return replace(reference, name=f"{reference.name}-{number}")


def _untouched(frames: Tensor, _: Sequence[Identity], *, start: int) -> Aligned:
    """What stands in for the lock when it is left out."""
    return frames, ()


def resize(frames: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """(T, 3, H, W) frames at ``size`` (height, width), in [0, 1]; themselves when they have it already."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return functional.interpolate(frames, size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)


def fit(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """:func:`resize` without distortion: what ``size`` of another shape has no room for is cut away on both sides."""
    height, width = frames.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    rows, columns = min(height, round(size[0] / scale)), min(width, round(size[1] / scale))
    top, left = (height - rows) // 2, (width - columns) // 2
    return resize(frames[..., top : top + rows, left : left + columns], size)


def _anchored(tail: Tail, share: float) -> Tensor:
    """The context of the next chunk: the locked tail, with ``share`` of the first chunk's in it."""
    return torch.lerp(tail.context, tail.anchor.to(tail.context.device), share) if share else tail.context


def _last(before: Tensor | None, frames: Tensor, length: int) -> Tensor:
    """The last ``length`` frames so far in float32, where ``frames`` lie: exactly what a journal gives back."""
    frames = frames[-length:].detach().float()
    if before is not None and frames.shape[0] < length:
        frames = torch.cat([before.to(frames.device), frames])[-length:]
    return frames.clone()
