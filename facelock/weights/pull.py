"""Bringing a public weight of the catalog into the cache folder, once, whole and verified.

::

    path = pull("opencv/sface", progress=lambda stage, done, total: ...)

Any number of processes may pull the same weight at once: one fetches, the others wait for it. A weight, a hub's
folder of fifty files too, appears under its final name only when all of it is there and its sha256 is the catalog's,
or that of its first download where the catalog cannot know it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from facelock.errors import InputError, ModelError, OutputBusyError, caught, together
from facelock.files import lock_file, publish
from facelock.protocols import Progress
from facelock.weights import (
    damaged,
    digest,
    is_here,
    is_own_file,
    is_present,
    missing,
    require_commercial,
    sha256_file,
)
from facelock.weights.catalog import Catalog, Entry, Fetch
from facelock.weights.download import PIECE, cache_error, download
from facelock.weights.hub import fetch_hub
from facelock.weights.placing import arrived, cache_errors, part_of, require_room, swap
from facelock.weights.receipt import Kept, Receipt, receipt_path, write_receipt
from facelock.weights.wire import Wire, size_of

log = logging.getLogger(__name__)

WAIT = 0.2
"""Seconds between two looks at what another process is fetching."""


def pull(
    name: str, *, commercial: bool = False, progress: Progress | None = None, wire: Wire | None = None
) -> Path:
    """Fetch the weight ``name`` unless it is here already; return its file or folder.

    ``commercial`` refuses one whose licence does not allow commercial use. ``progress(name, bytes_done, bytes)``
    is called as bytes come. Raises ``ConfigError`` for a name the catalog does not know or a refused licence,
    ``ModelError`` when it cannot be fetched or is not what the catalog knows, ``StorageError`` when the disk is
    full or the cache folder cannot be written.
    """
    return pull_entry(find(name, commercial=commercial), progress=progress, wire=wire)


def find(name: str, *, commercial: bool = False) -> Entry:
    """The catalog's entry ``name``, or its alias. Raises ``ConfigError``."""
    entry = Catalog.load().entry(name)
    if commercial:
        require_commercial([entry.name])
    return entry


def find_all(names: Iterable[str], *, commercial: bool = False, own_files: bool = False) -> list[Entry]:
    """The catalog's entries ``names``, each once, or one error for all of them before any is fetched.

    ``own_files``: names that are files of the user's own need no fetching and are left out. Raises ``ConfigError``
    for names that mean nothing and, with ``commercial``, licences that do not allow it; ``ModelError`` for weights
    that are not here and that nobody offers.
    """
    unique = list(dict.fromkeys(names))
    wanted = [name for name in unique if not (own_files and is_own_file(name))]
    checked = [partial(require_commercial, [name]) for name in unique] if commercial else []
    wrong = caught(*(partial(find, name) for name in wanted), *checked)
    if wrong:
        raise together("Nothing was fetched", wrong)
    entries = list({entry.name: entry for entry in map(find, wanted)}.values())
    gone = [
        ModelError(missing(entry))
        for entry in entries
        if not (entry.bundled or entry.fetch or is_here(entry))
    ]
    if gone:
        raise together("Nothing was fetched", gone)
    return entries


def pull_entry(entry: Entry, *, progress: Progress | None = None, wire: Wire | None = None) -> Path:
    """:func:`pull` for an entry at hand."""
    if first_damage(entry) is None:
        return entry.path
    if entry.fetch is None:
        raise ModelError(missing(entry) if not is_here(entry) else damaged(entry, entry.path))
    tell = progress or (lambda *_: None)
    folder = entry.path.parent
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cache_error(PermissionError(13, "Permission denied"), folder)
    with _alone(entry, tell):
        if first_damage(entry) is not None:  # else the process that was waited for has brought it
            FETCHERS[entry.fetch.kind](entry, entry.fetch, wire or Wire(), tell)
    return entry.path


def first_damage(entry: Entry) -> Path | None:
    """The first file of ``entry`` that is missing or not the one the catalog knows; None when it is whole."""
    known = entry.digests()
    for path, sha256 in known.items():
        if not is_present(path) or digest(path) != sha256:
            return path
    return None if known else entry.path


def _fetch_file(entry: Entry, fetch: Fetch, wire: Wire, tell: Progress) -> None:
    """The address gives the weight itself."""
    part, digest = part_of(entry), fetch.sha256 or entry.sha256 or fetch.published or ""
    size = fetch.bytes or entry.bytes or size_of(fetch.urls, name=entry.name, wire=wire)
    _room(part, size)
    download(fetch.urls, part, size=size, sha256=digest, name=entry.name, wire=wire, progress=tell)
    if fetch.published:
        _record(entry, part, fetch.urls[0])
    publish(part, entry.path)


