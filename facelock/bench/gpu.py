"""``facelock bench gpu``: models of production size with random weights, at true shapes, on a CUDA device.

Time and memory do not depend on the values of weights, so nothing is downloaded: the networks are built on the device
from the published sizes. What does depend on values is fixed: the detector's answer (so many boxes a frame). FLOPs are
counted by torch (2 × MAC), in the cold run, and printed beside the times with their share of the rate that a large
matrix product reaches on the same device in the same run.

Lines come in the order of their importance. One that fails says why and the next begins; with ``seconds`` nothing new
is begun that would end after so many. What is there is written to ``out`` after every line.

Without a CUDA device the same code runs the same classes at tiny shapes on the CPU, and every line says so.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from facelock.bench import gpu_faces, gpu_parts
from facelock.bench.gpu_bench import Bench, Line
from facelock.bench.gpu_sizes import FULL, TINY
from facelock.bench.tables import number, publish, table
from facelock.protocols import Progress
from facelock.runtime import resolve_device

ROUNDS = 3
BOXES = 2
"""Faces that every frame is taken to show."""
NO_GPU = "No CUDA device: tiny shapes of the same classes on a CPU. Nothing here says how fast a GPU is."

ELSEWHERE = (
    ("insightface's loop ÷ our lock, same networks", "≥ 12", "it needs trained networks and onnxruntime on the GPU: "
     "facelock bench lock --device cuda"),
    ("busy time of the largest resource ÷ wall", "≥ 0.95", "it needs whole clips: facelock bench stages, which knows "
     "the processor's share alone"),
    ("8 shots ÷ 8 × one warm shot", "≤ 1.02", "it needs whole clips: facelock bench film --device cuda"),
)  # fmt: skip
"""Goals that random weights cannot show: what, the goal, why not and where."""


def run(
    *,
    seconds: float | None = None,
    identities: int = BOXES,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Measure everything; ``identities`` faces a frame are forced, ``seconds`` is the time that it may take."""
    where = resolve_device(device)
    bench = Bench(FULL if where.type == "cuda" else TINY, where, rounds, seconds)
    command = "facelock bench gpu" + (f" --seconds {seconds:g}" if seconds else "")
    torch.manual_seed(seed)

    def told(line: Line) -> None:
        if bench.on_gpu:
            sys.stderr.write(f"{time.perf_counter() - bench.began:6.1f} s  {' | '.join(_row(bench, line))}\n")
        if out is not None:
            publish("gpu", command, _body(bench), _results(bench), out)

    bench.told = told
    gc.freeze()  # what was imported stays: without this every line's collection takes a quarter of a second
    parts = _parts(identities)
    for done, (name, (part, cost)) in enumerate(parts.items(), 1):
        bench.part(name, part, cost)
        if progress:
            progress("parts", done, len(parts))
    gc.unfreeze()
    return publish("gpu", command, _body(bench), _results(bench), out)


def _parts(faces: int) -> dict[str, tuple[Callable[[Bench], None], float]]:
    """Name → what it measures, and the least seconds that are worth beginning it with."""
    lock, portraits = (
        partial(part, count=faces) for part in (gpu_faces.lock_and_restore, gpu_faces.portraits)
    )
    return {
        "rates": (gpu_parts.matrix, 1),
        "denoiser": (gpu_parts.denoiser, 5),
        "attention": (gpu_parts.attention, 4),
        "lock off": (gpu_parts.lock_off, 20),
        "decoders": (gpu_parts.decoders, 3),
        "guided step": (gpu_parts.guided, 12),
        "lock and restoration": (lock, 4),
        "direct": (gpu_parts.direct, 6),
        "long clip": (gpu_parts.long_clip, 8),
        "portraits": (portraits, 8),
        "larger denoiser": (gpu_parts.large, 10),
        "quantised": (gpu_parts.quantised, 4),
        "compiled": (gpu_parts.compiled, 45),
        "elsewhere": (_elsewhere, 0),
    }


def _elsewhere(bench: Bench) -> None:
    for what, goal, why in ELSEWHERE:
        bench.add(Line(what, goal=goal, note=f"not run here: {why}"))


# ---------------------------------------------------------------------- tables


def _body(bench: Bench) -> str:
    rows = [_row(bench, line) for line in bench.lines]
    head = [
        "what",
        "device",
        "cold, s",
        "warm, s",
        "GFLOP",
        "share of the matrix rate",
        "peak, GiB",
        "ratio",
        "goal",
        "",
    ]
    said = "" if bench.on_gpu else f"\n\n{NO_GPU}"
    return f"Models: {bench.sizes.name}, random weights.\n\n{table(head, rows)}{said}"


def _row(bench: Bench, line: Line) -> list[str]:
    timing = line.timing
    share = line.flops / timing.warm / bench.rate if timing and line.flops and bench.rate else None
    times = (timing.cold, timing.warm) if timing else (None, None)
    counted = number(line.flops / 1e9, 3 if line.flops < 1e12 else 0) if line.flops else "–"
    figures = [*(number(value, 4) for value in times), counted, number(share, 2)]
    return [
        line.what,
        bench.where,
        *figures,
        number(line.memory, 1),
        number(line.ratio, 4),
        line.goal,
        line.note,
    ]


def _results(bench: Bench) -> dict[str, Any]:
    return {
        "device": bench.where,
        "matrix_rate": bench.rate,
        "seconds": time.perf_counter() - bench.began,
        "lines": [
            {"what": line.what, "cold": line.timing.cold if line.timing else None,
             "warm": line.timing.warm if line.timing else None, "flops": line.flops, "memory_gib": line.memory,
             "ratio": line.ratio, "goal": line.goal, "note": line.note, "trace": line.trace}
            for line in bench.lines
        ],
    }  # fmt: skip
