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
PLAIN, TUNED, OURS = "insightface loop", "the same, at our detection size", "FaceLock's lock"


def run(
    *,
    seconds: float = 4.0,
    identities: int = 4,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the arms on the same blueprint-sized frames, interleaved; medians of ``ROUNDS``.

    insightface's loop comes twice: as it is used without a word about sizes, and with this recipe's detection size.
    Each of the ``identities`` is locked onto a clip of ``seconds`` of somebody else.
    """
    pipeline = Pipeline.from_recipe("miniature", device)
    parts = pipeline.parts
    count = round(seconds * float(pipeline.fps))
    clips = [
        (cast.true_clip(cast.member(k + 1), count, 64, seed)[0], cast.identity(cast.member(k), parts))
        for k in range(identities)
    ]
    plain, tuned = PlainSwap(parts, own_size=True), PlainSwap(parts)
    arms = {
        PLAIN: lambda: [plain(frames, identity) for frames, identity in clips],
        TUNED: lambda: [tuned(frames, identity) for frames, identity in clips],
        OURS: lambda: [parts.locker.lock(frames, [identity]) for frames, identity in clips],
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    busy: dict[str, list[float]] = {name: [] for name in arms}
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
    ratio, cpu_ratio = ({k: ms[k] / ms[OURS] for k in (PLAIN, TUNED)} for ms in (medians, cores))
    rows = [[k, number(v, 2), number(cores[k], 2)] for k, v in medians.items()]
    rows += [[f"{k} ÷ ours", number(ratio[k], 2), number(cpu_ratio[k], 2)] for k in ratio]
    figures = {"ms": medians, "cpu_ms": cores, "ratio": ratio, "cpu_ratio": cpu_ratio}
    command = f"facelock bench lock --seconds {seconds:g} --identities {identities}"
    head = ["arm", "ms per frame", "of processor time"]
    return publish("lock", command, table(head, rows), figures, out)
