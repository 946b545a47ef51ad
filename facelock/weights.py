"""From a model's name to a verified local file or folder, and reading weights without pickles."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelock.assets import asset_dir
from facelock.errors import ModelError
from facelock.types import Thresholds

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}
MOST_TENSORS = 100_000


@dataclass(frozen=True)
class Entry:
    """One row of ``models/catalog.toml``."""

    name: str
    path: Path
    """Absolute path of the bundled file or folder."""
    task: str = ""
    licence: str = ""
    commercial: bool = False
    source: str = ""
    layout: str = ""
    bytes: int = 0
    sha256: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """For a folder: relative path → sha256."""
    used_by: tuple[str, ...] = ()
    thresholds: Thresholds | None = None
    """For a recogniser: its accept thresholds per false-accept rate."""


@dataclass(frozen=True)
class Catalog:
    """All weights that FaceLock knows."""

    entries: Mapping[str, Entry]

    @classmethod
    def load(cls, folder: Path | None = None) -> Catalog:
        """Read ``catalog.toml`` of this installation, or of ``folder``. Raises ``ModelError``."""
        root = folder or asset_dir("models")
        try:
            table = tomllib.loads((root / "catalog.toml").read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ModelError(
                f"{root / 'catalog.toml'}: cannot be read ({error}). Reinstall FaceLock."
            ) from error
        rows = table.get("models", {})
        return cls({name: _entry(name, row, root) for name, row in rows.items()})

    def entry(self, name: str) -> Entry:
        """The row called ``name``. Raises ``ModelError`` naming the closest ones."""
        if name not in self.entries:
            import difflib

            close = ", ".join(difflib.get_close_matches(name, self.entries, 3, 0.4)) or ", ".join(
                self.entries
            )
            raise ModelError(f"no model is called {name!r}. Known ones near it: {close}.")
        return self.entries[name]


def _entry(name: str, row: Mapping[str, Any], root: Path) -> Entry:
    values = dict(row)
    values["path"] = root / values["path"]
    values["used_by"] = tuple(values.get("used_by", ()))
    if "thresholds" in values:
        values["thresholds"] = Thresholds(**values["thresholds"])
    return Entry(name, **values)


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file, read in pieces."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@cache
def _digest(path: Path, stamp: tuple[int, int]) -> str:
    return sha256_file(path)


def digest(path: Path) -> str:
    """:func:`sha256_file`, remembered for a file of this size and time. Raises ``ModelError`` when it is missing."""
    try:
        stat = path.stat()
        return _digest(path, (stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}). Reinstall FaceLock, or fetch the model again."
        ) from error


def locate(name: str) -> Path:
    """A catalog name, or a path the user gave, → an existing file or folder.

    Bundled weights are checked against the catalog's sha256 (once per process and file). Raises ``ModelError``
    when nothing is there, when it is a pickle, or when the digest differs.
    """
    entries = Catalog.load().entries
    if name in entries:
        return _verified(entries[name])
    path = Path(name).expanduser()
    if not path.exists():
        Catalog.load().entry(name)
    _refuse_pickle(path)
    return path


def _verified(entry: Entry) -> Path:
    wanted = (
        {entry.path / f: d for f, d in entry.files.items()} if entry.files else {entry.path: entry.sha256}
    )
    for path, sha256 in wanted.items():
        if digest(path) != sha256:
            raise ModelError(f"{path}: not the file the catalog knows (sha256 differs). Reinstall FaceLock.")
    return entry.path


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{path}: pickled weights can run code and are not read. Convert it to safetensors or ONNX."
        )


def encoder_id(name: str, path: str | Path) -> str:
    """``"<name>@<first 12 hex of the file's sha256>"``."""
    return f"{name}@{digest(Path(path))[:12]}"


def thresholds(name: str) -> Thresholds:
    """Accept thresholds of the recogniser ``name``. Raises ``ModelError`` where the catalog has none."""
    found = Catalog.load().entry(name).thresholds
    if found is None:
        raise ModelError(f"the catalog has no thresholds for {name!r}. Add them to models/catalog.toml.")
    return found


def load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ``ModelError`` when missing, damaged, too many, or not finite."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    _refuse_pickle(path)
    try:
        with safe_open(path, "pt") as f:
            names = list(f.keys())
            if len(names) > MOST_TENSORS:
                raise ModelError(
                    f"{path}: {len(names)} tensors are more than any model of ours has. Fetch it again."
                )
            tensors = {k: f.get_tensor(k) for k in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}). Fetch it again.") from error
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: tensor {key!r} holds NaN or infinity. Fetch it again.")
    return tensors
