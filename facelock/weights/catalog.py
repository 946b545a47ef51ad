"""The catalog: every weight FaceLock knows, where it comes from, and what its licence allows.

::

    catalog = Catalog.load()
    catalog.entry("opencv/sface").licence        # "Apache-2.0"
    catalog.find("opencv-sface")                 # dashes do too
    catalog.licences("9cc6e4a75f0e...")          # who a file is, by its sha256

Two files in ``models/`` make it: ``catalog.toml`` (bundled weights, written by ``python -m facelock.miniature
export``; paths beside it) and ``public.toml`` (public weights, kept by hand; paths in :func:`cache_dir`). Both are
checked key by key. How a public weight is fetched is a table of its own whose ``kind`` names the way, so that
another way (a hub's repository at a revision) is one more kind. Knows nothing of torch.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from facelock.assets import asset_dir
from facelock.errors import ModelError
from facelock.types import Thresholds

LARGEST_FILE = 1 << 20
"""Bytes; a catalog is some pages of text."""


def cache_dir() -> Path:
    """Where pulled weights lie: ``$FACELOCK_HOME/models``, else ``$XDG_CACHE_HOME/facelock/models``, else
    ``~/.cache/facelock/models``. It need not exist."""
    if home := os.environ.get("FACELOCK_HOME"):
        return Path(home).absolute() / "models"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG specification: a relative one is to be ignored
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # a user without a home folder has nothing pulled
            base = Path("/nonexistent")
    return base / "facelock" / "models"


def _relative(path: str) -> str:
    parts = PurePosixPath(path).parts
    if (
        not parts
        or path.startswith("/")
        or ".." in parts
        or not re.fullmatch(r"[A-Za-z0-9_.+/-]{1,200}", path)
    ):
        raise ValueError("must be a plain relative path")
    return path


def _https(url: str) -> str:
    if not re.fullmatch(r"https://[A-Za-z0-9.-]+\.[A-Za-z]{2,}/[!-~]+", url):
        raise ValueError("must be an https address")
    return url


RelativePath = Annotated[str, AfterValidator(_relative)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Url = Annotated[str, AfterValidator(_https)]
Line = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$", max_length=80)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Fetch(_Checked):
    """How a public weight comes here."""

    kind: Literal["file", "zip"] = "file"
    """``file``: the address gives the weight itself; ``zip``: an archive that holds the entry's ``files``."""
    urls: tuple[Url, ...] = Field(min_length=1)
    """Tried in this order; every one gives the same bytes."""
    bytes: int = Field(default=0, ge=0)
    """Size of what is downloaded; 0: the entry's own."""
    sha256: Sha256 | None = None
    """Of what is downloaded; None: the entry's own."""


class _Accept(_Checked):
    far_1e2: float = Field(ge=-1, le=1)
    far_1e3: float = Field(ge=-1, le=1)
    far_1e4: float = Field(ge=-1, le=1)


class _Row(_Checked):
    """One row of either file, as it is written."""

    path: RelativePath
    task: Line = ""
    licence: Line = ""
    commercial: bool = Field(default=False, strict=True)
    source: Line = ""
    layout: Line = ""
    bytes: int = Field(default=0, ge=0)
    sha256: Sha256 | None = None
    files: dict[RelativePath, Sha256] = {}
    used_by: tuple[Line, ...] = ()
    thresholds: _Accept | None = None
    published_threshold: float | None = Field(default=None, ge=-1, le=1)
    fetch: Fetch | None = None

    @model_validator(mode="after")
    def _whole(self) -> _Row:
        if (self.sha256 is None) == (not self.files):
            raise ValueError("needs either a sha256 or a table of files")
        fetch = self.fetch
        if fetch and fetch.kind == "zip" and not (self.files and fetch.sha256 and fetch.bytes):
            raise ValueError("a zip needs its own bytes and sha256, and the files it holds")
        if fetch and fetch.kind == "file" and not (self.sha256 and self.bytes):
            raise ValueError("what is fetched needs bytes and a sha256: nothing unknown is downloaded")
        return self


class Known(_Checked):
    """A file that is not in the catalog by name, known by its sha256: what it is and what its licence allows."""

    name: Line
    licence: Line
    commercial: bool = Field(strict=True)


class _Document(_Checked):
    models: dict[Name, _Row] = {}
    known: dict[Sha256, Known] = {}


