"""What people call from Python: :func:`generate`, :func:`verify`, :func:`load_identity`.

::

    import facelock

    facelock.generate("a woman talking in a forest", "maria.png", seconds=10).save("clip.mp4")
    report = facelock.verify("clip.mp4", "maria.png")
    maria = facelock.load_identity("maria.png")     # read once, use for many clips

For many clips keep a :class:`facelock.Pipeline`, whose models stay loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from facelock.clip import Clip
from facelock.errors import InputError
from facelock.job import Job
from facelock.pipeline import Pipeline
from facelock.protocols import Progress
from facelock.recipe import Recipe
from facelock.report import Report, build_report
from facelock.types import ChunkRecords, Identity
from facelock.video import probe, read_chunks

FRAMES_PER_READ = 24
"""Frames of a finished clip held at once by :func:`verify`."""


def generate(
    prompt: str,
    identity: Any | Sequence[Any],
    *,
    seconds: float,
    seed: int = 0,
    recipe: str | Path | Recipe = "miniature",
    size: int | tuple[int, int] | None = None,
    device: str = "auto",
    lock: bool = True,
    restore: bool = True,
    faces: Sequence[int | None] = (),
    commercial: bool = False,
    progress: Progress | None = None,
) -> Clip:
    """Describe a clip of ``prompt`` in which every face is ``identity``; iterate it or save it.

    ``identity`` is a picture's path, a PIL picture, an :class:`Identity`, or a list of them (one per
    character, left to right). ``seconds`` up to a day; ``seed`` 0 is a seed like any other. ``size`` is the
    side or (height, width) in pixels of the final frames. ``lock=False`` or ``restore=False`` leave a stage
    out, for comparison. ``faces`` says which face of a picture
    with several, counted from 0. ``commercial`` refuses weights whose licence does not allow commercial use.
    ``progress(stage, done_frames, total_frames)`` is called after each step.

    Raises ``InputError`` for a prompt, length, size or picture that cannot be used, ``ConfigError`` for a
    recipe, ``ModelError`` or ``DeviceError`` when the machine cannot run it.
    """
    Job(prompt, seconds, seed).check()
    pipeline = Pipeline.from_recipe(recipe, device, commercial)
    return pipeline.generate(
        prompt,
        identity,
        seconds=seconds,
        seed=seed,
        size=size,
        lock=lock,
        restore=restore,
        faces=faces,
        progress=progress,
    )


def load_identity(
    picture: Any,
    *,
    recipe: str | Path | Recipe = "miniature",
    device: str = "auto",
    name: str | None = None,
    face: int | None = None,
    commercial: bool = False,
) -> Identity:
    """Read one character from a picture (path or PIL) for the encoders of ``recipe``.

    ``face`` picks one of several faces, counted from 0, left to right; ``commercial`` refuses weights whose
    licence does not allow commercial use. Raises ``InputError`` when there is no face that can be used, saying
    why.
    """
    return Pipeline.from_recipe(recipe, device, commercial).parts.identity(picture, name=name, face=face)


def verify(
    video: str | Path,
    identity: Any | Sequence[Any],
    *,
    recipe: str | Path | Recipe = "miniature",
    device: str = "auto",
    target: float | None = None,
    faces: Sequence[int | None] = (),
    commercial: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure a finished clip, of any origin, against its reference with the recipe's judge.

    Every frame and character gets a row; nothing is written (see :func:`facelock.report.write_report`).
    ``target`` is the share in [0, 1] of frames that should match, recorded in the report; ``faces`` picks a
    face per picture; ``commercial`` refuses weights whose licence does not allow commercial use. Raises
    ``InputError`` when video or picture cannot be read, ``ConfigError`` for a refused weight.
    """
    info = probe(Path(video))
    pipeline = Pipeline.from_recipe(recipe, device, commercial)
    cast = pipeline.identities(identity, faces)
    records = list(_measure(pipeline, Path(video), cast, info.frames, progress))
    frames = sum(record.length for record in records)
    return build_report(
        records,
        settings={
            "video": Path(video).name,
            "recipe": pipeline.recipe.settings(),
            "weights": dict(pipeline.parts.weights),
            "target": pipeline.recipe.target if target is None else target,
        },
        identities=cast,
        thresholds=pipeline.parts.judge.thresholds,
        fps=info.fps,
        frames=frames,
        kind="verify",
        encoder=pipeline.parts.judge.encoder,
    )


def _measure(
    pipeline: Pipeline, video: Path, cast: Sequence[Identity], total: int, progress: Progress | None
) -> Iterator[ChunkRecords]:
    judge, before = pipeline.parts.judge, None
    for chunk in read_chunks(video, FRAMES_PER_READ):
        rows = tuple(judge.measure(chunk.frames, cast, start=chunk.start, before=before))
        before = chunk.frames[-1]
        faces = judge.thumbnails(chunk.frames, rows, start=chunk.start)
        yield ChunkRecords(chunk.start, len(chunk), rows, thumbnails=faces)
        if progress:
            progress("judge", chunk.start + len(chunk), total)


def verify_paths(video: str | Path, prefix: str | Path | None = None) -> tuple[Path, Path]:
    """Where the report on ``video`` goes, as JSON and HTML: beside it, or to ``prefix``.

    A report that was written while the clip was made holds more than a measurement can, so it is not
    replaced: the new one is then called ``clip.verify.report.json``.
    """
    if prefix is not None:
        stem = Path(prefix)
    else:
        stem = Path(video).with_suffix("")
        if _was_generated(stem.with_name(f"{stem.name}.report.json")):
            stem = stem.with_name(f"{stem.name}.verify")
    try:
        there = stem.parent.is_dir()
    except OSError:  # a name too long
        there = False
    if not there and prefix is None:
        raise InputError(f"{str(video)[:200]}: there is no such file. Give a video file on this machine.")
    if not there or not os.access(stem.parent, os.W_OK):
        raise InputError(f"{stem.parent}: cannot be written to. Give another place with -o.")
    return stem.with_name(f"{stem.name}.report.json"), stem.with_name(f"{stem.name}.report.html")


def _was_generated(report: Path) -> bool:
    try:
        return json.loads(report.read_bytes()).get("kind") == "generate"
    except (OSError, ValueError, AttributeError):
        return False
