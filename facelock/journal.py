"""The journal of a run: what is finished stays finished, whatever happens.

::

    clip.mp4.partial/
      run.json             inputs, recipe and weights of the run: what a resume must match
      survey.json            of a clip to be locked: its frames' times and who is who in it
      00000.mkv            chunk 0: its frames, encoded
      00000.safetensors    the exact float32 tail from which chunk 1 continues
      00000.sound          what is heard with it (safetensors), where the blueprint makes sound
      00000.json           its records, with the digests of those above: chunk 0 is committed
      joined.mp4 report.json report.html    the results, while they are prepared
      publish.json         all three are ready: from here on a run only moves them out

Every file is written under a temporary name, flushed, and renamed; the folder itself is the lock. The order
makes each moment safe for a kill: a chunk without a valid ``NNNNN.json`` never happened; once
``publish.json`` stands, renames and removals alone remain, and it is removed last. Nothing here imports
torch at the top.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelock.errors import InputError, StorageError
from facelock.files import atomic_write, storage, sync_folder
from facelock.output import ClipFiles, checked, locked, refuse_existing
from facelock.types import AlignRecord, ChunkRecords, LedgerRow, Sound, Status, Unreadable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SCHEMA = "facelock.run.v1"
RESULTS = ("joined.mp4", "report.json", "report.html")
"""What is prepared in the folder; published in this order beside it."""
_OURS = re.compile(
    r"^\.?(\d{5,}\.(mkv|safetensors|sound|json)|(run|survey|publish|report)\.json|report\.html|joined\.mp4)"
)
_KEPT_CONTEXTS = 2
"""Contexts kept behind the newest chunk; should a segment turn out damaged, fewer chunks are redone."""


@dataclass(frozen=True)
class Tail:
    """The end of what is made, in float32 where the frames lie: exactly what the next chunk needs."""

    context: Tensor
    """(C, 3, h, w) locked frames from which the backbone continues."""
    final: Tensor
    """(1, 3, H, W) last final frame; the judge compares the next one with it."""
    raw: Tensor
    """(1, 3, h, w) the same frame as the blueprint wrote it."""
    anchor: Tensor
    """(C, 3, h, w) the first chunk's locked tail: the scene's fixed reference."""

    def to(self, device: torch.device | str) -> Tail:
        """The same frames on ``device``."""
        return Tail(*(frames.to(device) for frames in vars(self).values()))

    @classmethod
    def of_footage(cls, final: Tensor, raw: Tensor) -> Tail:
        """The end of a clip that no backbone continues: the last frame (1, 3, H, W), final and as it came."""
        return cls(final[:0], final, raw, final[:0])


@dataclass(frozen=True)
class Resume:
    """Where a run goes on."""

    chunks: int = 0
    """Chunks already committed."""
    tail: Tail | None = None
    """End of the last one; None at the beginning."""
    ready: bool = False
    """The results are prepared already; only publishing remains."""


@contextmanager
def claim(path: str | Path, *, overwrite: bool = False, restart: bool = False) -> Iterator[Journal]:
    """Check the output ``path``, lock its folder and hand out its journal.

    Raises :class:`InputError` for a path that cannot be written or exists (without ``overwrite``),
    :class:`OutputBusyError` while another run holds it. Leaves no folder behind when nothing was begun.
    """
    files = ClipFiles(checked(path))
    if not files.partial.exists():
        refuse_existing(files, overwrite, restart)
    with locked(files.partial):
        journal = Journal(files)
        try:
            refuse_existing(files, overwrite, restart)  # again: another run may have finished just now
            yield journal
        finally:
            journal.leave()


class Journal:
    """The journal of one clip, while :func:`claim` holds its folder."""

    def __init__(self, files: ClipFiles) -> None:
        self.files = files
        self.folder = files.partial

    def begin(self, run: Mapping[str, Any], *, restart: bool = False) -> Resume:
        """Start the ``run`` (plain JSON values that decide its frames), or find where to resume it.

        Raises :class:`InputError` with a line per difference when the folder holds another run and
        ``restart`` is off.
        """
        run = json.loads(json.dumps({"schema": SCHEMA, **run}))
        before = None if restart else self._recorded()
        if before is None:
            self._wipe()
            atomic_write(self._run, _dumps(run, indent=1))
            return Resume()
        lines = differences(before, run)
        if lines:
            raise InputError(
                f"{self.folder}: holds an unfinished run with other inputs.\n  "
                + "\n  ".join(lines)
                + "\nGive the same inputs to resume it, or --restart to begin anew."
            )
        return Resume(ready=True) if self._marker.exists() else self._resume()

    def forget(self) -> None:
        """Drop the run that is recorded, with all that it made: nothing can come of it."""
        self._wipe()

    def survey(self) -> dict[str, Any] | None:
        """What :meth:`keep_survey` has kept of this run; None where there is nothing."""
        try:
            return dict(json.loads(self._survey.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None  # never written, or damaged from outside: the clip is looked at again

    def keep_survey(self, seen: Mapping[str, Any]) -> None:
        """Keep what one look at the source has found (plain JSON values)."""
        atomic_write(self._survey, _dumps(seen))

    def segment(self, index: int) -> Path:
        """Where chunk ``index`` is encoded to."""
        return self.folder / f"{index:05d}.mkv"

    def prepared(self) -> tuple[Path, Path, Path]:
        """Where the results are prepared: the clip, its report as JSON and as HTML."""
        video, report, page = (self.folder / name for name in RESULTS)
        return video, report, page

    def commit(self, index: int, tail: Tail, records: ChunkRecords, sound: Sound | None = None) -> None:
        """Make chunk ``index``, whose segment is written, part of the run for good."""
        from safetensors.torch import save

        from facelock.sound import packed

        stored = save({name: frames.cpu().contiguous() for name, frames in vars(tail).items()})
        atomic_write(self._context(index), stored)
        digests = {"segment": _digest(self.segment(index)), "context": hashlib.sha256(stored).hexdigest()}
        if sound is not None:
            heard = packed(sound)
            atomic_write(self._sound(index), heard)
            digests["sound"] = hashlib.sha256(heard).hexdigest()
        atomic_write(self._records(index), _dumps({"digests": digests, "records": asdict(records)}))
        if index >= _KEPT_CONTEXTS:
            _remove(self._context(index - _KEPT_CONTEXTS))

    def segments(self, chunks: int) -> list[Path]:
        """Segments of the first ``chunks`` chunks, in order."""
        return [self.segment(index) for index in range(chunks)]

    def sounds(self, chunks: int) -> Iterator[Sound]:
        """Sounds of the first ``chunks`` chunks, read one at a time; none of a silent run."""
        from facelock.sound import unpacked

        for index in range(chunks):
            if self._sound(index).is_file():
                yield unpacked(self._sound(index))

    def records(self, chunks: int) -> Iterator[ChunkRecords]:
        """Records of the first ``chunks`` chunks, read one at a time."""
        for index in range(chunks):
            yield records_from_dict(json.loads(self._records(index).read_bytes())["records"])

    def publish(self) -> None:
        """Move the prepared results to their places and remove the folder; can be repeated after a kill."""
        if not self._marker.exists():
            atomic_write(self._marker, _dumps(self._recorded(), indent=1))
        for prepared, final in zip(self.prepared(), self.files.published(), strict=True):
            _move(prepared, final)
        with storage(self.folder.parent):
            sync_folder(self.folder.parent)
        self._wipe(keep={self._marker.name})
        _remove(self._marker)

    def leave(self) -> None:
        """Remove the folder if no run is recorded in it."""
        if not self._run.exists() and not self._marker.exists():
            with suppress(OSError, StorageError):
                self._wipe()
                self.folder.rmdir()

    def _context(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"

    def _sound(self, index: int) -> Path:
        return self.folder / f"{index:05d}.sound"

    def _records(self, index: int) -> Path:
        return self.folder / f"{index:05d}.json"

    @property
    def _run(self) -> Path:
        return self.folder / "run.json"

    @property
    def _survey(self) -> Path:
        return self.folder / "survey.json"

    @property
    def _marker(self) -> Path:
        return self.folder / "publish.json"

    def _recorded(self) -> dict[str, Any] | None:
        """What run the folder holds; the marker knows it to the very end."""
        path = self._marker if self._marker.exists() else self._run
        if not path.exists():
            return None
        try:
            return dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: is damaged. Begin anew with --restart.") from error

    def _resume(self) -> Resume:
        """Find the last chunk that is whole, with its context; remove everything after it."""
        whole = 0
        while self._is_whole(whole):
            whole += 1
        for chunks in range(whole, 0, -1):
            tail = self._load_tail(chunks - 1)
            if tail is not None:
                break
        else:
            chunks, tail = 0, None
        keep = {path.name for index in range(chunks) for path in self._chunk_files(index)}
        self._wipe(keep=keep | {self._run.name, self._survey.name})
        return Resume(chunks, tail)

    def _chunk_files(self, index: int) -> tuple[Path, Path, Path, Path]:
        return self.segment(index), self._context(index), self._sound(index), self._records(index)

    def _is_whole(self, index: int) -> bool:
        """Whether the chunk is committed and its segment and sound are those that were committed."""
        digests = self._digests(index)
        if digests is None:
            return False
        files = {"segment": self.segment(index), "sound": self._sound(index)}
        return all(
            path.is_file() and _digest(path) == digests[name]
            for name, path in files.items()
            if name in digests
        )

    def _digests(self, index: int) -> dict[str, str] | None:
        try:
            stored = json.loads(self._records(index).read_bytes())
            records_from_dict(stored["records"])
            heard = {"sound"} & stored["digests"].keys()
            return {key: stored["digests"][key] for key in ("segment", "context", *heard)}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return None  # damaged from outside: the chunk is made again

    def _load_tail(self, index: int) -> Tail | None:
        from safetensors.torch import load

        digests, path = self._digests(index), self._context(index)
        if digests is None or not path.is_file() or _digest(path) != digests["context"]:
            return None
        return Tail(**load(path.read_bytes()))

    def _wipe(self, *, keep: set[str] | frozenset[str] = frozenset()) -> None:
        """Remove our files, but ``keep``. What says that there is something to resume goes first."""
        first = (self._marker.name, self._run.name)
        ours = [path for path in self.folder.iterdir() if _OURS.match(path.name) and path.name not in keep]
        for path in sorted(ours, key=lambda path: (path.name not in first, path.name)):
            _remove(path)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per value that differs, like ``inputs.seed: was 0, now 3``."""
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**old, **new} if old.get(key, _NOTHING) != new.get(key, _NOTHING)]
    return [
        f"{key}: was {_shown(old.get(key, _NOTHING))}, now {_shown(new.get(key, _NOTHING))}" for key in keys
    ]


