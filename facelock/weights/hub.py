"""A folder of a repository on the Hugging Face hub: listed, fetched file by file, published only as a whole.

::

    commit, files = listing("Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers", fetch, wire)
    fetch_hub(entry, fetch, wire, tell)

One question to the hub's API gives the commit behind a revision and, of every file, its size and digest (sha256 of
large files, git's blob id of small ones). Everything is then asked for at that commit and compared with it; where the
answer carries the hub's own sha256 (``X-Linked-Etag``), a wrong one is refused before a byte of it is read. What the
catalog pins must agree too, and what was recorded by an earlier download. ``HF_ENDPOINT`` names a mirror (https
only), ``HF_TOKEN`` is sent to it and to nobody else.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote

from facelock.errors import ModelError
from facelock.files import publish
from facelock.protocols import Progress
from facelock.weights import sha256_file
from facelock.weights.catalog import DIFFUSERS, Entry, Fetch, relative_path
from facelock.weights.download import GatedError, download, matches
from facelock.weights.placing import cache_errors, require_room, staging_of, swap
from facelock.weights.receipt import Kept, Receipt, read_receipt, receipt_path, write_receipt
from facelock.weights.wire import Wire, ask

log = logging.getLogger(__name__)

ENDPOINT = "https://huggingface.co"
LONGEST_LISTING = 32 << 20
"""Bytes of the hub's answer that are read."""
MOST_FILES = 2000


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at a commit."""

    path: str
    """In the repository."""
    name: str
    """In the folder here."""
    size: int
    digest: str
    """sha256 in hex, or ``"git:<blob id>"``."""


def endpoint() -> str:
    """The hub's address, without a slash at its end."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or ENDPOINT


def _authorization() -> dict[str, str]:
    token = os.environ.get("HF_TOKEN", "").strip()
    return {"Authorization": f"Bearer {token}"} if token and token.isascii() and token.isprintable() else {}


def fetch_hub(entry: Entry, fetch: Fetch, wire: Wire, tell: Progress) -> None:
    """Bring the files of ``entry`` and publish them at once; record what came.

    What is here already, in an unfinished download or in a damaged folder, is kept where it is whole. Raises
    ``ModelError``, ``StorageError``.
    """
    repo, before = fetch.repo or "", read_receipt(entry.path)
    before = before if before and before.source.partition("@")[0] == repo else None
    revision = fetch.revision if _is_commit(fetch.revision) or before is None else before.commit
    commit, files = listing(entry.name, repo, revision, fetch, wire)
    _agree(entry, files, before, commit)
    staging = staging_of(entry)
    with cache_errors(staging):
        staging.mkdir(exist_ok=True)
    missing = _settle(entry.path, staging, files)
    total = sum(file.size for file in files)
    require_room(staging, sum(f.size - _here(staging / f"{f.name}.part") for f in missing))
    done = total - sum(file.size for file in missing)
    tell(entry.name, done, total)
    for file in sorted(missing, key=lambda each: each.size):  # a refusal comes with the first small one
        url = f"{endpoint()}/{repo}/resolve/{commit}/{quote(file.path)}"
        _bring(entry, file, url, wire, _shifted(tell, done, total))
        done += file.size
    _publish(entry, staging, files, f"{repo}@{commit}", first=before is None)


def _shifted(tell: Progress, done: int, total: int) -> Progress:
    """The progress of one file as that of the whole folder."""
    return lambda name, here, _: tell(name, done + here, total)


def listing(name: str, repo: str, revision: str, fetch: Fetch, wire: Wire) -> tuple[str, tuple[HubFile, ...]]:
    """The commit behind ``revision`` and the files that ``fetch`` takes of it.

    Raises ``ModelError`` in one sentence about ``name`` when the hub cannot be asked, knows no such repository,
    wants an account, or has not what is wanted.
    """
    url = f"{endpoint()}/api/models/{repo}/revision/{revision}?blobs=true"
    try:
        answer = ask(url, _authorization(), most=LONGEST_LISTING, name=name, wire=wire)
        found = json.loads(answer)
        commit, siblings = str(found["sha"]), [dict(row) for row in found["siblings"]]
    except urllib.error.HTTPError as error:
        raise _refused(name, repo, revision, error) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{name}: the hub's answer about {repo} cannot be read. Try again later.") from error
    if not _is_commit(commit) or len(siblings) > MOST_FILES:
        raise ModelError(f"{name}: the hub's answer about {repo} cannot be read. Try again later.")
    files = tuple(_wanted(siblings, fetch))
    _complete(name, repo, commit, files, fetch)
    return commit, files


def _refused(name: str, repo: str, revision: str, error: urllib.error.HTTPError) -> ModelError:
    if error.code in (401, 403):
        return gated(name, repo, error.code)
    if error.code == 404:
        return ModelError(
            f"{name}: the hub has no {repo} at {revision} (HTTP 404). Its publisher may have moved or withdrawn it; "
            "put its files at a path of your own and name that in the recipe."
        )
    return ModelError(f"{name}: cannot be fetched (HTTP {error.code} {error.reason}). Try again later.")


def gated(name: str, repo: str, code: int) -> ModelError:
    """The sentence for a repository that wants to know who asks."""
    return ModelError(
        f"{name}: the hub does not give {repo} to everybody (HTTP {code}). Accept its licence on "
        f"{ENDPOINT}/{repo}, set HF_TOKEN to a token of that account, and give the same command again."
    )


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(letter in "0123456789abcdef" for letter in revision)


