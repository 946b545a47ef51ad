"""The catalog: every weight FaceLock knows, where it comes from, and what its licence allows.

::

    catalog = Catalog.load()
    catalog.entry("opencv/sface").licence        # "Apache-2.0"
    catalog.find("opencv-sface")                 # dashes do too
    catalog.licences("9cc6e4a75f0e...")          # who a file is, by its sha256

Two files in ``models/`` make it: ``catalog.toml`` (bundled weights, written by ``python -m facelock.miniature
export``; paths beside it) and ``public.toml`` (public weights, kept by hand; paths in :func:`cache_dir`). Both are
checked key by key. How a public weight is fetched is a table of its own whose ``kind`` names the way: a file, an
archive, or a folder of a hub's repository at a revision. Digests that the catalog does not know are those of the
first download (:mod:`facelock.weights.receipt`). Knows nothing of torch.
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
from facelock.errors import ConfigError, ModelError
from facelock.types import Thresholds
from facelock.weights.receipt import Receipt, read_receipt

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


def relative_path(path: str) -> str:
    """``path`` itself when it is plain and relative, so that nothing it names lies elsewhere; else ``ValueError``."""
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


RelativePath = Annotated[str, AfterValidator(relative_path)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Url = Annotated[str, AfterValidator(_https)]
Line = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$", max_length=80)]


Repository = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,99}$")]
Glob = Annotated[str, Field(pattern=r"^[A-Za-z0-9_*.+-]+(/[A-Za-z0-9_*.+-]+)*$", max_length=200)]
DIFFUSERS = ("model_index.json", "*/*.json", "*/*.safetensors", "*/*.model", "*/*.txt", "*/*.jinja")
"""What is taken of a hub's repository unless its row says otherwise: the parts of a diffusers folder, no pickles, no
code, no pictures, and no checkpoints of another format that lie in its root."""


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Fetch(_Checked):
    """How a public weight comes here."""

    kind: Literal["file", "zip", "hub"] = "file"
    """``file``: the address gives the weight itself; ``zip``: an archive that holds the entry's ``files``; ``hub``:
    a folder of files of a repository on the Hugging Face hub."""
    urls: tuple[Url, ...] = ()
    """Of a file or an archive: tried in this order; every one gives the same bytes."""
    bytes: int = Field(default=0, ge=0)
    """Size of what is downloaded; 0: the entry's own."""
    sha256: Sha256 | None = None
    """Of what is downloaded; None: the entry's own."""
    published: str | None = Field(default=None, pattern=r"^(md5:[0-9a-f]{32}|git:[0-9a-f]{40})$")
    """Of a file whose sha256 nobody published: its md5, or its git blob id. Its sha256 is then recorded when it comes
    first (:mod:`facelock.weights.receipt`)."""
    repo: Repository | None = None
    """Of a hub: owner/name."""
    revision: Revision = "main"
    """Of a hub: a commit where a public project pins one, else a branch; its commit is recorded when it comes first."""
    include: tuple[Glob, ...] = Field(default=DIFFUSERS, min_length=1)
    """Of a hub: which files, a star within one name; each must match one, but for :data:`DIFFUSERS`."""
    variant: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    """Of a hub: ``x.<variant>.safetensors`` is kept as ``x.safetensors``; other safetensors are left out."""

    @model_validator(mode="after")
    def _one_way(self) -> Fetch:
        if (self.kind == "hub") != bool(self.repo) or (self.kind == "hub") == bool(self.urls):
            raise ValueError("needs a repo for the kind hub, and urls for every other kind")
        return self


class _Accept(_Checked):
    far_1e2: float = Field(ge=-1, le=1)
    far_1e3: float = Field(ge=-1, le=1)
    far_1e4: float = Field(ge=-1, le=1)


