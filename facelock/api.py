"""What people call from Python: :func:`generate`, :func:`lock`, :func:`verify`, :func:`create_identity` and
:func:`load_identity`.

::

    import facelock

    facelock.generate("a woman talking in a forest", "maria.png", seconds=10).save("clip.mp4")
    facelock.lock("other.mp4", "maria.png").save("fixed.mp4")
    report = facelock.verify("clip.mp4", "maria.png")
    maria = facelock.load_identity("maria.png")     # read once, use for many clips
    maria = facelock.create_identity(["a.jpg", "b.jpg", "c.jpg"], name="maria").identity

For many clips keep a :class:`facelock.Pipeline`, whose models stay loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from facelock.clip import Clip
from facelock.errors import ConfigError, InputError
from facelock.identity.enrol import create_identity as enrol
from facelock.identity.findings import Enrolment, check_name
from facelock.identity.storage import is_face_file, read_faces, save_identity, stored_identity
from facelock.job import Job
from facelock.lanes import ahead
from facelock.perception import MINIATURE, open_perception
from facelock.pipeline import Pipeline, checked_job
from facelock.protocols import Progress
from facelock.recipe import Recipe, load_recipe, tuned
from facelock.recipe.uses import REFERENCES, VERIFY, clip_uses
from facelock.report import Report, build_report
from facelock.report.explained import Watch, explained
from facelock.runtime import resolve_device
from facelock.types import ChunkRecords, Consent, Identity
from facelock.video.writing import VideoInfo, probe, read_chunks

if TYPE_CHECKING:
    from facelock.footage import Footage

__all__ = ["create_identity", "generate", "load_identity", "lock", "save_identity", "verify", "verify_paths"]

FRAMES_PER_READ = 24
"""Frames of a finished clip held at once by :func:`verify`, at most."""
DRAWN_ONLY = (
    "The bundled recognisers know drawn characters only; for photographs name others, such as "
    "--faces opencv:yunet+sface."
)
BYTES_PER_READ = 2**28
"""Memory that they may take; of large frames fewer are held."""


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
    vram: int | None = None,
    reference: bool = False,
    commercial: bool = False,
    progress: Progress | None = None,
) -> Clip:
    """Describe a clip of ``prompt`` in which every face is ``identity``; iterate it or save it.

    ``identity`` is a path (a picture or a ``.face`` file), a PIL picture, an :class:`Identity`, or a list of them
    (one per character, left to right). ``seconds`` up to a day; ``seed`` 0 is a seed like any other. ``size`` is the
    short side of the final frames in pixels, which keeps the recipe's shape, or (height, width), cut to that shape.
    ``lock=False`` or ``restore=False`` leave a stage out, for comparison. ``faces`` says which face of a picture
    with several, counted from 0. ``vram`` plans for so many GiB of GPU memory (8, 12, 16, 24, 48 or 80), and
    ``reference`` takes the plain code path without any of the recipe's [speed] choices, for comparison.
    ``commercial`` refuses weights whose licence does not allow commercial use.
    ``progress(stage, done_frames, total_frames)`` is called after each step.

    Raises ``InputError`` for a prompt, length, size or picture that cannot be used, ``ConfigError`` for a
    recipe, ``ModelError`` or ``DeviceError`` when the machine cannot run it.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    checked_job(Job(prompt, seconds, seed, size).check(), chosen)
    used = clip_uses(lock=lock, restore=restore, guided=chosen.guidance is not None)
    pipeline = Pipeline.from_recipe(tuned(chosen, vram=vram, reference=reference), device, commercial, used)
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
    vram: int | None = None,
    commercial: bool = False,
    progress: Progress | None = None,
) -> Footage:
    """Describe ``video`` with every face of a character made ``identity``; iterate it or save it.

    ``identity`` is a picture, a ``.face`` file, an :class:`Identity`, or a list of them. ``packs`` and ``judge`` name
    recognisers as :func:`facelock.perception.open_perception` takes them (default: those that made the identity, else
    the recipe's); ``aligner`` the kind of aligner (default: the recipe's with its own recognisers, else ``warp``).
    Whose face becomes the character's: the person who resembles the reference; with ``who="auto"`` else the only one
    there is (as many as there are characters, left to right); or the one whom the picture ``replace`` shows (one per
    character). Other people's faces keep every pixel. ``restore=False`` leaves the restoration out, ``faces`` says
    which face of a picture with several, ``target`` is the share in [0, 1] of frames that should match; ``vram`` plans
    for so many GiB of GPU memory (8, 12, 16, 24, 48 or 80). ``commercial`` refuses weights whose licence does not
    allow commercial use.

    Raises ``InputError`` for a video or picture that cannot be used, ``ConfigError``, ``ModelError``, ``DeviceError``.
    """
    from facelock.footage import Footage
    from facelock.footage.parts import open_parts

    probe(Path(video))
    if who not in ("auto", "alike"):
        raise ConfigError(f"who is {who!r}. Give 'auto' or 'alike'.")
    identity = read_faces(identity)
    packs, judge = _recognisers(packs, judge, identity)
    chosen = tuned(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), vram=vram)
    parts = open_parts(
        chosen, device, aligner=aligner, packs=packs, judge=judge, restore=restore, commercial=commercial
    )
    cast = parts.reader.identities(identity, faces)
    shown = parts.reader.identities(replace) if replace is not None else ()
    return Footage(parts, video, cast, replace=shown, swap=who == "auto", target=target, progress=progress)


