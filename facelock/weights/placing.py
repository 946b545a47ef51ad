"""Where what is being fetched lies until it is whole, and how it then takes its name: never half a weight.

::

    with cache_errors(path):          # a failing disk, in one sentence
        swap(fresh, path)             # a whole folder takes the name of a damaged one
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facelock.errors import StorageError
from facelock.files import sync_folder
from facelock.weights.catalog import Entry
from facelock.weights.download import MIB, cache_error

MARGIN = 16 * MIB
"""Bytes that stay free on the disk."""


def part_of(entry: Entry) -> Path:
    """Where what has come of a file or an archive lies until it is whole."""
    return entry.path.with_name(entry.path.name + ".part")


def staging_of(entry: Entry) -> Path:
    """Where what has come of a hub's folder lies until all of it is there."""
    return entry.path.with_name(f".{entry.path.name}.pulling")


def arrived(entry: Entry) -> int:
    """Bytes that have come so far, by whomever they are being fetched."""
    part, staging = part_of(entry), staging_of(entry)
    if not staging.is_dir():
        return part.stat().st_size if part.exists() else 0
    total = 0
    for path in staging.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # it has just been given its name
            continue
    return total


def require_room(folder: Path, size: int) -> None:
    """Raise ``StorageError`` unless the disk of ``folder`` has room for ``size`` more bytes."""
    needed, free = max(size, 0) + MARGIN, shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: about {needed / MIB:.0f} MiB are needed, {free / MIB:.0f} MiB are free. "
            "Make room, or set FACELOCK_HOME to a folder on another disk."
        )


def swap(fresh: Path, path: Path) -> None:
    """Give the folder ``fresh`` the name ``path``; a damaged one of that name goes. Raises ``OSError``."""
    if path.exists():
        old = path.with_name(f".{path.name}.damaged")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    fresh.rename(path)
    sync_folder(path.parent)


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """Map every ``OSError`` of the block to ``StorageError`` about ``path``."""
    try:
        yield
    except OSError as error:
        raise cache_error(error, path) from error
