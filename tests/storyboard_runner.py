"""Renders a toy film in child processes that are killed, for ``test_storyboard_render.py``.

    python storyboard_runner.py FOLDER POINTS...

All is imported once; each attempt is a fork of this process, which itself never computes. A child kills itself
before its n-th change of the disk; then the same film is rendered again by an undisturbed child. Prints one
JSON object per point, the first for the uninterrupted film with the number of changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from unittest import mock

import toys
from resume_runner import CHANGES, fork
from test_storyboard_edit import Backbone
from test_storyboard_render import RECIPE

import facelock
import facelock.report.page
import facelock.storyboards.edit
import facelock.storyboards.render
import facelock.storyboards.timeline
from facelock.pipeline import Pipeline
from facelock.storyboard import Storyboard

WORDS = ("talking", "nodding", "laughing", "talking", "nodding", "laughing")


def board(folder: Path) -> Storyboard:
    """Six shots of two chunks."""
    shots = [
        {"prompt": f"{{maria}} {word}", "seconds": 8 / 12, "seed": seed} for seed, word in enumerate(WORDS)
    ]
    data = {"schema": "facelock.storyboard.v1", "cast": {"maria": {"face": "maria.png"}}}
    return Storyboard.from_data({**data, "defaults": {"recipe": "toy.toml"}, "shots": shots}, folder)


def make(home: Path, folder: Path, kill_at: int | None = None) -> None:
    """Render, killing this process before its ``kill_at``-th change of the disk."""
    count = 0

    def counted(real):
        def call(*args: object, **kwargs: object) -> object:
            nonlocal count
            if count == kill_at:
                os.kill(os.getpid(), 9)
            count += 1
            return real(*args, **kwargs)

        return call

    parts = toys.Parts(backbone=Backbone())
    Pipeline.from_recipe = lambda recipe, *_: Pipeline(recipe, parts)
    facelock.storyboards.render.require_ready = lambda *_, **__: None
    for name in (*CHANGES, "link"):
        setattr(os, name, counted(getattr(os, name)))
    facelock.render(board(home), folder / "film").require()
    (folder / "changes.txt").write_text(str(count))
    (folder / "made.txt").write_text(str(len(parts.backbone.calls)))


def attempt(home: Path, folder: Path, point: int | None = None) -> dict[str, object]:
    """Kill a run before change ``point``, render again, and tell what came out."""
    folder.mkdir()
    killed = False
    if point is not None:
        killed = os.WIFSIGNALED(os.waitpid(fork(lambda: make(home, folder, point)), 0)[1])
    code = os.waitstatus_to_exitcode(os.waitpid(fork(lambda: make(home, folder)), 0)[1])
    film = folder / "film"
    files = [path for path in sorted(film.rglob("*")) if path.suffix in (".mp4", ".otio", ".png")]
    digests = {str(path.relative_to(film)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    rest = [path.name for path in film.rglob("*") if ".part" in path.name]
    made = int((folder / "made.txt").read_text()) if not code else -1
    return {"point": point, "killed": killed, "code": code, "digests": digests, "left": rest, "made": made}


def main() -> None:
    root, *points = sys.argv[1:]
    home = Path(root)
    (home / "toy.toml").write_text(RECIPE)
    (home / "maria.png").write_bytes(toys.picture("maria"))
    toys.write_plainly(lambda name, value: mock.patch(name, value).start())
    mock.patch("facelock.storyboards.edit.write_film", lambda cut, path, _: join(cut, path)).start()
    mock.patch("facelock.storyboards.sheet.pictures", lambda *_: []).start()
    mock.patch("facelock.storyboards.timeline.heard", lambda shot: None).start()  # toy shots are no videos
    whole = attempt(home, home / "whole")
    changes = int((home / "whole" / "changes.txt").read_text())
    print(json.dumps({**whole, "changes": changes}), flush=True)  # noqa: T201 - its output
    for point in points or range(changes):
        print(json.dumps(attempt(home, home / f"at{point}", int(point) % changes)), flush=True)  # noqa: T201


def join(cut, path: Path) -> int:
    """A film without ffmpeg."""
    from facelock.files import atomic_write

    atomic_write(path, b"".join(shot.result.video.read_bytes() for shot in cut.shots))
    return 0


if __name__ == "__main__":
    main()