def load_identity(
    picture: Any,
    *,
    recipe: str | Path | Recipe | None = None,
    device: str = "auto",
    name: str | None = None,
    face: int | None = None,
    commercial: bool = False,
) -> Identity:
    """Read one character from a ``.face`` file, or from a picture (path or PIL) for the encoders of ``recipe``.

    A picture is read for the recipe ``miniature`` unless another is given; a ``.face`` file is checked against a
    recipe only where one is given. ``face`` picks one of several faces, counted from 0, left to right; ``commercial``
    refuses weights whose licence does not allow commercial use. Raises ``InputError`` when there is no face that can
    be used, saying why, or when its consent has ended.
    """
    if recipe is None and is_face_file(picture):
        return stored_identity(picture, name=name, face=face)
    pipeline = Pipeline.from_recipe(recipe or "miniature", device, commercial, REFERENCES)
    return pipeline.parts.identity(picture, name=name, face=face)


def create_identity(
    photos: Any | Sequence[Any],
    *,
    name: str,
    faces: str = "miniature",
    judge: str | None = None,
    device: str = "auto",
    keep_crops: bool = False,
    consent: Consent = Consent(),  # noqa: B008 - frozen
    face: int | Sequence[int | None] | None = None,
    commercial: bool = False,
    progress: Progress | None = None,
) -> Enrolment:
    """Make one identity of one or more photos of a person: ``create_identity(photos, name="maria").identity``.

    ``photos`` are paths or PIL pictures. ``faces`` and ``judge`` name the recognisers
    (:func:`facelock.perception.open_perception`). The result says of each photo what became of it; save it with
    :func:`save_identity`, its aligned crops only with ``keep_crops``. See
    :func:`facelock.identity.enrol.create_identity`.

    Raises ``InputError`` when no photo can be used or no person is in most of them, ``ConfigError``,
    ``ModelError`` or ``DeviceError`` for the recognisers.
    """
    given = photos if isinstance(photos, list | tuple) else [photos]
    check_name(name)
    perception = open_perception(faces, judge, device=resolve_device(device), commercial=commercial)
    try:
        return enrol(
            given, perception, name=name, keep_crops=keep_crops, consent=consent, face=face, progress=progress
        )
    except InputError as error:
        if faces != MINIATURE:
            raise
        raise InputError(f"{error} {DRAWN_ONLY}") from error


