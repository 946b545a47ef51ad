"""From a model's name to a verified local file or folder, and reading weights without pickles.

::

    locate("miniature/judge")            # bundled
    locate("opencv/sface")               # pulled before with `facelock models pull opencv/sface`
    locate("my/own.onnx")                # a file of the user's
    require_commercial(["opencv/sface", "my/own.onnx"])
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from facelock.assets import asset_dir
from facelock.errors import ConfigError, ModelError
from facelock.types import Thresholds
from facelock.weights.catalog import Catalog, Entry, cache_dir
from facelock.weights.receipt import recorded

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin"}
MOST_TENSORS = 100_000


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file, read in pieces."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@cache
def _digest(path: Path, stamp: tuple[int, int]) -> str:
    return sha256_file(path)


def digest(path: Path) -> str:
    """:func:`sha256_file`, remembered for a file of this size and time; of a downloaded one whose digest was recorded,
    from that record while size and time are the same. Raises ``ModelError`` when it is missing."""
    try:
        stat = path.stat()
        return recorded(path, cache_dir()) or _digest(path, (stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}). Reinstall FaceLock, or fetch the model again."
        ) from error


def locate(name: str, *, commercial: bool = False, pickled: bool = False) -> Path:
    """A catalog name, or a path the user gave, → an existing file or folder.

    Bundled and pulled weights are checked against the catalog's sha256 (once per process and file). With
    ``commercial``, :func:`require_commercial` first. ``pickled`` allows a pickle, to those who read it with
    ``weights_only``. Raises ``ModelError`` when it is not here (saying how to pull it), when it is a pickle, or when
    the digest differs, ``ConfigError`` for a name that means nothing.
    """
    if commercial:
        require_commercial([name])
    catalog = Catalog.load()
    entry = _named(catalog, name)
    if entry is not None:
        return _verified(entry)
    path = _existing(name)
    if path is None:
        raise catalog.unknown(name)
    if not pickled:
        _refuse_pickle(path)
    return path


def _named(catalog: Catalog, name: str) -> Entry | None:
    """The entry that ``name`` means; its alias with dashes only where no file is called so."""
    return catalog.entries.get(name) or (catalog.find(name) if _existing(name) is None else None)


def _existing(name: str | Path) -> Path | None:
    """The file or folder that ``name`` is the path of, if there is one; a device or a pipe is neither."""
    try:
        path = Path(name).expanduser()
        return path if path.is_file() or path.is_dir() else None
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # a name too long, of no user, with a NUL: no path of anything
        return None


def place(name: str) -> Path | None:
    """Where the weight ``name``, or the user's file, lies; None where it is not here. Nothing of it is read."""
    entry = _named(Catalog.load(), name)
    if entry is None:
        return _existing(name)
    return entry.path if is_here(entry) else None


def is_own_file(name: str) -> bool:
    """Whether ``name`` is not the catalog's but a file or folder of the user's."""
    return _named(Catalog.load(), name) is None and _existing(name) is not None


def require_known(name: str) -> None:
    """Raise ``ConfigError``, naming the nearest, where ``name`` is neither in the catalog nor a file."""
    catalog = Catalog.load()
    if _named(catalog, name) is None and _existing(name) is None:
        raise catalog.unknown(name)


def require_here(names: Iterable[str]) -> None:
    """Raise ``ModelError``, saying how to pull them, for all known weights that are not on this machine.

    Files are looked for and not read: for what can be said before hours of digests.
    """
    catalog = Catalog.load()
    found = {entry.name: entry for name in names if (entry := _named(catalog, name)) is not None}
    lost = [entry for entry in found.values() if not entry.bundled and not is_here(entry)]
    gone = [entry for entry in lost if entry.fetch is None]
    if gone or len(lost) == 1:
        raise ModelError(missing((gone or lost)[0]))
    if lost:
        wanted, licences = [e.name for e in lost], ", ".join(dict.fromkeys(e.licence for e in lost))
        raise ModelError(
            f"{len(lost)} models are not on this machine. Get them with: {pull_command(*wanted)} ({licences})."
        )


def pull_command(*names: str) -> str:
    """What fetches ``names`` and nothing else: the name of a shipped recipe alone would stand for all it needs."""
    recipes = asset_dir("pipelines")
    only = "--only " if any((recipes / f"{name}.toml").is_file() for name in names) else ""
    return f"facelock models pull {only}{' '.join(names)}"


def is_here(entry: Entry) -> bool:
    """Whether every file of ``entry`` is on this machine; says nothing of their content."""
    files = entry.digests()
    return bool(files) and all(is_present(path) for path in files)


def is_present(path: Path) -> bool:
    """Whether there is a file that can be looked at; one in a folder that may not be entered is not there."""
    try:
        return path.is_file()
    except OSError:
        return False


def _verified(entry: Entry) -> Path:
    if not entry.bundled and not is_here(entry):
        raise ModelError(missing(entry))
    for path, sha256 in entry.digests().items():
        if digest(path) != sha256:
            raise ModelError(damaged(entry, path))
    return entry.path


def missing(entry: Entry) -> str:
    """The sentence for a known weight that is not on this machine."""
    what = f"{entry.name} is not on this machine"
    if entry.fetch is None:
        return f"{what}, and its publisher no longer offers it. Put it at {entry.path}, or choose another."
    size = f"{mebibytes(entry.fetch.bytes or entry.size)}, " if entry.fetch.bytes or entry.size else ""
    return f"{what}. Get it with: {pull_command(entry.name)} ({size}{entry.licence})."


def mebibytes(size: int) -> str:
    """``"12.3 MiB"``, from ten gibibytes on ``"12.3 GiB"``; ``"?"`` for 0, which stands for a size nobody knows."""
    if size >= 10 * 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.1f} MiB" if size else "?"


def damaged(entry: Entry, path: Path) -> str:
    """The sentence for a file that is not the one the catalog knows."""
    again = "Reinstall FaceLock" if entry.bundled else "Replace it, or remove it"
    if entry.fetch:
        again = f"Get it again with: {pull_command(entry.name)}"
    return f"{path}: not the file the catalog knows (sha256 differs). {again}."


def require_commercial(names: Iterable[str | Path]) -> None:
    """Refuse weights whose licence does not allow commercial use, before anything of them is loaded.

    ``names`` are catalog names, or paths of files and folders, which are known by the sha256 of what is in them. A
    file that nobody knows is refused too: what is not known to be allowed is not. Raises ``ConfigError`` naming the
    weight and its licence, or for a name that means nothing.
    """
    catalog = Catalog.load()
    for name in names:
        entry = _named(catalog, str(name))
        if entry is not None:
            _allow(entry.name, entry.licence, entry.commercial)
            continue
        path = _existing(name)
        if path is None:
            raise catalog.unknown(str(name))
        for file in _weight_files(path):
            known = catalog.licences(digest(file))
            if known is None:
                raise ConfigError(
                    f"{file}: its licence is not known, so it is refused for commercial use. "
                    "Choose from 'facelock models list --commercial', or leave --commercial out."
                )
            _allow(f"{file} ({known.name})", known.licence, known.commercial)


def _allow(what: str, licence: str, commercial: bool) -> None:
    if not commercial:
        raise ConfigError(
            f"{what} does not allow commercial use (its licence: {licence or 'none'}). "
            "Choose another, or leave --commercial out."
        )


def _weight_files(path: Path) -> Iterator[Path]:
    """``path`` itself, or what a folder holds, one by one: all but model cards and hidden files."""
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            if file.suffix.lower() not in {".md", ".txt"} and name[0] != "." and file.is_file():
                yield file


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
