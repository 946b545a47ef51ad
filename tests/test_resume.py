"""Kill -9 at every change of the disk and at random moments: the resumed clip is the uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHUNKS = 4
RESULTS = ["clip.mp4", "clip.report.html", "clip.report.json"]


def run(folder: Path, *arguments: object) -> tuple[dict, list[dict]]:
    """The uninterrupted clip, and one outcome per kill."""
    path = f"{HERE.parent}:{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "resume_runner.py"), str(folder), *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    whole, *kills = [json.loads(line) for line in done.stdout.splitlines()]
    return whole, kills


def check(whole: dict, kills: list[dict]) -> None:
    assert whole["files"] == RESULTS and whole["code"] == 0 and whole["made"] == CHUNKS
    for kill in kills:
        where = f"killed at {kill['point']}"
        assert kill["frames"] == whole["frames"], where
        assert kill["rows"] == whole["rows"], where  # similarities, and the residual across the seam
        assert kill["files"] == RESULTS, where  # no .part, no .partial
        assert kill["made"] <= CHUNKS + 1, where  # at most one chunk is made twice
        assert kill["code"] in (0, 9), where  # 9: it was finished, and exists already


def test_killed_before_every_change_of_the_disk(ram_path):
    whole, kills = run(ram_path, "plain", "aimed")
    assert len(kills) == whole["changes"] > 40
    assert all(kill["killed"] for kill in kills)
    assert [kill["point"] for kill in kills if kill["code"] == 9] in ([], [whole["changes"] - 1])
    assert any(kill["made"] == CHUNKS + 1 for kill in kills)  # some kills do cost a chunk
    check(whole, kills)


def test_killed_with_ffmpeg_at_aimed_points(ram_path):
    whole, _ = run(ram_path / "count", "ffmpeg", "timed", 0.0)
    check(*run(ram_path, "ffmpeg", "aimed", *range(1, whole["changes"], 6)))


@pytest.mark.parametrize("seed", [1])
def test_killed_with_ffmpeg_at_random_moments(ram_path, seed):
    rng = random.Random(seed)
    shares = sorted(rng.uniform(0.02, 0.98) for _ in range(10))  # of the uninterrupted run, measured there
    whole, kills = run(ram_path, "ffmpeg", "timed", *shares)
    assert any(kill["killed"] for kill in kills)
    check(whole, kills)
