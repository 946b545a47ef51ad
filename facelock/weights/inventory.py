"""What of the catalog is on this machine, and whether it is whole.

::

    for standing in inventory(commercial=True):
        print(standing.entry.name, standing.state)
    damaged = [c for c in check() if c.state == "damaged"]

Fetching is :func:`facelock.weights.pull.pull`. All of it also stands behind ``facelock models``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from facelock.errors import ModelError
from facelock.weights import damaged, is_here, is_present, missing, sha256_file
from facelock.weights.catalog import Catalog, Entry
from facelock.weights.pull import find

State = Literal["bundled", "pulled", "missing"]


@dataclass(frozen=True)
class Standing:
    """One weight of the catalog and where it is."""

    entry: Entry
    state: State
    """``bundled`` with FaceLock, ``pulled`` into the cache folder, or ``missing``."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        entry = self.entry
        return {
            "name": entry.name,
            "task": entry.task,
            "state": self.state,
            "bytes": entry.size,
            "licence": entry.licence,
            "commercial": entry.commercial,
            "used_by": list(entry.used_by),
            "source": entry.source,
            "layout": entry.layout,
            "published_threshold": entry.published_threshold,
            "path": str(entry.path),
            "sha256": entry.sha256 or self._digests(),
            "recorded": entry.is_recorded,
            "download": entry.fetch.bytes or entry.size if entry.fetch else None,
            "urls": list(entry.fetch.urls) if entry.fetch else [],
            "repository": entry.fetch.repo if entry.fetch else None,
            "revision": self._revision(),
        }

    def _digests(self) -> dict[str, str]:
        """Path below the folder → sha256, as far as it is known: the catalog's, or of the first download."""
        known = self.entry.digests()
        folder = self.entry.path if self.entry.path not in known else self.entry.path.parent
        return {path.relative_to(folder).as_posix(): digest for path, digest in known.items()}

    def _revision(self) -> str | None:
        """The commit of what is here, else the one that would be asked for."""
        fetch, receipt = self.entry.fetch, self.entry.receipt()
        if fetch is None or fetch.kind != "hub":
            return None
        return receipt.commit if receipt else fetch.revision


def inventory(*, commercial: bool = False) -> tuple[Standing, ...]:
    """Every weight of the catalog; with ``commercial``, those whose licence allows commercial use.

    Looks only whether files are there: :func:`check` reads them. Raises ``ModelError`` for a damaged catalog.
    """
    entries = Catalog.load().entries.values()
    return tuple(Standing(entry, _state(entry)) for entry in entries if entry.commercial or not commercial)


def _state(entry: Entry) -> State:
    if not is_here(entry):
        return "missing"
    return "bundled" if entry.bundled else "pulled"


@dataclass(frozen=True)
class Check:
    """What reading all of one weight's files said."""

    entry: Entry
    state: Literal["whole", "damaged", "missing"]
    path: Path
    """The first file that is damaged or missing; the weight's own path when it is whole."""

    @property
    def sentence(self) -> str:
        """What is wrong and what to do; empty when it is whole."""
        if self.state == "whole":
            return ""
        return damaged(self.entry, self.path) if self.state == "damaged" else missing(self.entry)


def check(names: Sequence[str] = ()) -> tuple[Check, ...]:
    """Read the files of the weights ``names``, or of all, against the catalog's sha256.

    Raises ``ConfigError`` for a name that the catalog does not know.
    """
    entries = [find(name) for name in names] or list(Catalog.load().entries.values())
    return tuple(_check(entry) for entry in entries)


def _check(entry: Entry) -> Check:
    digests = entry.digests()
    gone = [path for path in digests if not is_present(path)]
    if len(gone) == len(digests) and not entry.bundled:
        return Check(entry, "missing", entry.path)
    for path, sha256 in digests.items():
        if path in gone or _read(path) != sha256:
            return Check(entry, "damaged", path)
    return Check(entry, "whole", entry.path)


def _read(path: Path) -> str | None:
    """sha256 of what is on the disk now, not of what was read before; None when it cannot be read."""
    try:
        return sha256_file(path)
    except OSError:
        return None


def require_whole(checks: Sequence[Check], *, named: bool = False) -> None:
    """Raise ``ModelError`` naming what is damaged, and, with ``named``, what is missing."""
    wrong = [c for c in checks if c.state == "damaged" or (named and c.state == "missing")]
    if len(wrong) == 1:
        raise ModelError(wrong[0].sentence)
    if wrong:
        names = ", ".join(c.entry.name for c in wrong)
        raise ModelError(
            f"{len(wrong)} weights are damaged or missing: {names}. Get public ones again with "
            "'facelock models pull NAME', and bundled ones by reinstalling FaceLock."
        )
