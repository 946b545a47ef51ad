"""What people call from Python: :func:`generate`, :func:`lock`, :func:`verify`, :func:`load_identity`.

::

    import facelock

    facelock.generate("a woman talking in a forest", "maria.png", seconds=10).save("clip.mp4")
    facelock.lock("other.mp4", "maria.png").save("fixed.mp4")
    report = facelock.verify("clip.mp4", "maria.png")
    maria = facelock.load_identity("maria.png")     # read once, use for many clips

For many clips keep a :class:`facelock.Pipeline`, whose models stay loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from facelock.clip import Clip
from facelock.errors import ConfigError, InputError
from facelock.job import Job
from facelock.pipeline import Pipeline
from facelock.protocols import Progress
from facelock.recipe import Recipe
from facelock.report import Report, build_report
from facelock.types import ChunkRecords, Identity
from facelock.video import probe, read_chunks

if TYPE_CHECKING:
    from facelock.footage import Footage

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
    progress: Progress | None = None,
) -> Clip:
    """Describe a clip of ``prompt`` in which every face is ``identity``; iterate it or save it.

    ``identity`` is a picture's path, a PIL picture, an :class:`Identity`, or a list of them (one per
    character, left to right). ``seconds`` up to a day; ``seed`` 0 is a seed like any other. ``size`` is the
    side or (height, width) in pixels of the final frames. ``lock=False`` or ``restore=False`` leave a stage
    out, for comparison. ``faces`` says which face of a picture
    with several, counted from 0. ``progress(stage, done_frames, total_frames)`` is called after each step.

    Raises ``InputError`` for a prompt, length, size or picture that cannot be used, ``ConfigError`` for a
    recipe, ``ModelError`` or ``DeviceError`` when the machine cannot run it.
    """
    Job(prompt, seconds, seed).check()
    pipeline = Pipeline.from_recipe(recipe, device)
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


def lock(
    video: str | Path,
    identity: Any | Sequence[Any],
    *,
    recipe: str | Path | Recipe = "miniature",
    device: str = "auto",
    aligner: str | None = None,
    packs: str | None = None,
    judge: str | None = None,
    target: float | None = None,
    restore: bool = True,
    who: Literal["auto", "alike"] = "auto",
    replace: Any | Sequence[Any] | None = None,
    faces: Sequence[int | None] = (),
    progress: Progress | None = None,
) -> Footage:
    """Describe ``video`` with every face of a character made ``identity``; iterate it or save it.

    ``identity`` is a picture, a ``.face`` file, an :class:`Identity`, or a list of them. ``packs`` and ``judge`` name
    recognisers as :func:`facelock.perception.open_perception` takes them (default: those that made the identity, else
    the recipe's); ``aligner`` the kind of aligner (default: the recipe's with its own recognisers, else ``warp``).
    Whose face becomes the character's: the person who resembles the reference; with ``who="auto"`` else the only one
    there is (as many as there are characters, left to right); or the one whom the picture ``replace`` shows (one per
    character). Other people's faces keep every pixel. ``restore=False`` leaves the restoration out, ``faces`` says
    which face of a picture with several, ``target`` is the share in [0, 1] of frames that should match.

    Raises ``InputError`` for a video or picture that cannot be used, ``ConfigError``, ``ModelError``, ``DeviceError``.
    """
    from facelock.footage import Footage
    from facelock.lock_parts import open_parts

    probe(Path(video))
    if who not in ("auto", "alike"):
        raise ConfigError(f"who is {who!r}. Give 'auto' or 'alike'.")
    given = [_opened(each) for each in (identity if isinstance(identity, list | tuple) else [identity])]
    made_by = next((each.perception for each in given if isinstance(each, Identity)), ("", ""))
    parts = open_parts(
        recipe,
        device,
        aligner=aligner,
        packs=packs or made_by[0] or None,
        judge=judge or (made_by[1] if not packs else None) or None,
        restore=restore,
    )
    cast = parts.reader.identities(given, faces)
    shown = parts.reader.identities(replace) if replace is not None else ()
    return Footage(parts, video, cast, replace=shown, swap=who == "auto", target=target, progress=progress)


def _opened(reference: Any) -> Any:
    """A ``.face`` file as the identity in it; anything else as it is."""
    if isinstance(reference, str | Path) and Path(reference).suffix == ".face":
        return import_module("facelock.identity_file").read_identity(reference)
    return reference


def load_identity(
    picture: Any,
    *,
    recipe: str | Path | Recipe = "miniature",
    device: str = "auto",
    name: str | None = None,
    face: int | None = None,
) -> Identity:
    """Read one character from a picture (path or PIL) for the encoders of ``recipe``.

    ``face`` picks one of several faces, counted from 0, left to right. Raises ``InputError`` when there is
    no face that can be used, saying why.
    """
    return Pipeline.from_recipe(recipe, device).parts.identity(picture, name=name, face=face)


def verify(
    video: str | Path,
    identity: Any | Sequence[Any],
    *,
    recipe: str | Path | Recipe = "miniature",
    device: str = "auto",
    target: float | None = None,
    faces: Sequence[int | None] = (),
    progress: Progress | None = None,
) -> Report:
    """Measure a finished clip, of any origin, against its reference with the recipe's judge.

    Every frame and character gets a row; nothing is written (see :func:`facelock.report.write_report`).
    ``target`` is the share in [0, 1] of frames that should match, recorded in the report; ``faces`` picks a
    face per picture. Raises ``InputError`` when video or picture cannot be read.
    """
    info = probe(Path(video))
    pipeline = Pipeline.from_recipe(recipe, device)
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
    if not stem.parent.is_dir() or not os.access(stem.parent, os.W_OK):
        raise InputError(f"{stem.parent}: cannot be written to. Give another place with -o.")
    return stem.with_name(f"{stem.name}.report.json"), stem.with_name(f"{stem.name}.report.html")


def _was_generated(report: Path) -> bool:
    try:
        return json.loads(report.read_bytes()).get("kind") in ("generate", "lock")
    except (OSError, ValueError, AttributeError):
        return False
