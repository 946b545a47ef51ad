"""What the first download of a weight was: the digests that hold from then on.

Of most checkpoints on a hub nobody publishes digests in advance, so the catalog cannot know them. The first download
is then trusted (checked against what the hub itself says of each file), and recorded here, beside the weight::

    skyreels-v2-1.3b/               the files
    skyreels-v2-1.3b.lock.json      repository, commit, and size, sha256 and time of every file

Whatever is read later is compared with that. Knows nothing of torch, and never raises: a record that cannot be read
is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from facelock.files import atomic_write

LARGEST = 4 << 20
"""Bytes of a record that is read."""
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Kept:
    """One file as it was when its sha256 was last computed."""

    sha256: str
    bytes: int
    mtime_ns: int

    def is_unchanged(self, path: Path) -> bool:
        """Whether ``path`` has the same size and time still, so that it need not be read again."""
        with suppress(OSError):
            stat = path.stat()
            return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns)
        return False


@dataclass(frozen=True)
class Receipt:
    """The record of one weight."""

    source: str
    """``"<repository>@<commit>"`` of a hub's folder; the address of a single file."""
    files: Mapping[str, Kept]
    """Path below the folder → what was recorded; a single file by its own name."""

    @property
    def commit(self) -> str:
        """The hub's commit; empty for a single file."""
        return self.source.rpartition("@")[2] if "://" not in self.source else ""


def receipt_path(path: Path) -> Path:
    """Where the record of the weight at ``path`` lies."""
    return path.with_name(f"{path.name}.lock.json")


def read_receipt(path: Path) -> Receipt | None:
    """The record of the weight at ``path``; None when there is none that can be read."""
    place = receipt_path(path)
    try:
        stat = place.stat()
    except OSError:
        return None
    return _read(place, (stat.st_size, stat.st_mtime_ns)) if stat.st_size <= LARGEST else None


@lru_cache(maxsize=64)
def _read(place: Path, _: tuple[int, int]) -> Receipt | None:
    try:
        found = json.loads(place.read_bytes())
        files = {str(name): Kept(**kept) for name, kept in found["files"].items()}
        receipt = Receipt(str(found["source"]), files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    whole = files and all(_plain(name) and _is_kept(kept) for name, kept in files.items())
    return receipt if whole else None


def _plain(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in name.split("/") and "\x00" not in name


def _is_kept(kept: Kept) -> bool:
    numbers = (kept.bytes, kept.mtime_ns)
    return (
        isinstance(kept.sha256, str)
        and bool(SHA256.fullmatch(kept.sha256))
        and all(isinstance(number, int) for number in numbers)
    )


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Record the weight at ``path``. Raises ``StorageError``."""
    text = json.dumps(asdict(receipt), indent=1, sort_keys=True)
    atomic_write(receipt_path(path), f"{text}\n".encode())


def recorded(file: Path, root: Path) -> str | None:
    """The sha256 on record of a file somewhere below ``root``, if it is unchanged since; None when it must be read.

    So a checkpoint of many gigabytes is read once when it comes, and not at every start.
    """
    for weight in (file, *file.parents):
        if weight == root or root not in weight.parents:
            return None
        receipt = read_receipt(weight)
        if receipt is not None:
            name = file.name if weight == file else file.relative_to(weight).as_posix()
            kept = receipt.files.get(name)
            return kept.sha256 if kept is not None and kept.is_unchanged(file) else None
    return None
