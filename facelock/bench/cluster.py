"""``facelock bench cluster``: two Ray workers with a core each against one, on the same film.

Both films have the same equal shots of one held-out character. What counts is the rate of finished shots once every
worker has its models: from the moment when each worker has ended one shot to the last shot's end. Needs the extra
``cluster``.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from facelock.bench import film
from facelock.bench.tables import number, publish, table
from facelock.protocols import Progress

SHOTS = 10
WORKERS = (1, 2)


def run(
    *,
    seconds: float = 5.0,
    identities: int = SHOTS,
    seed: int = 0,
    out: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A film of ``identities`` shots (at least six) of ``seconds`` each, by one worker and by two."""
    shots = max(6, identities)
    arms: dict[int, dict[str, float]] = {}
    for done, workers in enumerate(WORKERS):
        arms[workers] = _arm(workers, shots, seconds, seed, device)
        if progress:
            progress("films", done + 1, len(WORKERS))
    ratio = arms[1]["warm"] / arms[2]["warm"]
    rows = [
        [
            "all shots, start-up of Ray and workers included, s",
            *(number(arms[n]["total"], 1) for n in WORKERS),
        ],
        ["one more shot, s", *(number(arms[n]["warm"], 2) for n in WORKERS)],
        ["two workers ÷ one, shots a second", "", number(ratio, 2)],
    ]
    command = f"facelock bench cluster --seconds {seconds:g} --identities {shots}"
    body = table([f"{shots} shots of {seconds:g} s", *(f"{n} workers" for n in WORKERS)], rows)
    return publish("cluster", command, body, {"arms": arms, "ratio": ratio}, out)


def _arm(workers: int, shots: int, seconds: float, seed: int, device: str) -> dict[str, float]:
    """Seconds of a film, and of each shot once all workers are warm."""
    from facelock.storyboards.render import render

    watch = film.Watch(shots)
    with tempfile.TemporaryDirectory() as folder:
        board = film.board_of(Path(folder), shots, seconds, seed)
        watch.began = time.perf_counter()
        render(board, Path(folder, "film"), on_event=watch.hear, device=device, engine="ray", workers=workers)
    ends = watch.ends
    return {"total": ends[-1] - watch.began, "warm": (ends[-1] - ends[workers - 1]) / (shots - workers)}
