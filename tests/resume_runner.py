"""Runs toy clips in child processes that are killed, for ``test_resume.py``.

    python resume_runner.py FOLDER ffmpeg|plain aimed|timed POINTS...

All is imported once; each attempt is a fork of this process, which itself never computes. ``aimed`` children
kill themselves before their n-th change of the disk, ``timed`` ones are killed after n times the uninterrupted
run's time (0..1), which is measured first. Then
the same clip is made again by an undisturbed child. Prints one JSON object per point.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import toys

import facelock.clip
import facelock.report.page  # noqa: F401 - both are loaded before the forks
from facelock.errors import InputError
from facelock.video.writing import read_chunks

CHANGES = ("replace", "fsync", "unlink", "mkdir", "rmdir")
SECONDS = 15 / 12  # 15 frames: 6 + 4 + 4 + 1


def fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child; return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except InputError as error:
        os._exit(9 if "exists already" in str(error) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def make(folder: Path, kill_at: int | None = None) -> None:
    """Make the clip, killing this process before its ``kill_at``-th change of the disk."""
    count = 0

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal count
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return real(*args, **kwargs)

        return call

    parts = toys.Parts()
    extend = parts.backbone.extend

    def noted(*args: object, **kwargs: object) -> object:
        with (folder / "made.txt").open("a") as file:
            file.write("chunk\n")
        return extend(*args, **kwargs)

    parts.backbone.extend = noted
    for name in CHANGES:
        setattr(os, name, counted(name, getattr(os, name)))
    clip = toys.pipeline(parts).generate("a woman talking", toys.identity(), seconds=SECONDS, seed=3)
    clip.save(folder / "clip.mp4")
    (folder / "changes.txt").write_text(str(count))


def frames_digest(path: Path, plain: bool) -> str:
    """Digest of the decoded frames (of the bytes, without ffmpeg)."""
    digest = hashlib.sha256()
    if plain:
        digest.update(path.read_bytes())
    else:
        for chunk in read_chunks(path, 24):
            digest.update((chunk.frames * 255).round().byte().numpy().tobytes())
    return digest.hexdigest()


def outcome(folder: Path, plain: bool) -> dict[str, object]:
    """What the folder holds after a run: digested by a child, since this process never computes."""
    read, write = os.pipe()
    child = fork(lambda: os.write(write, frames_digest(folder / "clip.mp4", plain).encode()) and None)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        digest = pipe.read().decode()
    os.waitpid(child, 0)
    report = json.loads((folder / "clip.report.json").read_text())
    rows = [[row["frame"], row["similarity"], row["residual"]] for row in report["ledger"]]
    return {
        "frames": digest,
        "rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "made": len((folder / "made.txt").read_text().split()),
        "files": sorted(path.name for path in folder.iterdir() if path.suffix != ".txt"),
    }


def attempt(folder: Path, plain: bool, point: int | None = None, after: float | None = None) -> dict:
    """Kill a run before change ``point`` or ``after`` seconds, make the clip again, and tell what came out."""
    folder.mkdir(parents=True)
    killed = False
    if point is not None or after is not None:
        child = fork(lambda: make(folder, point))
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    code = os.waitstatus_to_exitcode(os.waitpid(fork(lambda: make(folder)), 0)[1])
    return {
        "point": after if point is None else point,
        "killed": killed,
        "code": code,
        **outcome(folder, plain),
    }


def main() -> None:
    root, kind, how, *points = sys.argv[1:]
    plain = kind == "plain"
    if plain:
        toys.write_plainly(lambda name, value: mock.patch(name, value).start())
    begun = time.monotonic()
    first = attempt(Path(root) / "whole", plain)
    whole = time.monotonic() - begun
    changes = int((Path(root) / "whole" / "changes.txt").read_text())
    print(json.dumps({**first, "changes": changes}), flush=True)  # noqa: T201 - its output
    for number, point in enumerate(points or range(changes)):
        at = {"after": float(point) * whole} if how == "timed" else {"point": int(point)}
        result = attempt(Path(root) / f"{how}{number}", plain, **at)
        print(json.dumps(result), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
