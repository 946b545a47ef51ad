"""``facelock bench speed``: seconds per stage of a clip, and peak memory of a short and a long one.

Each clip is made by the command line in a process of its own, so that memory is that of a user's run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelock.bench import cast
from facelock.bench.tables import number, publish, table
from facelock.protocols import Progress

if TYPE_CHECKING:
    import psutil

SHORT = 10.0


def run(
    *,
    seconds: float = 600.0,
    identities: int = 1,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A clip of 10 s, and one of ``seconds`` for the memory's sake."""
    lengths = [SHORT] if seconds <= SHORT else [SHORT, seconds]
    clips = []
    for i, length in enumerate(lengths):
        clips.append(_clip(length, seed, device))
        if progress:
            progress("clips", i + 1, len(lengths))
    stages = list(clips[0]["stages"])
    rows = [["wall, start-up included", *(number(c["wall"], 1) for c in clips)]]
    rows += [[s, *(number(c["stages"].get(s), 2) for c in clips)] for s in stages]
    rows += [["peak memory, MiB", *(number(c["peak_mib"], 0) for c in clips)]]
    command = f"facelock bench speed --seconds {seconds:g}"
    body = table(["seconds", *(f"clip of {n:g} s" for n in lengths)], rows)
    return publish("speed", command, body, {"clips": clips}, out)


def _clip(seconds: float, seed: int, device: str) -> dict[str, Any]:
    """Run ``facelock generate`` and watch it."""
    who = cast.member(0)
    with tempfile.TemporaryDirectory() as folder:
        picture, target = Path(folder, "face.png"), Path(folder, "clip.mp4")
        _save_portrait(who, picture)
        command = [
            sys.executable,
            "-m",
            "facelock",
            "generate",
            who.prompt,
            "--face",
            str(picture),
            "--seconds",
            str(seconds),
            "--seed",
            str(seed),
            "--device",
            device,
            "--quiet",
            "--target",
            "0",
            "-o",
            str(target),
        ]
        began = time.perf_counter()
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        peak = _peak_memory(child)
        wall = time.perf_counter() - began
        if child.returncode not in (0, 4):
            message = child.stderr.read().decode() if child.stderr else ""
            raise RuntimeError(f"the benchmark's clip failed: {message}")
        stages = json.loads(target.with_suffix(".report.json").read_text())["stage_seconds"]
    return {"seconds": seconds, "wall": wall, "peak_mib": peak / 2**20, "stages": stages}


def _save_portrait(who: cast.Member, path: Path) -> None:
    from PIL import Image

    Image.fromarray((cast.portrait(who)[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(path)


def _peak_memory(child: subprocess.Popen[bytes]) -> int:
    """Bytes of the largest resident set of the process and its encoder together, until it ends."""
    import psutil

    peak, process = 0, psutil.Process(child.pid)
    while child.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, _resident(process))
        time.sleep(0.2)
    return peak


def _resident(process: psutil.Process) -> int:
    """Bytes held by a process and the programs that it started.

    A child between fork and exec still shows its parent's own pages, and would count them twice.
    """
    import psutil

    total, program = process.memory_info().rss, process.exe()
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            total += child.memory_info().rss if child.exe() != program else 0
    return total
