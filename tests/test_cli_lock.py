"""``facelock lock`` as people type it: help, exit codes, one-line errors, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import lock_toys
import pytest
from footage_files import PICTURES, SOUND, ffmpeg, video
from test_closed_loop import GREEN, person

from facelock import cli, footage
from facelock.errors import InterruptedRunError
from facelock.footage import Footage

RESULTS = ["fixed.mp4", "fixed.report.html", "fixed.report.json"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return video(tmp_path_factory.mktemp("clip") / "clip.mp4", lock_toys.frames(6)[:-1])


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run ``facelock lock`` with toy stages in an empty folder: (exit code, stdout, stderr)."""
    asked = []

    def lock(path, identity, **options):
        asked.append({"face": identity, **options})
        return Footage(
            lock_toys.parts(), path, [lock_toys.wish()], replace=[person("green", GREEN)],
            progress=options["progress"],
        )  # fmt: skip

    monkeypatch.setattr("facelock.api.lock", lock)
    monkeypatch.setattr(footage, "FRAMES", 4)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            cli.main(["lock", *map(str, arguments)])
        return left.value.code, *capsys.readouterr()

    run.asked = asked
    return run


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_help(command):
    code, out, err = command("--help")
    assert code == 0 and err == "" and out.startswith("Usage: facelock lock")
    for option in ("--replace", "--aligner", "--faces", "--judge", "--no-restore", "--restart", "--json"):
        assert option in out


def test_a_clip_is_locked(command, clip, tmp_path):
    code, out, err = command(
        clip, "--face", "red.png", "-o", "fixed.mp4", "--aligner", "warp", "--no-restore"
    )
    assert (code, out) == (
        0,
        "fixed.mp4: red is recognised in 5 of 5 frames (100 %), in a clip too short to tell a drift.\n",
    )
    assert "facelock: judge 5/5 frames" in err and left(tmp_path) == RESULTS
    assert command.asked[0]["face"] == ["red.png"] and command.asked[0]["aligner"] == "warp"
    assert command.asked[0]["restore"] is False and command.asked[0]["replace"] is None
    code, _, err = command(clip, "--face", "red.png", "-o", "fixed.mp4")
    assert code == 2 and "exists already" in err and len(err.splitlines()) == 1
    code, out, err = command(clip, "--face", "red.png", "-o", "fixed.mp4", "--overwrite", "--quiet", "--json")
    assert code == 0 and err == "" and json.loads(out)["kind"] == "lock"


def test_a_missed_target_is_exit_code_4_and_the_clip_is_kept(command, clip, tmp_path, monkeypatch):
    judged = lock_toys.parts(judge=lock_toys.toys.Judge(wrong=(0, 1)))
    monkeypatch.setattr(lock_toys, "parts", lambda: judged)
    code, _, err = command(clip, "--face", "red.png", "-o", "fixed.mp4", "--quiet", "--target", "0.9")
    assert code == 4 and "2 of the clip's 5 frames do not match" in err and left(tmp_path) == RESULTS


BAD = {
    "none": (lambda f, c: "none.mp4", "no such file"),
    "empty": (lambda f, c: _written(f / "a.mp4", b""), "is empty"),
    "cut": (lambda f, c: _written(f / "b.mp4", c.read_bytes()[: c.stat().st_size // 2]), "cut short|damaged"),
    "sound": (lambda f, c: ffmpeg(f / "c.m4a", *SOUND), "no pictures"),
    "picture": (lambda f, c: ffmpeg(f / "d.png", *PICTURES, "-frames:v", 1), "is a picture"),
    "playlist": (
        lambda f, c: _written(f / "e.mp4", f"ffconcat version 1.0\nfile '{c}'\n".encode()),
        "is a playlist",
    ),
    "URL": (lambda f, c: "https://127.0.0.1:9/a.mp4", "no such file"),
    "nobody": (
        lambda f, c: video(f / "f.mp4", lock_toys.frames(3)[-1:].expand(3, -1, -1, -1)),
        "No face is seen",
    ),
}


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(command, clip, tmp_path, tmp_path_factory, kind):
    make, reason = BAD[kind]
    path = make(tmp_path_factory.mktemp("bad"), clip)
    code, out, err = command(path, "--face", "red.png", "-o", "fixed.mp4", "--quiet")
    assert code == 2 and out == "" and len(err.splitlines()) == 1, err
    assert err.startswith("facelock: error: ") and any(word in err for word in reason.split("|"))
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-o", "fixed.avi"], "must end in .mp4"),
        (["-o", "none/fixed.mp4"], "does not exist"),
        (["-o", "fixed.mp4", "--target", "2"], "share from 0 to 1"),
        (["-o", "fixed.mp4", "--recipe", "nothing"], "nothing"),
        (["-o", "fixed.mp4", "--nonsense"], "--nonsense"),
        ([], "output"),
    ],
)
def test_wrong_options_are_one_line(command, clip, tmp_path, arguments, reason):
    code, _, err = command(clip, "--face", "red.png", *arguments)
    assert code == 2 and reason in err and len(err.splitlines()) == 1
    assert left(tmp_path) == []


def test_a_clip_is_not_replaced_by_its_own_result(command, clip, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    code, _, err = command("clip.mp4", "--face", "red.png", "-o", "clip.mp4", "--overwrite", "--quiet")
    assert code == 2 and "is the clip itself" in err
    assert (tmp_path / "clip.mp4").read_bytes() == clip.read_bytes() and left(tmp_path) == ["clip.mp4"]


def test_an_interrupted_run_says_that_it_can_go_on(command, clip, tmp_path, monkeypatch):
    write = Footage._write

    def stop(self, path, frames):
        if path.name == "00001.mkv":
            raise InterruptedRunError("Interrupted by SIGINT. Finished chunks are kept.")
        write(self, path, frames)

    monkeypatch.setattr(Footage, "_write", stop)
    code, _, err = command(clip, "--face", "red.png", "-o", "fixed.mp4", "--quiet")
    assert code == 130 and "chunks are kept" in err and left(tmp_path) == ["fixed.mp4.partial"]
    monkeypatch.setattr(Footage, "_write", write)
    code, _, err = command(clip, "--face", "red.png", "-o", "fixed.mp4")
    assert code == 0 and "resuming after 4 of 5 frames" in err and left(tmp_path) == RESULTS
