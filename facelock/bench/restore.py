"""``facelock bench restore``: how much of a restored face to keep, by a ladder of shares or by bisection.

Input: clips of *other* held-out people through the blueprint's own autoencoder, locked to a held-out reference. The
truth is that reference rendered under the same nuisance. Every arm enlarges and restores the same locked frames.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facelock.bench import cast
from facelock.bench.decoupling import face_psnr
from facelock.bench.tables import number, publish, table
from facelock.miniature import world
from facelock.miniature.data import WINDOW
from facelock.miniature.parameters import take
from facelock.pipeline import Pipeline
from facelock.protocols import Progress
from facelock.restore_loop import RestoreLoop

ARMS: Mapping[str, dict[str, Any] | None] = {
    "plain upscaling": None,
    "ladder": {"search": "ladder"},
    "bisection, tolerance 0": {"search": "bisect", "tolerance": 0.0},
    "bisection, tolerance .02": {"search": "bisect", "tolerance": 0.02},
    "bisection, tolerance .05": {"search": "bisect", "tolerance": 0.05},
}
"""Name → what differs from the recipe; None: no restorer."""
COLUMNS = {
    "judge": "judge similarity",
    "own": "similarity in the loop",
    "psnr": "face PSNR to the truth, dB",
    "share": "mean share kept",
    "kept": "faces restored",
    "rms": "RMS to the locked frame, of the restored",
    "ms": "ms per frame",
}


def run(
    *,
    seconds: float | None = None,
    identities: int = 12,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the benchmark; ``seconds`` is ignored (clips of one window, 17 frames)."""
    pipeline = Pipeline.from_recipe("miniature", device)
    loops = {name: _loop(pipeline, changes) for name, changes in ARMS.items()}
    found: dict[str, list[dict[str, float | None]]] = {name: [] for name in ARMS}
    for index in range(identities):
        for name, figures in _one(pipeline, loops, index, identities, seed).items():
            found[name].append(figures)
        if progress:
            progress("characters", index + 1, identities)
    means = {name: {key: _mean([f[key] for f in rows]) for key in COLUMNS} for name, rows in found.items()}
    digits = {"psnr": 2, "ms": 1, "judge": 4, "own": 4, "rms": 4}
    rows = [[name, *(number(row[key], digits.get(key, 3)) for key in COLUMNS)] for name, row in means.items()]
    command = f"facelock bench restore --identities {identities} --seed {seed}"
    return publish("restore", command, table(["arm", *COLUMNS.values()], rows), {"arms": means}, out)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of the values that are there."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _loop(pipeline: Pipeline, changes: dict[str, Any] | None) -> RestoreLoop:
    parts, options = pipeline.parts, pipeline.recipe.restore.loop_options()
    own: Any = parts.restorer
    restorer = own.restorer if changes is not None else None
    return RestoreLoop(own.pack, parts.upscaler, restorer, **options | (changes or {}))


@torch.no_grad()
def _one(
    pipeline: Pipeline, loops: Mapping[str, RestoreLoop], index: int, count: int, seed: int
) -> dict[str, dict[str, float | None]]:
    """Figures of one character, per arm."""
    parts, size = pipeline.parts, pipeline.recipe.native_size[0]
    who, other = cast.member(index), cast.member(count + index)
    identity = cast.identity(who, parts)
    _, now = cast.true_clip(who, WINDOW, 64, 70 + seed)
    same = torch.zeros(WINDOW, dtype=torch.long)
    stranger = world.render(take(other.face, same), take(who.look, same), now, 64)
    truth = world.render(take(who.face, same), take(who.look, same), now, size)
    raw = parts.backbone.reconstruct(stranger).cpu()  # type: ignore[attr-defined]
    locked, _ = parts.locker.lock(raw, [identity])
    _, box = world.landmarks(take(who.face, same), now, size)
    return {name: _figures(pipeline, loop, locked, identity, truth, box) for name, loop in loops.items()}


def _figures(
    pipeline: Pipeline, loop: RestoreLoop, locked: Tensor, identity: Any, truth: Tensor, box: Tensor
) -> dict[str, float | None]:
    began = time.perf_counter()
    final, records = loop.restore(locked, [identity])
    spent = time.perf_counter() - began
    judged = [
        row.similarity
        for row in pipeline.parts.judge.measure(final, [identity])
        if row.similarity is not None
    ]
    kept = [record for record in records if record.rung >= 0]
    return {
        "judge": _mean(judged),
        "own": _mean([record.after for record in records]),
        "psnr": face_psnr(final, truth, box),
        "share": _mean([record.share or 0.0 for record in records]),
        "kept": len(kept) / max(len(records), 1),
        "rms": _mean([record.consistency or 0.0 for record in kept]),
        "ms": spent / len(locked) * 1000,
    }
