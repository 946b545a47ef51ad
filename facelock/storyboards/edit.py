"""What becomes of the shots: the film, its timelines, the contact sheet and one report over everything."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facelock.files import atomic_write, storage
from facelock.protocols import FacePack
from facelock.storyboards.cut import Cut, Placed, place
from facelock.storyboards.film import Film, FilmFolder
from facelock.storyboards.likeness import Sample, sample_film
from facelock.storyboards.plan import Plan
from facelock.storyboards.sheet import write_sheet
from facelock.storyboards.soundtrack import sounds
from facelock.storyboards.splice import write_film
from facelock.storyboards.summary import film_report, render_page
from facelock.storyboards.takes import Worker
from facelock.storyboards.timeline import writable, write_timelines
from facelock.weights import sha256_file

logger = logging.getLogger(__name__)

NAMES = {
    "video": "film.mp4", "otio": "film.otio", "edl": "film.edl", "xml": "film.xml", "sheet": "film.sheet.png",
    "report": "film.report.json", "page": "film.report.html",
}  # fmt: skip
"""Files of the edit by kind."""


def make_edit(plan: Plan, folder: FilmFolder, film: Film, worker: Worker) -> dict[str, Path]:
    """Write what is missing of the edit and return the files by kind; ``folder`` must be held.

    ``film.mp4`` is written only when every shot has a take; one that is no longer this film's is removed.
    Raises ``EncoderError``, ``StorageError``, ``InputError``.
    """
    cut = place(plan, film)
    key = cut.key([sha256_file(path) for path in sounds(cut)])
    present = {kind: folder.folder / name for kind, name in NAMES.items() if (folder.folder / name).is_file()}
    if folder.edit == key and set(present) >= expected(cut):
        return present
    folder.edit = ""
    folder.write()
    for path in present.values():
        with storage(path):
            path.unlink(missing_ok=True)
    made = _write(cut, folder, film, worker)
    folder.edit = key
    folder.write()
    return made


def expected(cut: Cut) -> set[str]:
    """Kinds of files that the edit of ``cut`` has on this machine."""
    failed = any(shot.report is None for shot in cut.shots)
    return {"sheet", "report", "page"} | writable(cut) | (set() if failed else {"video"})


def _write(cut: Cut, folder: FilmFolder, film: Film, worker: Worker) -> dict[str, Path]:
    place_of = {kind: folder.folder / name for kind, name in NAMES.items()}
    made: dict[str, Path] = {}
    if not film.failed:
        with _workspace(folder.folder / "edit.partial") as workspace:
            encoded = write_film(cut, place_of["video"], workspace)
        logger.info("film.mp4 joined; %d of %d frames encoded again", encoded, cut.frames)
        made["video"] = place_of["video"]
    made |= write_timelines(cut, folder.folder)
    write_sheet(cut, place_of["sheet"])
    samples, encoder, threshold = compare(cut, worker)
    report = film_report(cut, samples, encoder, threshold)
    atomic_write(place_of["report"], report.to_json().encode())
    atomic_write(place_of["page"], render_page(report, NAMES["sheet"]).encode())
    return {**made, **{kind: place_of[kind] for kind in ("sheet", "report", "page")}}


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """An empty folder for pieces, removed at the end; what a killed run left in it goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    with storage(folder):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(cut: Cut, worker: Worker) -> tuple[list[Sample], str, float | None]:
    """Frames of all shots that one judge can compare, its id, and its threshold at FAR 1e-3.

    The judge is the first accepted shot's; shots that another one measured are left out, and that is said.
    """
    made = [shot for shot in cut.shots if shot.report]
    if not made or made[0].report is None:
        return [], "", None
    encoder, threshold = made[0].report.judge.encoder, made[0].report.judge.far_1e3
    parts = worker.pipeline(made[0].unit.recipe).parts
    pack: FacePack | None = getattr(parts.judge, "pack", None)
    others = [shot.unit.name for shot in made if shot.report and shot.report.judge.encoder != encoder]
    if others:
        logger.warning("%s were measured by another judge and are not compared", ", ".join(others))

    def pack_of(shot: Placed) -> FacePack | None:
        return pack if shot.report and shot.report.judge.encoder == encoder else None

    return sample_film(cut, pack_of), encoder, threshold
