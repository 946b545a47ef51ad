"""The folder of a film: which takes were made, which of them each shot uses; readable at any moment.

::

    film/
      board.json              the storyboard as it was rendered last
      film.json               every take of every shot and its outcome
      takes/<key>.mp4 ...     takes, named by a digest of all that decides their bytes
      shots/s010.mp4 ...      the accepted take of each shot, with its reports (hard links)
      film.mp4, film.otio ... the edit

Nothing here imports torch: ``facelock storyboard status`` answers at once.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from facelock.errors import (
    EnvironmentFailure,
    FaceLockError,
    IdentityMissedError,
    InputError,
    OutputBusyError,
)
from facelock.files import atomic_write, storage, sync_folder
from facelock.output import ClipFiles, locked
from facelock.storyboard import Storyboard
from facelock.storyboards.events import Outcome

SCHEMA = "facelock.film.v1"
_SEVERITY = (1, 3, 2, 4)
"""Exit codes of failed shots; the first that occurs is the film's."""
_ERRORS: Mapping[int, type[FaceLockError]] = {
    2: InputError, 3: EnvironmentFailure, 4: IdentityMissedError,
}  # fmt: skip


@dataclass(frozen=True)
class Take:
    """One attempt at a shot."""

    number: int
    """From 0; each has another seed."""
    seed: int
    key: str
    """Names its files."""
    outcome: Outcome
    share: float | None = None
    """Share of frames that show their characters; None when it failed."""
    misses: int = 0
    """Frames that do not."""
    sentence: str = ""
    """The report's verdict, or why it failed."""
    exit_code: int = 0
    """Of the error, where it failed."""


@dataclass(frozen=True)
class ShotRecord:
    """What was done for one shot so far."""

    base: str = ""
    """Key of take 0: when the shot's inputs change, so does this, and the takes no longer count."""
    first: int = 0
    """First take that counts as new; ``retry`` moves it."""
    takes: tuple[Take, ...] = ()
    vram: int | None = None
    """GiB of GPU memory that were planned for when it was made last; None: as its recipe says."""

    def take(self, number: int) -> Take | None:
        """The take of that number, if it was tried."""
        return next((take for take in self.takes if take.number == number), None)

    def with_take(self, take: Take) -> ShotRecord:
        """The same with ``take`` in the place of one of its number."""
        others = [each for each in self.takes if each.number != take.number]
        return replace(self, takes=tuple(sorted([*others, take], key=lambda each: each.number)))

    def accepted(self, target: float) -> Take | None:
        """The last take that meets ``target``."""
        return next(
            (take for take in reversed(self.takes) if take.share is not None and take.share >= target), None
        )


@dataclass(frozen=True)
class ShotResult:
    """How a shot came out."""

    name: str
    outcome: Outcome
    takes: int
    """Tried so far."""
    take: Take | None
    """The accepted one, else the last that was tried; None: none was."""
    video: Path | None
    """``shots/<name>.mp4``; None unless accepted."""
    report: Path | None


@dataclass(frozen=True)
class Film:
    """What :func:`facelock.render` returns: every shot's outcome, and the files of the edit."""

    folder: Path
    shots: tuple[ShotResult, ...]
    files: Mapping[str, Path] = field(default_factory=dict)
    """``video``, ``otio``, ``edl``, ``xml``, ``sheet``, ``report``, ``page``: those that were written."""

    @property
    def failed(self) -> tuple[ShotResult, ...]:
        """Shots without an accepted take."""
        return tuple(shot for shot in self.shots if shot.outcome != "accepted")

    @property
    def exit_code(self) -> int:
        """0 when every shot is accepted; 4 when only targets were missed; else 1, 3 or 2, the worst that was."""
        codes = {4 if shot.outcome == "missed" else _code(shot) for shot in self.failed}
        return next((code for code in _SEVERITY if code in codes), 0)

    def require(self) -> None:
        """Raise an error with :attr:`exit_code` that names every shot without an accepted take, if any."""
        if not self.failed:
            return
        told = "\n  ".join(
            f"{shot.name}: {shot.take.sentence if shot.take else 'not made'}" for shot in self.failed
        )
        kind = _ERRORS.get(self.exit_code, FaceLockError)
        raise kind(
            f"{self.folder}: {len(self.failed)} of {len(self.shots)} shots have no take that can be used, so "
            f"there is no film.mp4.\n  {told}\n"
            "The other shots are kept; correct these, or give 'facelock storyboard retry'."
        )


def _code(shot: ShotResult) -> int:
    code = shot.take.exit_code if shot.take else 1
    return code if code in _SEVERITY else 1


