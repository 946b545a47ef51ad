"""Where a clip's files go, whether they may, and who holds them.

::

    files = ClipFiles(checked("clip.mp4"))
    refuse_existing(files, overwrite=False, restart=False)
    with locked(files.partial): ...

Nothing here imports torch: an output that cannot be used is refused before anything is loaded.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from facelock.errors import InputError, OutputBusyError
from facelock.files import storage_error


@dataclass(frozen=True)
class ClipFiles:
    """The files that one clip leaves."""

    video: Path

    @property
    def report_json(self) -> Path:
        """``clip.mp4`` → ``clip.report.json``."""
        return self.video.with_name(f"{self.video.stem}.report.json")

    @property
    def report_html(self) -> Path:
        """``clip.mp4`` → ``clip.report.html``."""
        return self.video.with_name(f"{self.video.stem}.report.html")

    @property
    def partial(self) -> Path:
        """``clip.mp4`` → ``clip.mp4.partial``, there while the run is unfinished."""
        return self.video.with_name(f"{self.video.name}.partial")

    def published(self) -> tuple[Path, Path, Path]:
        """Where :data:`RESULTS` go, in the same order."""
        return self.video, self.report_json, self.report_html


def checked(path: str | Path) -> Path:
    """The output's absolute path, or :class:`InputError` when it cannot become a clip."""
    text = str(path)
    if not text or "\0" in text or any(ord(character) < 32 for character in text):
        raise InputError(f"The output name {text!r} is not a file name. Give a name such as clip.mp4.")
    video = Path(path).absolute()
    if video.suffix.lower() != ".mp4" or not video.stem.strip(". "):
        raise InputError(f"{path}: the output must end in .mp4. Give a name such as clip.mp4.")
    with _writable(path):
        if video.is_dir():
            raise InputError(f"{path}: is a folder. Give the name of a file in it.")
        if not video.parent.is_dir():
            raise InputError(f"{path}: the folder {video.parent} does not exist. Make it, or give another.")
        if not os.access(video.parent, os.W_OK | os.X_OK):
            raise InputError(f"{path}: the folder {video.parent} cannot be written to. Give another.")
        with suppress(FileNotFoundError):
            ClipFiles(video).partial.lstat()  # raises for a name that is too long
    return video


def refuse_existing(files: ClipFiles, overwrite: bool, restart: bool) -> None:
    """Existing results are an error, unless they come from a run that was killed while publishing."""
    publishing = (files.partial / "publish.json").exists() and not restart
    existing = [path for path in files.published() if os.path.lexists(path)]
    if existing and not overwrite and not publishing:
        raise InputError(f"{existing[0]}: exists already. Give another name, or --overwrite to replace it.")


_BAD_PLACE = {
    getattr(errno, name)
    for name in ["ENAMETOOLONG", "EROFS", "EINVAL", "ELOOP", "EACCES", "EPERM", "EEXIST", "ENOTDIR", "ENOENT"]
}
"""What the file system answers when the place, not the disk, is wrong."""


@contextmanager
def _writable(path: str | Path) -> Iterator[None]:
    """Turn what is the user's choice of place into ``InputError``, the rest into ``StorageError``."""
    try:
        yield
    except OSError as error:
        if error.errno in _BAD_PLACE:
            raise InputError(f"{path}: cannot be written ({error.strerror}). Give another place.") from error
        raise storage_error(error, Path(path)) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make ``folder`` if need be and hold it with flock; a kill lets go of it by itself."""
    descriptor = _lock(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int:
    while True:
        with _writable(folder):
            folder.mkdir(exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputBusyError(
                f"{folder}: another run is writing it. Wait for it or stop it first."
            ) from error
        except FileNotFoundError:
            pass  # another run finished between our mkdir and our lock: look again
        os.close(descriptor)
