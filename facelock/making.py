"""What a clip that is generated and one that is locked have in common: made chunk by chunk into a journal."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from facelock.errors import EncoderError, InputError
from facelock.journal import Journal, Resume
from facelock.lanes import kept_behind
from facelock.protocols import Progress
from facelock.report import Report
from facelock.types import Identity
from facelock.video.writing import require_encoder

if TYPE_CHECKING:
    from torch import Tensor

    from facelock.pipeline import Made

logger = logging.getLogger(__name__)

BYTES_PER_PIXEL = 0.25
"""Of H.264 at crf 16 on busy pictures: a generous estimate for the check of free space."""
BYTES_PER_FRAME = 4096
"""Records, thumbnails and the report."""


class Making(ABC):
    """A clip that is made when it is iterated or saved, and whose making can be interrupted."""

    stages: ClassVar[tuple[str, ...]]
    """What ``progress`` hears of for each chunk, in order; ``finish`` comes last."""
    progress: Progress | None
    encoder: str = "x264"
    overlap: bool = False
    """Whether a chunk is encoded and committed while the next one is made."""

    @property
    @abstractmethod
    def frames(self) -> int:
        """Number of frames."""

    @abstractmethod
    def made(self, resume: Resume | None = None) -> Generator[Made, None, None]:
        """Make the clip and yield chunks together with what was recorded about them."""

    @abstractmethod
    def _write(self, path: Path, frames: Tensor) -> None:
        """Encode a chunk's frames to the segment ``path``."""

    @abstractmethod
    def _done(self, resume: Resume) -> int:
        """Frames in the committed chunks."""

    @abstractmethod
    def _require_space(self, journal: Journal, resume: Resume) -> None:
        """Raise ``StorageError`` when what is missing will not fit on the disk."""

    def _begin(self, journal: Journal) -> None:
        """Find out what must be known before the first chunk: nothing, unless a subclass says so."""
        return

    def _run(
        self, journal: Journal, inputs: Mapping[str, Any], restart: bool, prepare: Callable[[], None]
    ) -> Report:
        """Make what is missing; ``prepare`` then writes the results into the journal's folder."""
        resume = journal.begin(inputs, restart=restart)
        if not resume.ready:
            require_encoder(self.encoder)  # missing: said now, not after the first chunk
            try:
                self._begin(journal)
            except InputError:
                if not resume.chunks:
                    journal.forget()  # it never began
                raise
            self._require_space(journal, resume)
            self._make(journal, resume)
            prepare()
        self._tell("finish", self.frames)
        journal.publish()
        return _load_report(journal.files.report_json)

    def _make(self, journal: Journal, resume: Resume) -> None:
        """Chunk by chunk: segment, then context, then records, which commit it."""
        done = self._done(resume)
        if done:
            logger.info("resuming after %d of %d frames", done, self.frames)
            for stage in self.stages:
                self._tell(stage, done)
        with ExitStack() as closed:  # whatever happens, no thread of theirs outlives the lock on the folder
            made = closed.enter_context(closing(self.made(resume)))
            keep = partial(self._keep, journal)
            kept = kept_behind(made, keep) if self.overlap else (keep(chunk) for chunk in made)
            for chunk in closed.enter_context(closing(kept)):
                self._tell("encode", chunk.span.end)

    def _keep(self, journal: Journal, made: Made) -> Made:
        """Encode a chunk and commit it."""
        began = time.perf_counter()
        self._encode(journal.segment(made.span.index), made.chunk.frames)
        seconds = {**made.records.seconds, "encode": time.perf_counter() - began}
        journal.commit(made.span.index, made.tail, replace(made.records, seconds=seconds), made.chunk.sound)
        return made

    def _encode(self, path: Path, frames: Tensor) -> None:
        """Write one segment; should ffmpeg die, once more, since the frames are at hand."""
        try:
            self._write(path, frames)
        except EncoderError as error:
            logger.warning("%s; trying once more", str(error).rstrip("."))
            self._write(path, frames)

    def _tell(self, stage: str, done: int) -> None:
        if self.progress:
            self.progress(stage, done, self.frames)


def fingerprint(identity: Identity) -> dict[str, Any]:
    """What tells two references apart: digest of the picture, and coarse numbers of the chosen face."""
    coarse = {
        key: [round(float(x), 2) + 0.0 for x in value[:8]] for key, value in identity.embeddings.items()
    }
    return {"name": identity.name, "sha256": identity.sha256, "embeddings": coarse}


def _load_report(path: Path) -> Report:
    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read back ({error}). Begin anew with --restart.") from error