class FilmFolder:
    """The files of one film; hold it with :meth:`locked` before anything is written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.takes = self.folder / "takes"
        self.shots = self.folder / "shots"
        self.board = self.folder / "board.json"
        self.state = self.folder / "film.json"
        self.records: dict[str, ShotRecord] = {}
        self.edit = ""
        """Digest of what the edit was made of; empty while it is not whole."""

    def prepare(self) -> None:
        """Make the folders, and read what was done before. Raises ``InputError`` for a damaged ``film.json``."""
        for folder in (self.takes, self.shots):
            with storage(folder):
                folder.mkdir(exist_ok=True)
        self.read()

    def read(self) -> None:
        """Read ``film.json`` where it is."""
        if not self.state.exists():
            return
        try:
            stored = json.loads(self.state.read_bytes())
            self.records = {name: _record(record) for name, record in stored["shots"].items()}
            self.edit = str(stored.get("edit", ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.state}: is damaged ({error}). Remove it and render again; takes are kept."
            ) from error

    def write(self) -> None:
        """Write ``film.json``, whole or not at all."""
        data = {
            "schema": SCHEMA,
            "edit": self.edit,
            "shots": {name: asdict(record) for name, record in self.records.items()},
        }
        atomic_write(self.state, (json.dumps(data, indent=1) + "\n").encode())

    def load_board(self, *, checked: bool = True) -> Storyboard:
        """The storyboard that was rendered here last, whether or not its files are still there unless ``checked``.

        Raises ``InputError`` where none was, ``ConfigError`` for one with mistakes.
        """
        if not self.board.is_file():
            raise InputError(
                f"{self.folder}: no film was begun here. Give 'facelock storyboard render' first."
            )
        if checked:
            return Storyboard.load(self.board)
        try:
            return Storyboard.from_data(json.loads(self.board.read_bytes()), self.folder)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.board}: is damaged. Render the storyboard again.") from error

    def files(self, key: str) -> ClipFiles:
        """Files of a take."""
        return ClipFiles(self.takes / f"{key}.mp4")

    def is_made(self, key: str) -> bool:
        """Whether the take of that key is finished."""
        files = self.files(key)
        return files.video.is_file() and files.report_json.is_file() and not files.partial.exists()

    def has_accepted(self, name: str, target: float) -> bool:
        """Whether an earlier run left a take of the shot that meets ``target``; its inputs may have changed since."""
        take = self.records.get(name, ShotRecord()).accepted(target)
        return take is not None and self.is_made(take.key)

    def published(self, name: str) -> ClipFiles:
        """Files of a shot."""
        return ClipFiles(self.shots / f"{name}.mp4")

    def publish(self, name: str, key: str) -> None:
        """Make the take ``key`` the shot ``name``."""
        for source, target in zip(self.files(key).published(), self.published(name).published(), strict=True):
            if source.is_file() and not (target.is_file() and target.samefile(source)):
                _link(source, target)

    def withdraw(self, names: Iterable[str]) -> None:
        """Remove the shots of those names: none of their takes may be used any more."""
        for name in names:
            for path in self.published(name).published():
                with storage(path):
                    path.unlink(missing_ok=True)

    def busy(self) -> bool:
        """Whether a run holds the folder at this moment."""
        try:
            with locked(self.folder):
                return False
        except OutputBusyError:
            return True


def require_free(folder: str | Path) -> None:
    """Raise ``OutputBusyError`` while a run holds ``folder``: at once, before anything is loaded."""
    if Path(folder).is_dir():
        with locked(Path(folder).absolute()):
            pass


def _record(stored: Mapping[str, Any]) -> ShotRecord:
    takes = tuple(Take(**take) for take in stored["takes"])
    vram = stored.get("vram")
    return ShotRecord(str(stored["base"]), int(stored["first"]), takes, None if vram is None else int(vram))


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none; whole or not at all."""
    temporary = target.with_name(f"{target.name}.part")
    with storage(target):
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
        sync_folder(target.parent)


def status_lines(folder: str | Path) -> list[str]:
    """One line per shot of the film in ``folder``, then one on the whole; loads no model.

    Raises ``InputError`` where no film was begun.
    """
    from facelock.storyboards.plan import Plan

    film = FilmFolder(folder)
    units = Plan.of(film.load_board(checked=False)).units
    film.read()
    busy = film.busy()
    results = [result_of(film, unit.name, unit.target) for unit in units]
    lines = [
        f"{unit.index + 1:3d}  {result.name:<12} {_state(result)}"
        for unit, result in zip(units, results, strict=True)
    ]
    running = [_partial(path) for path in sorted(film.takes.glob("*.mp4.partial"))]
    done = sum(result.outcome == "accepted" for result in results)
    made = "film.mp4 is made" if (film.folder / "film.mp4").is_file() else "no film.mp4 yet"
    held = "a run is going on" if busy else "no run is going on"
    return [*lines, *running, f"{done} of {len(results)} shots accepted; {made}; {held}"]


def _state(result: ShotResult) -> str:
    if result.take is None:
        return "waits"
    take = result.take
    share = "" if take.share is None else f", {take.share:.1%} of frames"
    return f"{result.outcome}, take {take.number + 1}, seed {take.seed}{share}: {take.sentence}"


def _partial(path: Path) -> str:
    chunks = 0
    with suppress(OSError):
        chunks = len(list(path.glob("[0-9]*.json")))
    return f"     take {path.name.removesuffix('.mp4.partial')} is unfinished, {chunks} chunks are kept"


def result_of(film: FilmFolder, name: str, target: float) -> ShotResult:
    """How the shot ``name`` stands, measured against ``target``."""
    record = film.records.get(name, ShotRecord())
    accepted = record.accepted(target)
    last = record.takes[-1] if record.takes else None
    files = film.published(name)
    if accepted is None:
        outcome: Outcome = "missed" if last and last.share is not None else "failed"
        return ShotResult(name, outcome, len(record.takes), last, None, None)
    take = replace(accepted, outcome="accepted")
    return ShotResult(name, "accepted", len(record.takes), take, files.video, files.report_json)