class _Row(_Checked):
    """One row of either file, as it is written."""

    path: RelativePath
    aliases: tuple[Name, ...] = ()
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
        fetch = self.fetch
        first = fetch is not None and (fetch.kind == "hub" or fetch.published is not None)
        if (self.sha256 is None) == (not self.files) and not (first and self.sha256 is None):
            raise ValueError("needs either a sha256 or a table of files")
        if fetch and fetch.kind == "zip" and not (self.files and fetch.sha256 and fetch.bytes):
            raise ValueError("a zip needs its own bytes and sha256, and the files it holds")
        if fetch and fetch.kind == "file" and not first and not (self.sha256 and self.bytes):
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
    aliases: tuple[str, ...] = ()
    """Other names of it."""
    task: str = ""
    licence: str = ""
    commercial: bool = False
    """Whether the licence allows commercial use."""
    source: str = ""
    layout: str = ""
    bytes: int = 0
    """On the disk; of a hub's folder about that many, and 0 where nobody says: the hub does, when it is asked."""
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

    @property
    def is_recorded(self) -> bool:
        """Whether its digests are those of its first download, not (all) the catalog's."""
        return self.fetch is not None and (self.fetch.kind == "hub" or self.fetch.published is not None)

    def receipt(self) -> Receipt | None:
        """The record of its first download; None when there is none, or it is of another commit than the catalog's."""
        found = read_receipt(self.path) if self.is_recorded else None
        wanted = self.fetch.revision if self.fetch and self.fetch.kind == "hub" else ""
        pinned = re.fullmatch(r"[0-9a-f]{40}", wanted)
        return None if found and pinned and found.commit != wanted else found

    def digests(self) -> Mapping[Path, str]:
        """Absolute path → sha256 of every file of it; nothing where only a first download can tell."""
        if self.is_recorded:
            receipt = self.receipt()
            if receipt is None:
                return {}
            if self.fetch and self.fetch.kind != "hub":
                return {self.path.with_name(name): kept.sha256 for name, kept in receipt.files.items()}
            known = {name: kept.sha256 for name, kept in receipt.files.items()} | dict(self.files)
        elif self.files:
            known = dict(self.files)
        else:
            return {self.path: self.sha256}
        return {self.path / name: digest for name, digest in known.items()}

    @property
    def size(self) -> int:
        """Bytes on the disk, from the record of its download where there is one; 0 when nobody knows yet."""
        receipt = self.receipt()
        return sum(kept.bytes for kept in receipt.files.values()) if receipt else self.bytes


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
        """The row called ``name``, or so with dashes for slash and underscores (``opencv-sface``); aliases count."""
        if name in self.entries:
            return self.entries[name]
        wanted = _dashed(name)
        named = (e for e in self.entries.values() if wanted in map(_dashed, (e.name, *e.aliases)))
        return next(named, None)

    def entry(self, name: str) -> Entry:
        """:meth:`find`, but raises ``ConfigError`` naming the closest ones."""
        found = self.find(name)
        if found is None:
            raise self.unknown(name)
        return found

    def unknown(self, name: str) -> ConfigError:
        """The error for a name that is none of these: wrong input, wherever it was given."""
        close = difflib.get_close_matches(name[:80], self.entries, 3, 0.4)
        if name.startswith(("/", "./", "../", "~")):
            return ConfigError(f"{name[:200]}: there is no such model file or folder. Check the path.")
        known = f"Known ones near it: {', '.join(close)}. " if close else ""
        return ConfigError(f"no model is called {name[:80]!r}. {known}See `facelock models list`.")

    def licences(self, sha256: str) -> Known | None:
        """What is known of a file with this digest; where several entries hold it, what the freest allows."""
        found = [*self._holding(sha256)]
        if sha256 in self.known:
            found.append(self.known[sha256])
        return max(found, key=lambda known: known.commercial, default=None)

    def _holding(self, sha256: str) -> Iterator[Known]:
        for entry in self.entries.values():
            archive = entry.fetch.sha256 if entry.fetch else None
            if sha256 in (entry.sha256, archive, *entry.files.values(), *entry.digests().values()):
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