def _wanted(siblings: Sequence[Mapping[str, Any]], fetch: Fetch) -> Iterator[HubFile]:
    """Those rows of the listing that are taken, under the names they get here. Raises ``ModelError``."""
    for row in siblings:
        path = str(row.get("rfilename", ""))
        if not any(_is_like(path, pattern) for pattern in fetch.include):
            continue
        name = _plain_name(path, fetch.variant)
        if name is None:
            continue
        lfs, size = row.get("lfs") or {}, row.get("size")
        digest = str(lfs.get("sha256") or f"git:{row.get('blobId')}")
        whole = len(digest.removeprefix("git:")) == (40 if digest.startswith("git:") else 64)
        try:
            relative_path(path)
            if not whole or not isinstance(size, int) or size < 0:
                raise ValueError("no size or digest")
        except ValueError as error:
            raise ModelError(
                f"{fetch.repo}: the hub's row of {path[:100]!r} is not usable ({error}). Try later."
            ) from error
        yield HubFile(path, name, size, digest)


def _is_like(path: str, pattern: str) -> bool:
    """Whether ``path`` is one that ``pattern`` means; a star stands for a part of one name."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _plain_name(path: str, variant: str) -> str | None:
    """The name a file gets here; None for one that is left out for the sake of its ``variant``."""
    if not variant or not path.endswith((".safetensors", ".safetensors.index.json")):
        return path
    return path.replace(f".{variant}.", ".") if f".{variant}." in path else None


def _complete(name: str, repo: str, commit: str, files: Sequence[HubFile], fetch: Fetch) -> None:
    """Raise ``ModelError`` unless everything that is asked for is there: a checkpoint half there is no checkpoint."""
    optional = fetch.include is DIFFUSERS or tuple(fetch.include) == DIFFUSERS
    wanted = ["model_index.json", "*/*.safetensors"] if optional else fetch.include
    for pattern in wanted:
        if not any(_is_like(file.path, pattern) for file in files):
            raise ModelError(
                f"{name}: the hub's {repo} at {commit[:12]} holds no {pattern}, so it is not what the catalog knows. "
                "Name a folder of your own in the recipe."
            )
    if len({file.name for file in files}) != len(files):
        raise ModelError(f"{name}: two files of the hub's {repo} would get one name. Reinstall FaceLock.")


def _agree(entry: Entry, files: Sequence[HubFile], before: Receipt | None, commit: str) -> None:
    """Raise ``ModelError`` where the hub's digests differ from those that are known of the same files."""
    known = dict(entry.files)
    if before is not None and before.commit == commit:
        known = {name: kept.sha256 for name, kept in before.files.items()} | known
    offered = {file.name: file.digest for file in files}
    for name, sha256 in known.items():
        digest = offered.get(name)
        if digest is None or (not digest.startswith("git:") and digest != sha256):
            what = "has no longer" if digest is None else "gives another file than is known as"
            lock = (
                ""
                if name in entry.files
                else f", or remove {receipt_path(entry.path)} to take it as it is now"
            )
            raise ModelError(f"{entry.name}: the hub {what} {name}. Do not use it{lock}.")


def _settle(path: Path, staging: Path, files: Sequence[HubFile]) -> list[HubFile]:
    """Take over what is whole already; return the files that have yet to come."""
    missing = []
    for file in files:
        staged, old = staging / file.name, path / file.name
        if _is_whole(staged, file):
            continue
        with cache_errors(staged):
            staged.parent.mkdir(parents=True, exist_ok=True)
            staged.unlink(missing_ok=True)
            if _is_whole(old, file):
                _take(old, staged)
                continue
        missing.append(file)
    return missing


def _is_whole(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and matches(path, file.digest)


def _take(old: Path, staged: Path) -> None:
    try:
        staged.hardlink_to(old)
    except OSError:  # a file system without links
        shutil.copy2(old, staged)


def _here(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _bring(entry: Entry, file: HubFile, url: str, wire: Wire, tell: Progress) -> None:
    """One file, resumed, verified, under its name in the staging folder."""
    staged = staging_of(entry) / file.name
    part = staged.with_name(f"{staged.name}.part")
    try:
        download(
            [url], part, size=file.size, sha256=file.digest, name=entry.name, wire=wire,
            headers=_authorization(), progress=tell,
        )  # fmt: skip
    except GatedError as error:
        raise gated(entry.name, entry.fetch.repo or "" if entry.fetch else "", error.status) from error
    publish(part, staged)


def _publish(entry: Entry, staging: Path, files: Sequence[HubFile], source: str, *, first: bool) -> None:
    """Record the digests of what lies in ``staging``, and give it the entry's name."""
    kept = {}
    for file in files:
        path = staging / file.name
        digest = sha256_file(path) if file.digest.startswith("git:") else file.digest
        wrong = entry.files.get(file.name, digest) != digest
        if wrong:
            path.unlink()
            raise ModelError(
                f"{entry.name}: {file.name} is not the file the catalog knows; it was discarded."
            )
        kept[file.name] = Kept(digest, file.size, path.stat().st_mtime_ns)
    _tidy(staging, kept)
    write_receipt(entry.path, Receipt(source, kept))
    with cache_errors(entry.path):
        swap(staging, entry.path)
    if first and set(kept) - set(entry.files):
        log.info(
            "%s: nobody published its digests in advance; those of this first download are recorded in %s and hold "
            "from now on", entry.name, receipt_path(entry.path),
        )  # fmt: skip


def _tidy(staging: Path, kept: Mapping[str, Kept]) -> None:
    """Remove what an earlier, other listing left behind."""
    for path in sorted(staging.rglob("*"), reverse=True):
        with suppress(OSError):
            if path.is_dir():
                path.rmdir()  # goes only when it is empty
            elif path.relative_to(staging).as_posix() not in kept:
                path.unlink()
