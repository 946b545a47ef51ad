"""One file over https, resumed and verified: it arrives whole, or it does not arrive.

::

    download(["https://host/a.onnx"], Path("a.onnx.part"), size=232589, sha256="8f2383e4...")

Only https from public hosts (:mod:`facelock.weights.wire`). What has come is kept at ``part`` when a connection ends,
and the next call goes on there (HTTP Range, guarded by the server's ETag and the length), also from another of the
addresses: the sha256 decides in the end.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from facelock.errors import ModelError, StorageError
from facelock.files import storage_error
from facelock.protocols import Progress
from facelock.weights import sha256_file
from facelock.weights.wire import FINAL, LINKED, PASSING, TRIES, RefusedError, Wire, host_of, reason_of

log = logging.getLogger(__name__)

PIECE = 1 << 18
"""Bytes read at once."""
MIB = 2**20


class GatedError(ModelError):
    """The server wants to know who asks, or does not give it to this one."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status
        """401 or 403."""


class _AgainError(Exception):
    """This try failed, another one may not."""


def download(
    urls: Sequence[str],
    part: Path,
    *,
    size: int,
    sha256: str,
    name: str = "",
    wire: Wire | None = None,
    headers: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Bring ``size`` bytes with this ``sha256`` from the first of ``urls`` that gives them to the file ``part``.

    ``sha256`` may be another digest that :func:`matches` knows; ``headers`` are sent too.
    ``progress(name, bytes_done, size)`` is called as they come. Raises ``ModelError`` in one sentence when no
    address gives the file (what has come stays for the next call, unless its sha256 is wrong), ``GatedError`` among
    them, ``StorageError`` when the disk is full or cannot be written.
    """
    stage, reason, useless, status = name or part.name, "", set[str](), 0
    wanted = _Wanted(part, size, sha256, wire or Wire(), headers or {})
    for url in [url for _ in range(TRIES) for url in urls]:
        if url in useless:
            continue
        try:
            _try(url, wanted, lambda done: progress and progress(stage, done, size))
            _etag_file(part).unlink(missing_ok=True)
            return
        except RefusedError as error:
            reason, status = f"{host_of(url)}: {error}", error.status
            useless.add(url)
        except _AgainError as error:
            reason = f"{host_of(url)}: {error}"
        log.debug("%s: %s", stage, reason)
    if status in (401, 403):
        raise GatedError(f"{stage}: cannot be fetched ({reason}). Its publisher decides who gets it.", status)
    _give_up(stage, reason, part)


@dataclass(frozen=True)
class _Wanted:
    """What is being fetched, and how."""

    part: Path
    size: int
    digest: str
    wire: Wire
    headers: Mapping[str, str]


def matches(path: Path, digest: str) -> bool:
    """Whether the file ``path`` is the one with this ``digest``: a sha256 in hex, ``md5:…`` or ``git:…``.

    The last is the id git gives a file, sha1 of ``blob <size>\\0`` and its content. Raises ``OSError``.
    """
    kind, _, wanted = digest.rpartition(":")
    if not kind:
        return sha256_file(path) == wanted
    made = hashlib.md5(usedforsecurity=False) if kind == "md5" else hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        if kind == "git":
            made.update(b"blob %d\x00" % path.stat().st_size)
        while piece := file.read(PIECE):
            made.update(piece)
    return made.hexdigest() == wanted


def _give_up(stage: str, reason: str, part: Path) -> NoReturn:
    kept = _size(part)
    what = f"{stage}: cannot be fetched ({reason})"
    if kept:
        raise ModelError(
            f"{what}. The {kept / MIB:.1f} MiB that came are kept; give the same command again to go on."
        )
    raise ModelError(f"{what}. Check the network, or try again later.")


def _try(url: str, wanted: _Wanted, tell: Any) -> None:
    """One address, once. Raises ``RefusedError`` or ``_AgainError``."""
    part, size = wanted.part, wanted.size
    have = _size(part)
    if have > size:
        _forget(part)
        have = 0
    if have < size or not size:
        _fill(url, wanted, have, tell)
    tell(size)
    if not matches(part, wanted.digest):
        _forget(part)
        kind = wanted.digest.rpartition(":")[0] or "sha256"
        problem = f"not the file the catalog knows ({kind} differs); it was discarded"
        raise _AgainError(problem) if have else RefusedError(problem)


def _fill(url: str, wanted: _Wanted, have: int, tell: Any) -> None:
    """Write the answer behind the ``have`` bytes of the part, or from the beginning when the server sends all."""
    part, size, wire = wanted.part, wanted.size, wanted.wire
    try:
        with wire.open(url, _headers(url, part, have) | dict(wanted.headers)) as answer:
            _require_same(answer, wanted.digest)
            have = _beginning(answer, part, have, size)
            if have == 0:
                _remember(url, answer.headers.get("ETag"), part)
            with _disk(part), part.open("ab" if have else "wb") as file:
                while piece := _read(answer):
                    have += len(piece)
                    if have > size:
                        break
                    file.write(piece)
                    tell(have)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is not a beginning of what is there
            _forget(part)
        kind = RefusedError if error.code in FINAL and error.code not in PASSING else _AgainError
        refused = kind(f"HTTP {error.code} {error.reason}")
        if isinstance(refused, RefusedError):
            refused.status = error.code
        raise refused from error
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
    ) as error:  # ValueError: it redirects to no address
        raise _AgainError(reason_of(error, wire)) from error
    if have > size:
        _forget(part)
        raise RefusedError(f"it sends more than the {size} bytes the catalog knows")
    if have < size:
        raise _AgainError(f"the connection ended after {have} of {size} bytes")


def _headers(url: str, part: Path, have: int) -> dict[str, str]:
    headers = {"User-Agent": "facelock", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag := _recall(url, part):
            headers["If-Range"] = etag
    return headers


def _require_same(answer: http.client.HTTPResponse, digest: str) -> None:
    """Raise ``RefusedError`` when the server itself says that it gives another file."""
    said = answer.headers.get(LINKED, "").strip().removeprefix("W/").strip('"').lower()
    if len(said) == 64 and len(digest) == 64 and said != digest:
        raise RefusedError(f"it gives another file than the catalog knows (sha256 {said[:12]}…)")


def _beginning(answer: http.client.HTTPResponse, part: Path, have: int, size: int) -> int:
    """Where in the file the answer begins: behind what is here, or at 0. Raises ``RefusedError``, ``_AgainError``."""
    if answer.status == 206:
        begin, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if begin.partition("-")[0] != str(have) or total not in (str(size), "*"):
            _forget(part)
            raise _AgainError("it goes on in another place than asked; what was here is discarded")
        return have
    if answer.status != 200:
        raise _AgainError(f"HTTP {answer.status}")
    if have:
        log.info(
            "%s: the server cannot go on at byte %d, so the file is fetched from its beginning", part, have
        )
    length = answer.headers.get("Content-Length")
    if length is not None and length != str(size):
        raise RefusedError(f"it has {length} bytes where the catalog knows {size}")
    return 0


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The next piece. Raises ``_AgainError``, so that a failing network is never taken for a failing disk."""
    try:
        return answer.read1(PIECE)
    except TimeoutError as error:
        raise _AgainError("it stopped sending") from error
    except (OSError, http.client.HTTPException) as error:
        raise _AgainError(str(error) or type(error).__name__) from error


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Map a failing write of ``path`` to ``StorageError``; what was written stays."""
    try:
        yield
    except OSError as error:
        raise cache_error(error, path) from error


NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
"""Something else lies where a folder should."""


def cache_error(error: OSError, path: Path) -> StorageError:
    """What a failed write in the cache folder is raised as: the machine's fault, whatever it is."""
    found = storage_error(error, path)
    if isinstance(found, StorageError) and error.errno not in NO_FOLDER:
        return found
    reason = error.strerror or str(error)
    return StorageError(
        f"{path}: cannot be written ({reason}). Set FACELOCK_HOME to a folder where weights may lie."
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _forget(part: Path) -> None:
    """Remove what has come, and the ETag of it."""
    for path in (part, _etag_file(part)):
        with suppress(OSError):
            path.unlink()


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember(url: str, etag: str | None, part: Path) -> None:
    """Keep the ETag of what is being fetched; a weak one promises nothing about bytes."""
    _etag_file(part).unlink(missing_ok=True)
    if etag and not etag.startswith("W/"):
        with _disk(part):
            _etag_file(part).write_text(json.dumps({"url": url, "etag": etag}))


def _recall(url: str, part: Path) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        kept = json.loads(_etag_file(part).read_text())
        etag = kept.get("etag") if kept.get("url") == url else None
        return etag if isinstance(etag, str) and etag.isprintable() else None
    return None