def verify(
    video: str | Path,
    identity: Any | Sequence[Any],
    *,
    recipe: str | Path | Recipe = "miniature",
    device: str = "auto",
    target: float | None = None,
    faces: Sequence[int | None] = (),
    packs: str | None = None,
    judge: str | None = None,
    explain: bool = False,
    commercial: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure a finished clip, of any origin, against its reference with a judge.

    Every frame and character gets a row; nothing is written (see :func:`facelock.report.write_report`).
    ``target`` is the share in [0, 1] of frames that should match, recorded in the report; ``faces`` picks a
    face per picture; ``commercial`` refuses weights whose licence does not allow commercial use.

    ``packs`` and ``judge`` name face packs in place of the recipe's (see :mod:`facelock.perception`): for real
    people ``packs="opencv:yunet+sface"``, ``judge="insightface:buffalo_l"``, say. Where neither is given, an
    :class:`Identity` is measured by what it was made with. ``explain`` adds which part of the face differs from the
    reference (``Character.differs``, docs/judge.md); only the bundled judge can say. Raises ``InputError`` when video
    or picture cannot be read, or an identity was made for another judge, ``ModelError`` when a pack is missing,
    ``ConfigError`` for a refused weight, or for a judge that cannot explain.
    """
    identity = read_faces(identity)
    info = probe(Path(video))
    pipeline = _watching(recipe, device, packs, judge, identity, commercial)
    cast = pipeline.identities(identity, faces)
    times = list[Fraction]()
    watch = Watch(pipeline.parts.judge.pack, cast) if explain else None  # type: ignore[attr-defined]
    records = list(_measure(pipeline, Path(video), cast, info, times, progress, watch))
    frames = sum(record.length for record in records)
    report = build_report(
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
        times=[float(time - times[0]) for time in times] if len(times) == frames else None,
    )
    return report if watch is None else explained(report, watch)


def _watching(
    recipe: str | Path | Recipe,
    device: str,
    packs: str | None,
    judge: str | None,
    identity: Any,
    commercial: bool = False,
) -> Pipeline:
    """The recipe's pipeline, seeing with the packs that were named, or else with those of the identities."""
    packs, judge = _recognisers(packs, judge, identity)
    if (packs or MINIATURE, judge or MINIATURE) == (MINIATURE, MINIATURE):
        return Pipeline.from_recipe(recipe, device, commercial, VERIFY)
    from facelock.assembly import Assembly

    chosen, where = recipe if isinstance(recipe, Recipe) else load_recipe(recipe), resolve_device(device)
    seen = open_perception(packs or MINIATURE, judge, device=where, commercial=commercial)
    return Pipeline(chosen, Assembly(chosen, str(where), commercial, seen, used=frozenset()))


def _recognisers(packs: str | None, judge: str | None, identity: Any) -> tuple[str | None, str | None]:
    """Pack and judge as they were named, or else those that made the identities; None: the recipe's."""
    if packs is not None:
        return packs, judge
    given = identity if isinstance(identity, list | tuple) else [identity]
    made = {each.perception for each in given if isinstance(each, Identity) and any(each.perception)}
    if len(made) > 1:
        raise InputError(
            "The identities were made with different face packs. Build them with the same --faces and --judge."
        )
    own, measured_by = next(iter(made), (None, None))
    return own, judge or measured_by


def _measure(
    pipeline: Pipeline,
    video: Path,
    cast: Sequence[Identity],
    info: VideoInfo,
    times: list[Fraction],
    progress: Progress | None,
    watch: Watch | None = None,
) -> Iterator[ChunkRecords]:
    """Measure the clip chunk by chunk; ``times`` gathers when each frame is shown, ``watch`` what differs."""
    judge, before, total = pipeline.parts.judge, None, info.frames
    held = BYTES_PER_READ // (12 * info.width * info.height)
    for chunk in ahead(read_chunks(video, max(1, min(FRAMES_PER_READ, held)), usual=True, raw=True)):
        times.extend(chunk.times)
        rows = tuple(judge.measure(chunk.frames, cast, start=chunk.start, before=before))
        before = chunk.frames[-1]
        if watch:
            watch.see(chunk.frames, rows, start=chunk.start)
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
        return json.loads(report.read_bytes()).get("kind") in ("generate", "lock")
    except (OSError, ValueError, AttributeError):
        return False
