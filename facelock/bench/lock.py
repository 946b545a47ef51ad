"""``facelock bench lock``: our lock stage against a plain insightface loop with the same networks, in one run."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from facelock.bench import cast
from facelock.bench.swap import PlainSwap
from facelock.bench.tables import number, publish, table
from facelock.pipeline import Pipeline
from facelock.protocols import Progress

ROUNDS = 7


def run(
    *,
    seconds: float = 4.0,
    identities: int = 4,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time both arms on the same blueprint-sized frames, interleaved; medians of ``ROUNDS``.

    Each of the ``identities`` is locked onto a clip of ``seconds`` of somebody else.
    """
    pipeline = Pipeline.from_recipe("miniature", device)
    parts = pipeline.parts
    count = round(seconds * float(pipeline.fps))
    clips = [
        (cast.true_clip(cast.member(k + 1), count, 64, seed)[0], cast.identity(cast.member(k), parts))
        for k in range(identities)
    ]
    swap = PlainSwap(parts)
    times: dict[str, list[float]] = {"insightface loop": [], "FaceLock's lock": []}
    busy: dict[str, list[float]] = {name: [] for name in times}
    arms = {
        "insightface loop": lambda: [swap(frames, identity) for frames, identity in clips],
        "FaceLock's lock": lambda: [parts.locker.lock(frames, [identity]) for frames, identity in clips],
    }
    for r in range(ROUNDS + 1):
        for name, work in arms.items():
            began, used = time.perf_counter(), time.process_time()
            with torch.no_grad():
                work()
            if r:  # the first round warms up
                times[name].append(time.perf_counter() - began)
                busy[name].append(time.process_time() - used)
        if progress:
            progress("rounds", r, ROUNDS)
    medians, cores = (
        {k: statistics.median(v) * 1000 / (count * identities) for k, v in each.items()}
        for each in (times, busy)
    )
    ratio, of_cores = (ms["insightface loop"] / ms["FaceLock's lock"] for ms in (medians, cores))
    rows = [[k, number(v, 2), number(cores[k], 2)] for k, v in medians.items()]
    rows.append(["ratio", number(ratio, 2), number(of_cores, 2)])
    figures = {"ms": medians, "cpu_ms": cores, "ratio": ratio, "cpu_ratio": of_cores}
    command = f"facelock bench lock --seconds {seconds:g} --identities {identities}"
    head = ["arm", "ms per frame", "of processor time"]
    return publish("lock", command, table(head, rows), figures, out)
