"""Writing to a disk that may be full, fail, or be shared: atomic files, one lock per output."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from facelock.errors import InputError, OutputBusyError, StorageError

PICTURES = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""Kinds of pictures that are opened: Pillow's other readers start programs (EPS) or have had more holes than users."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def storage_error(error: OSError, path: Path) -> Exception:
    """The error that a failed write of ``path`` should be raised as."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageError(
            f"{path}: the disk is full. Make room and give the same command again; finished work is kept."
        )
    if error.errno in _FORBIDDEN:
        return InputError(f"{path}: cannot be written ({reason}). Choose another place with -o.")
    return StorageError(f"{path}: writing failed ({reason}). Check the disk and give the same command again.")


def open_input(path: Path, wanted: str) -> io.BufferedReader:
    """Open a regular, non-empty file that somebody gave; never waits for a pipe.

    Raises ``InputError`` which ends in what was ``wanted``, ``"a picture"`` say.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise InputError(f"{path}: is a folder. Give {wanted} in it.")
        if not stat.S_ISREG(kind):
            raise InputError(f"{path}: is not a regular file. Give {wanted}.")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: is empty. Give {wanted}.")
        return path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file. Check the name.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}). Check its name and permissions.") from error


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Map every ``OSError`` of the block to one of our own about ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, path: Path) -> None:
    """Flush ``temporary`` to the disk, give it its final name, and flush the folder. Raises ``StorageError``."""
    with storage(path):
        handle = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
        sync_folder(path.parent)


def atomic_write(path: str | Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` so that ``path`` holds either all of it or what it held before. Raises ``StorageError``.

    Nobody but its owner can read a ``private`` file.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        with storage(path):
            mode = 0o600 if private else 0o644
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            try:
                if private:
                    os.fchmod(handle, mode)  # a file that was left over keeps its mode otherwise
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
                os.fsync(handle)
            finally:
                os.close(handle)
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def lock_file(path: str | Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; it vanishes with the process, however that ends.

    Raises ``OutputBusyError`` at once when another process holds it.
    """
    path = Path(path)
    with storage(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputBusyError(
                f"{path.parent}: another run is writing this output. Wait for it, or choose another -o."
            ) from None
        yield
    finally:
        os.close(handle)
