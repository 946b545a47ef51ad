"""A clip to be made: iterate it for frames, or save it as a file with a report, resumably.

::

    clip = facelock.generate("a woman talking", "maria.png", seconds=30)
    for chunk in clip: ...                  # nothing is written
    report = clip.save("clip.mp4")          # clip.mp4, clip.report.json, clip.report.html
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelock import __version__
from facelock.errors import EncoderError, IdentityMissedError, InputError
from facelock.job import Job, Span, check_size, plan_chunks
from facelock.journal import Journal, Resume, claim
from facelock.protocols import Progress
from facelock.report import Report, build_report, write_report
from facelock.runtime import require_space
from facelock.types import Chunk, Identity
from facelock.video import SegmentWriter, check_audio, find_ffmpeg, join_segments
from facelock.weights import sha256_file

if TYPE_CHECKING:
    from torch import Tensor

    from facelock.pipeline import Made, Pipeline

logger = logging.getLogger(__name__)

STAGES = ("blueprint", "lock", "restore", "judge", "encode")
"""What ``progress`` hears of for each chunk, in order; ``finish`` comes last."""
BYTES_PER_PIXEL = 0.25
"""Of H.264 at crf 16 on busy pictures: a generous estimate for the check of free space."""
BYTES_PER_FRAME = 4096
"""Records, thumbnails and the report."""


class Clip:
    """What :func:`facelock.generate` returns: a clip that is made when it is iterated or saved.

    Both can be done any number of times; each makes the same frames again.
    """

    def __init__(
        self, pipeline: Pipeline, job: Job, identities: tuple[Identity, ...], progress: Progress | None = None
    ) -> None:
        self.pipeline = pipeline
        self.job = job
        self.identities = identities
        self.progress = progress

    @property
    def fps(self) -> Fraction:
        """Frames per second, exact."""
        return self.pipeline.fps

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.job.frame_count(self.fps)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the final frames in pixels."""
        return check_size(self.job.size, self.pipeline.recipe.native_size)

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"Clip({self.job.prompt!r}, {self.frames} frames of {width}x{height} at {float(self.fps):g} fps)"
        )

    def __iter__(self) -> Iterator[Chunk]:
        """Make the clip and yield its final frames chunk by chunk; nothing is written."""
        for made in self.made():
            yield made.chunk

    def made(self, resume: Resume | None = None) -> Iterator[Made]:
        """Make the clip and yield chunks together with what was recorded about them."""
        return self.pipeline.run(self.job, self.identities, resume=resume, progress=self.progress)

    def save(
        self,
        path: str | Path | Journal,
        *,
        audio: str | Path | None = None,
        overwrite: bool = False,
        restart: bool = False,
        target: float | None = None,
    ) -> Report:
        """Make the clip, or what is missing of it, into ``path`` (.mp4) and return its report.

        ``clip.mp4``, ``clip.report.json`` and ``clip.report.html`` are left. Until then
        ``clip.mp4.partial/`` holds what is finished: after a kill the same call goes on from there and
        gives the same frames. ``audio`` is a file whose sound is cut or padded to the clip; ``restart``
        forgets an unfinished run; ``target`` is the share in [0, 1] of frames that must match, recorded
        in the report (default: the recipe's); missing it raises nothing here, see :func:`require_target`.

        Raises ``InputError`` (output or inputs cannot be used), ``OutputBusyError`` (another run holds
        it), ``StorageError``, ``EncoderError``, ``DeviceError``.
        """
        if isinstance(path, Journal):
            return self._save(path, audio, restart, target)
        with claim(path, overwrite=overwrite, restart=restart) as journal:
            return self._save(journal, audio, restart, target)

    def _save(
        self, journal: Journal, audio: str | Path | None, restart: bool, target: float | None
    ) -> Report:
        sound = _audio(audio)
        resume = journal.begin(self._run_inputs(sound), restart=restart)
        if not resume.ready:
            find_ffmpeg()  # missing: said now, not after the first chunk
            self._require_space(journal, resume)
            self._make(journal, resume)
            self._prepare(journal, sound, target)
        self._tell("finish", self.frames)
        journal.publish()
        return _load_report(journal.files.report_json)

    def _make(self, journal: Journal, resume: Resume) -> None:
        """Chunk by chunk: segment, then context, then records, which commit it."""
        done = self._done(resume)
        if done:
            logger.info("resuming after %d of %d frames", done, self.frames)
            for stage in STAGES:
                self._tell(stage, done)
        for made in self.made(resume):
            began = time.perf_counter()
            self._encode(journal.segment(made.span.index), made.chunk.frames)
            seconds = {**made.records.seconds, "encode": time.perf_counter() - began}
            journal.commit(made.span.index, made.tail, replace(made.records, seconds=seconds))
            self._tell("encode", made.span.end)

    def _encode(self, path: Path, frames: Tensor) -> None:
        """Write one segment; should ffmpeg die, once more, since the frames are at hand."""
        try:
            self._write(path, frames)
        except EncoderError as error:
            logger.warning("%s; trying once more", str(error).rstrip("."))
            self._write(path, frames)

    def _write(self, path: Path, frames: Tensor) -> None:
        with SegmentWriter(path, self.size, self.fps, crf=self.pipeline.recipe.encode.crf) as writer:
            writer.write(frames)

    def _prepare(self, journal: Journal, audio: Path | None, target: float | None) -> None:
        """Join the segments and write the report, inside the journal's folder."""
        chunks, judge = len(self._plan()), self.pipeline.parts.judge
        video, report_json, report_html = journal.prepared()
        join_segments(journal.segments(chunks), video, fps=self.fps, audio=audio, metadata=self._metadata())
        report = build_report(
            journal.records(chunks),
            settings=self._settings(target),
            identities=self.identities,
            thresholds=judge.thresholds,
            fps=self.fps,
            frames=self.frames,
            kind="generate",
            encoder=judge.encoder,
        )
        write_report(report, report_json, report_html)

    def _done(self, resume: Resume) -> int:
        """Frames in the committed chunks."""
        return sum(span.length for span in self._plan()[: resume.chunks])

    def _plan(self) -> tuple[Span, ...]:
        backbone = self.pipeline.parts.backbone
        return plan_chunks(self.frames, first=backbone.first_chunk, chunk=backbone.chunk)

    def _run_inputs(self, audio: Path | None) -> dict[str, Any]:
        """Everything that decides the bytes of the clip."""
        return {
            "facelock": __version__,
            "inputs": {**self.job.inputs(), "audio": sha256_file(audio) if audio else None},
            "faces": [_fingerprint(identity) for identity in self.identities],
            "recipe": self.pipeline.recipe.settings(),
            "weights": dict(self.pipeline.parts.weights),
            "device": self.pipeline.parts.device,
        }

    def _settings(self, target: float | None) -> dict[str, Any]:
        recipe = self.pipeline.recipe
        return {
            "facelock": __version__,
            "inputs": dict(self.job.inputs()),
            "target": recipe.target if target is None else target,
            "recipe": recipe.settings(),
            "weights": dict(self.pipeline.parts.weights),
            "device": self.pipeline.parts.device,
        }

    def _metadata(self) -> Mapping[str, str]:
        name, seed = self.pipeline.recipe.name, self.job.seed
        return {
            "title": self.job.prompt,
            "comment": f"AI-generated video, made by FaceLock {__version__} with recipe {name}, seed {seed}.",
            "ai_generated": "true",
            "facelock_version": __version__,
            "facelock_recipe": name,
            "facelock_seed": str(seed),
        }

    def _require_space(self, journal: Journal, resume: Resume) -> None:
        """Segments that are missing, the joined clip, and a fifth on top."""
        height, width = self.size
        low = self.pipeline.recipe.blueprint
        contexts = 5 * low.context * 3 * low.size[0] * low.size[1] * 4
        frame = height * width * BYTES_PER_PIXEL + BYTES_PER_FRAME
        missing = 2 * self.frames - self._done(resume)
        require_space(journal.folder, int(1.2 * (missing * frame + contexts)))

    def _tell(self, stage: str, done: int) -> None:
        if self.progress:
            self.progress(stage, done, self.frames)


def require_target(report: Report, target: float) -> None:
    """Raise :class:`IdentityMissedError`, saying how many frames, when ``report`` misses ``target``."""
    misses = report.misses(target)
    if misses:
        raise IdentityMissedError(
            f"{misses} of the clip's {report.frames} frames do not match the identity, more than a target of "
            f"{target:.1%} allows. Clip and report are complete; try another seed or reference picture."
        )


def _audio(audio: str | Path | None) -> Path | None:
    """The track to mux, checked before hours of work depend on it."""
    if audio is None:
        return None
    check_audio(Path(audio))
    return Path(audio)


def _fingerprint(identity: Identity) -> dict[str, Any]:
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
