"""The loop with the next chunk's blueprint made ahead, while this chunk is restored and judged in another thread.

Two things allow it. A frame is locked by itself, so the end of a chunk, which is all that the next one needs, can be
locked first. And the blueprint stays on the thread that runs the pipeline, because compiled graphs assert that
(pytorch#123177), while the rest of a chunk goes to one worker. Chunks leave in order, with the same bytes as in
turn, one chunk ahead at most. Stages that may not be called from two threads at once take turns: a tail is then locked
when the worker is done.

::

    this thread    blueprint 1 · lock its tail │ blueprint 2 · lock its tail │ ...
    worker                                     │ rest of 1: lock, restore, judge │ rest of 2 ...
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from facelock.closed_loop import runs_beside
from facelock.errors import InterruptedRunError
from facelock.job import Job, Span
from facelock.journal import Tail
from facelock.protocols import Progress
from facelock.steps import Steps
from facelock.types import AlignRecord, Identity, Sound

if TYPE_CHECKING:
    from facelock.pipeline import Made, Pipeline

STAGES = ("lock", "restore", "judge")
"""What the worker does of a chunk, told when it is done, because progress is told on the pipeline's thread."""


@dataclass
class _Begun:
    """A chunk as the blueprint wrote it, with its last frames locked already."""

    span: Span
    raw: Tensor
    ahead: Tensor
    """(n, 3, h, w) the last n frames, locked; the rest is not."""
    aligned: Sequence[AlignRecord]
    seconds: dict[str, float]
    sound: Sound | None
    """The chunk's, where its backbone makes any."""


def overlapped(
    pipeline: Pipeline,
    job: Job,
    identities: Sequence[Identity],
    plan: Sequence[Span],
    tail: Tail | None,
    progress: Progress | None,
) -> Generator[Made, None, None]:
    """The chunks of ``plan`` in order; a finished one is handed out even where the next one's blueprint fails."""
    loop = _Loop(pipeline, job, identities, progress)
    with ThreadPoolExecutor(1, "facelock-rest") as worker:
        waiting: Future[Made] | None = None
        past = tail  # what the next blueprint continues from; its final frame is not known yet
        try:
            for span in plan:
                begun = loop.begin(span, past, last=span is plan[-1])
                past = loop.continued(begun, past)
                before = loop.collected(waiting)
                waiting = worker.submit(loop.complete, begun, before.tail if before else tail)
                if before:
                    yield before
            if waiting:
                before, waiting = loop.collected(waiting), None
                if before:
                    yield before
        except Exception:
            if waiting and not loop.gone:  # it was made before: it is not lost
                before, waiting = waiting.result(), None
                yield before
            raise
        finally:
            loop.stop.set()


class _Loop:
    """What both threads share: the clip, and a flag to stop between two steps."""

    def __init__(
        self, pipeline: Pipeline, job: Job, identities: Sequence[Identity], progress: Progress | None
    ) -> None:
        self.pipeline, self.job, self.identities, self.progress = pipeline, job, identities, progress
        self.frames = job.frame_count(pipeline.fps)
        self.stop = threading.Event()
        stages = [
            *([pipeline.parts.locker] if job.lock else ()),
            *([pipeline.parts.restorer] if job.restore else ()),
        ]
        beside = all(runs_beside(stage) for stage in stages)
        self.turn: AbstractContextManager[object] = nullcontext() if beside else threading.Lock()
        """Held by whichever thread runs them: the diffusion of an aligner, say, keeps a schedule between its steps."""
        self.gone = False
        """The worker's own chunk failed: there is nothing to hand out."""

    def begin(self, span: Span, past: Tail | None, *, last: bool) -> _Begun:
        """Blueprint, and the lock of what the next chunk needs of it: nothing after the last one."""
        step = Steps(span, self.frames, self.progress, self.pipeline.home)
        raw, sound = self.pipeline.draw(step, self.job, self.identities, past)
        count = 0 if last else min(self.pipeline.parts.backbone.context, span.length)
        begun = _Begun(span, raw, raw[span.length :], (), step.seconds, sound)
        if count:
            at = Span(span.index, span.end - count, count)
            with self.turn:
                begun.ahead, begun.aligned = self._lock(at, raw[-count:], begun.seconds)
        return begun

    def continued(self, begun: _Begun, past: Tail | None) -> Tail:
        """The locked past of the next blueprint."""
        if not len(begun.ahead):
            return past or Tail(begun.raw[:0], begun.raw[:0], begun.raw[:0], begun.raw[:0])
        ended = self.pipeline.ended(begun.ahead, past)
        return Tail(ended, begun.raw[:0], begun.raw[:0], past.anchor if past else ended.clone())

    def complete(self, begun: _Begun, tail: Tail | None) -> Made:
        """In the worker: lock the other frames, restore, judge."""
        with self.turn:
            return self._complete(begun, tail)

    def _complete(self, begun: _Begun, tail: Tail | None) -> Made:
        span, count = begun.span, begun.span.length - len(begun.ahead)
        locked, aligned = begun.ahead, list(begun.aligned)
        if count:
            at = Span(span.index, span.start, count)
            first, records = self._lock(at, begun.raw[:count], begun.seconds)
            locked = torch.cat([first, begun.ahead.to(first.device)])
            aligned = [*records, *begun.aligned]
        step = Steps(span, self.frames, self._told_later, self.pipeline.home)
        step.seconds = begun.seconds
        return self.pipeline.finish(
            step, self.job, self.identities, begun.raw, locked, aligned, tail, begun.sound
        )

    def collected(self, waiting: Future[Made] | None) -> Made | None:
        """Wait for the worker's chunk, and tell what it did."""
        if waiting is None:
            return None
        try:
            made = waiting.result()
        except Exception:
            self.gone = True
            raise
        for stage in STAGES if self.progress else ():
            self._tell(stage, made.span.end)
        return made

    def _lock(
        self, at: Span, frames: Tensor, seconds: dict[str, float]
    ) -> tuple[Tensor, Sequence[AlignRecord]]:
        step = Steps(at, self.frames, self._told_later, self.pipeline.home)
        locked, aligned = step(
            "lock", self.pipeline.locking(self.job), frames, self.identities, start=at.start
        )
        seconds["lock"] = seconds.get("lock", 0.0) + step.seconds["lock"]
        return locked, aligned

    def _told_later(self, *_: object) -> None:
        """Between two of the worker's steps: leave if nobody waits for it any more."""
        if self.stop.is_set():
            raise InterruptedRunError("Interrupted. The same command resumes.")

    def _tell(self, stage: str, done: int) -> None:
        if self.progress:
            self.progress(stage, done, self.frames)