def _record(entry: Entry, part: Path, source: str) -> None:
    """Remember the sha256 of a file of which only a weaker digest was published; it holds from now on."""
    before, sha256 = entry.receipt(), sha256_file(part)
    if before and sha256 not in (kept.sha256 for kept in before.files.values()):
        part.unlink()
        raise ModelError(
            f"{entry.name}: not the file that was recorded when it came first; it was discarded. Do not use it, or "
            f"remove {receipt_path(entry.path)} to take it as it is now."
        )
    stat = part.stat()
    kept = Kept(sha256, stat.st_size, stat.st_mtime_ns)
    write_receipt(entry.path, Receipt(source, {entry.path.name: kept}))
    if before is None:
        log.info(
            "%s: its sha256 is recorded in %s and holds from now on", entry.name, receipt_path(entry.path)
        )


def _room(part: Path, size: int) -> None:
    require_room(part.parent, size - (part.stat().st_size if part.exists() else 0))


def _fetch_zip(entry: Entry, fetch: Fetch, wire: Wire, tell: Progress) -> None:
    """The address gives an archive of the entry's files."""
    part = part_of(entry)
    _room(part, fetch.bytes + entry.bytes)
    download(
        fetch.urls, part, size=fetch.bytes, sha256=fetch.sha256 or "",
        name=entry.name, wire=wire, progress=tell,
    )  # fmt: skip
    fresh = entry.path.with_name(f".{entry.path.name}.unpacking")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with cache_errors(fresh):
            fresh.mkdir()
        unpack(part, entry, fresh)
        with cache_errors(entry.path):
            swap(fresh, entry.path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    with suppress(OSError):
        part.unlink()


FETCHERS: dict[str, Callable[[Entry, Fetch, Wire, Progress], None]] = {
    "file": _fetch_file,
    "zip": _fetch_zip,
    "hub": fetch_hub,
}
"""Kind of a catalog's ``fetch`` table → what brings it. Another way to fetch is another row."""


def unpack(archive: Path, entry: Entry, folder: Path) -> None:
    """Copy the files that ``entry`` names out of ``archive`` into the existing ``folder``, and verify each.

    They may lie in the archive's root or in one folder. Names come from the catalog, never from the archive, so
    that nothing of it can be written elsewhere; what it holds besides is left in it. Raises ``ModelError`` when a
    file is missing, larger than the entry says, or another one; ``StorageError``.
    """
    left = entry.bytes
    try:
        with zipfile.ZipFile(archive) as opened:
            for name, sha256 in entry.files.items():
                info = _member(opened, name)
                if info is None:
                    raise ModelError(f"{archive}: holds no {name}. Pull {entry.name} again later.")
                left -= _copy(opened, info, folder / name, left)
                if sha256_file(folder / name) != sha256:
                    raise ModelError(
                        f"{archive}: its {name} is not the one the catalog knows. Pull again later."
                    )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{archive}: cannot be unpacked ({error}). Pull {entry.name} again later."
        ) from error


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    return next((i for i in archive.infolist() if name in (i.filename, i.filename.partition("/")[2])), None)


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, most: int) -> int:
    """Copy one member of at most ``most`` bytes, whatever its header says; return how many."""
    done = 0
    with cache_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _opened(archive, info) as source, target.open("wb") as file:
            while piece := _read(source):
                done += len(piece)
                if done > most:
                    raise ModelError(
                        f"{target.name}: unpacks to more than the catalog says. Pull again later."
                    )
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    return done


def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(info)
    except (OSError, ValueError) as error:  # a damaged archive must not be taken for a failing disk
        raise zipfile.BadZipFile(str(error)) from error


def _read(source: IO[bytes]) -> bytes:
    try:
        return source.read(PIECE)
    except (OSError, ValueError) as error:
        raise zipfile.BadZipFile(str(error)) from error


@contextmanager
def _alone(entry: Entry, tell: Progress) -> Iterator[None]:
    """Hold the entry's lock; while another process holds it, wait, and tell how far that one is."""
    lock = entry.path.with_name(f".{entry.path.name}.lock")
    total = (entry.fetch.bytes if entry.fetch else 0) or entry.size
    with ExitStack() as stack:
        waited = False
        while True:
            try:
                stack.enter_context(lock_file(lock))
                break
            except InputError as error:  # a shared cache folder in which somebody else made the lock
                raise cache_error(PermissionError(13, "Permission denied"), lock) from error
            except OutputBusyError:
                if not waited:
                    log.info("another process is fetching %s; waiting for it", entry.name)
                waited = True
            here = arrived(entry)
            tell(entry.name, min(here, total or here), total or here)
            time.sleep(WAIT)
        yield