_NOTHING = object()


def _shown(value: object) -> str:
    text = "absent" if value is _NOTHING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from _flat({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def records_from_dict(stored: Mapping[str, Any]) -> ChunkRecords:
    """Rebuild :class:`ChunkRecords` from what ``dataclasses.asdict`` and JSON made of it."""
    return ChunkRecords(
        start=stored["start"],
        length=stored["length"],
        ledger=tuple(_row(row) for row in stored["ledger"]),
        ledger_unlocked=tuple(_row(row) for row in stored["ledger_unlocked"]),
        lock=tuple(AlignRecord(**record) for record in stored["lock"]),
        restore=tuple(AlignRecord(**record) for record in stored["restore"]),
        thumbnails=_by_frame(stored["thumbnails"]),
        thumbnails_unlocked=_by_frame(stored["thumbnails_unlocked"]),
        seconds=dict(stored["seconds"]),
    )


def _by_frame(stored: Mapping[str, str]) -> dict[int, str]:
    return {int(frame): picture for frame, picture in stored.items()}


def _row(stored: Mapping[str, Any]) -> LedgerRow:
    values = {field.name: stored[field.name] for field in fields(LedgerRow) if field.name in stored}
    why = stored.get("unreadable")
    values |= {"status": Status(stored["status"]), "unreadable": Unreadable(why) if why else None}
    row = LedgerRow(**values)
    box, landmarks = stored.get("box"), stored.get("landmarks")
    return replace(
        row,
        box=tuple(box) if box is not None else None,
        landmarks=tuple((x, y) for x, y in landmarks) if landmarks is not None else None,
    )


def _dumps(value: object, indent: int | None = None) -> bytes:
    return (json.dumps(value, indent=indent, default=_plain) + "\n").encode("ascii")


def _plain(value: Any) -> object:
    """Numpy and torch scalars as Python numbers."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _digest(path: Path) -> str:
    with storage(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    with storage(path):
        path.unlink(missing_ok=True)


def _move(source: Path, target: Path) -> None:
    """Rename ``source``, if it is still there, over ``target``."""
    if source.exists():
        with storage(target):
            source.replace(target)