@dataclass(frozen=True)
class Entry:
    """One weight: a file or a folder."""

    name: str
    path: Path
    """Absolute path of the file or folder, whether it is there or not."""
    task: str = ""
    licence: str = ""
    commercial: bool = False
    """Whether the licence allows commercial use."""
    source: str = ""
    layout: str = ""
    bytes: int = 0
    """On the disk."""
    sha256: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """For a folder: relative path → sha256."""
    used_by: tuple[str, ...] = ()
    thresholds: Thresholds | None = None
    """For a recogniser: its accept thresholds per false-accept rate."""
    published_threshold: float | None = None
    """For a recogniser: the one cosine threshold that its publisher documents, at no stated rate."""
    fetch: Fetch | None = None
    """How it is pulled; None for bundled weights, and for those that nobody offers."""
    bundled: bool = True

    def digests(self) -> Mapping[Path, str]:
        """Absolute path → sha256 of every file of it."""
        if self.files:
            return {self.path / name: digest for name, digest in self.files.items()}
        return {self.path: self.sha256}


@dataclass(frozen=True)
class Catalog:
    """All weights that FaceLock knows."""

    entries: Mapping[str, Entry]
    known: Mapping[str, Known] = field(default_factory=dict)
    """sha256 → a file that has no entry of its own."""

    @classmethod
    def load(cls, folder: Path | None = None) -> Catalog:
        """Read this installation's catalog, or that of ``folder``, which may lack ``public.toml``.

        Raises ``ModelError`` naming every mistake.
        """
        root = folder or asset_dir("models")
        bundled = _read(root / "catalog.toml")
        entries = {name: _entry(name, row, root, True) for name, row in bundled.models.items()}
        if not (root / "public.toml").exists():
            return cls(entries, bundled.known)
        public, cache = _read(root / "public.toml"), cache_dir()
        for name, row in public.models.items():
            if name in entries or not row.licence:
                what = "is bundled already" if name in entries else "names no licence"
                raise ModelError(f"{root / 'public.toml'}: models.{name}: {what}. Reinstall FaceLock.")
            entries[name] = _entry(name, row, cache, False)
        return cls(entries, {**bundled.known, **public.known})

    def find(self, name: str) -> Entry | None:
        """The row called ``name``, or written with dashes for slash and underscores (``opencv-sface``)."""
        if name in self.entries:
            return self.entries[name]
        wanted = _dashed(name)
        return next((entry for entry in self.entries.values() if _dashed(entry.name) == wanted), None)

    def entry(self, name: str) -> Entry:
        """:meth:`find`, but raises ``ModelError`` naming the closest ones."""
        found = self.find(name)
        if found is None:
            raise self.unknown(name)
        return found

    def unknown(self, name: str) -> ModelError:
        """The error for a name that is none of these."""
        close = difflib.get_close_matches(name[:80], self.entries, 3, 0.4) or self.entries
        return ModelError(f"no model is called {name[:80]!r}. Known ones near it: {', '.join(close)}.")

    def licences(self, sha256: str) -> Known | None:
        """What is known of a file with this digest; where several entries hold it, what the freest allows."""
        found = [*self._holding(sha256)]
        if sha256 in self.known:
            found.append(self.known[sha256])
        return max(found, key=lambda known: known.commercial, default=None)

    def _holding(self, sha256: str) -> Iterator[Known]:
        for entry in self.entries.values():
            archive = entry.fetch.sha256 if entry.fetch else None
            if sha256 in (entry.sha256, archive, *entry.files.values()):
                yield Known(name=entry.name, licence=entry.licence, commercial=entry.commercial)


def _dashed(name: str) -> str:
    return name.lower().replace("/", "-").replace("_", "-")


def _read(path: Path) -> _Document:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ModelError(f"{path}: cannot be read (it is no catalog). Reinstall FaceLock.")
        return _document(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'catalog'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_url=False)[:5]
        )
        raise ModelError(f"{path}: {mistakes}. Reinstall FaceLock.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}). Reinstall FaceLock.") from error


@lru_cache(maxsize=8)
def _document(text: str) -> _Document:
    """A catalog's text, checked: one command asks a dozen times."""
    return _Document.model_validate(tomllib.loads(text))


def _entry(name: str, row: _Row, root: Path, bundled: bool) -> Entry:
    values: dict[str, Any] = {key: getattr(row, key) for key in type(row).model_fields}
    values["path"] = root / row.path
    values["sha256"] = row.sha256 or ""
    values["thresholds"] = Thresholds(**row.thresholds.model_dump()) if row.thresholds else None
    return Entry(name, bundled=bundled, **values)
