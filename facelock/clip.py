"""A clip to be made: iterate it for frames, or save it as a file with a report, resumably.

::

    clip = facelock.generate("a woman talking", "maria.png", seconds=30)
    for chunk in clip: ...                  # nothing is written
    report = clip.save("clip.mp4")          # clip.mp4, clip.report.json, clip.report.html
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelock import __version__
from facelock.errors import IdentityMissedError
from facelock.job import Job, Span, check_size, plan_chunks
from facelock.journal import Journal, Resume, claim
from facelock.making import BYTES_PER_FRAME, BYTES_PER_PIXEL, Making, fingerprint
from facelock.protocols import Progress
from facelock.report import Report, build_report, write_report
from facelock.runtime import require_space
from facelock.types import Chunk, Identity
from facelock.video.writing import SegmentWriter, Soundtrack, check_audio, join_segments
from facelock.weights import sha256_file

if TYPE_CHECKING:
    from torch import Tensor

    from facelock.pipeline import Made, Pipeline

STAGES = ("blueprint", "lock", "restore", "judge", "encode")
"""What ``progress`` hears of for each chunk, in order; ``finish`` comes last."""


class Clip(Making):
    """What :func:`facelock.generate` returns: a clip that is made when it is iterated or saved.

    Both can be done any number of times; each makes the same frames again.
    """

    stages = STAGES

    def __init__(
        self, pipeline: Pipeline, job: Job, identities: tuple[Identity, ...], progress: Progress | None = None
    ) -> None:
        self.pipeline = pipeline
        self.job = job
        self.identities = identities
        self.progress = progress
        self.overlap = pipeline.recipe.speed.choices().overlap
        self.encoder = pipeline.recipe.encode.encoder

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
        """Make the clip and yield its final frames chunk by chunk, on the CPU; nothing is written."""
        for made in self.made():
            yield made.chunk.cpu()

    def made(self, resume: Resume | None = None) -> Generator[Made, None, None]:
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
        inputs = self._run_inputs(sound)
        return self._run(journal, inputs, restart, lambda: self._prepare(journal, sound, target))

    def _write(self, path: Path, frames: Tensor) -> None:
        crf, encoder, device = self.pipeline.recipe.encode.crf, self.encoder, frames.device
        with SegmentWriter(path, self.size, self.fps, crf=crf, encoder=encoder, device=device) as writer:
            writer.write(frames)

    def _prepare(self, journal: Journal, audio: Path | None, target: float | None) -> None:
        """Join the segments and write the report, inside the journal's folder."""
        chunks, judge = len(self._plan()), self.pipeline.parts.judge
        video, report_json, report_html = journal.prepared()
        join_segments(
            journal.segments(chunks),
            video,
            fps=self.fps,
            audio=audio,
            soundtrack=None if audio else _soundtrack(journal, chunks),
            metadata=self._metadata(),
        )
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
            "faces": [fingerprint(identity) for identity in self.identities],
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
        """Segments that are missing with their sound, the joined clip, and a fifth on top."""
        height, width = self.size
        low = self.pipeline.recipe.blueprint
        contexts = 5 * low.context * 3 * low.size[0] * low.size[1] * 4
        heard = getattr(self.pipeline.parts.backbone, "sample_rate", 0) / self.fps * 2 * 4  # stereo, float32
        frame = height * width * BYTES_PER_PIXEL + BYTES_PER_FRAME + heard
        missing = 2 * self.frames - self._done(resume)
        require_space(journal.folder, int(1.2 * (missing * frame + contexts)))


_NEXT = {
    "generate": "Clip and report are complete; try another seed or reference picture.",
    "lock": "Clip and report are complete; try other reference pictures, or another aligner.",
    "verify": "The report is complete and says where.",
}
"""What to do about a missed target, by the report's kind."""


def require_target(report: Report, target: float) -> None:
    """Raise :class:`IdentityMissedError`, saying how many frames, when ``report`` misses ``target``."""
    misses = report.misses(target)
    if misses:
        raise IdentityMissedError(
            f"{misses} of the clip's {report.frames} frames do not match the identity, more than a target of "
            f"{target:.1%} allows. {_NEXT[report.kind]}"
        )


def _soundtrack(journal: Journal, chunks: int) -> Soundtrack | None:
    """What the blueprint wrote to be heard, read chunk by chunk; None of a silent one."""
    from facelock.sound import interleaved, joined

    first = next(journal.sounds(chunks), None)
    if first is None:
        return None
    pieces = (interleaved(piece) for piece in joined(journal.sounds(chunks)))
    return Soundtrack(pieces, first.rate, len(first.samples))


def _audio(audio: str | Path | None) -> Path | None:
    """The track to mux, checked before hours of work depend on it."""
    if audio is None:
        return None
    check_audio(Path(audio))
    return Path(audio)
