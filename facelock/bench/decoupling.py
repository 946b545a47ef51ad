"""``facelock bench decoupling``: does a locked face keep the blueprint's pose, expression, gaze and light?

The renderer knows the truth. Input: clips of *other* held-out people, through the blueprint's own autoencoder. They
are locked and restored toward a held-out reference; the truth is that reference rendered under the same nuisance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facelock.bench import cast
from facelock.bench.drift import figures
from facelock.bench.tables import number, publish, table
from facelock.bootstrap import over_clips
from facelock.miniature import world
from facelock.miniature.data import WINDOW
from facelock.miniature.parameters import take
from facelock.pipeline import Pipeline
from facelock.protocols import Progress
from facelock.report.comparison import flicker, motion_signals, stillness
from facelock.report.figures import Series
from facelock.types import ChunkRecords

CLIP = 3 * WINDOW
"""Frames of a clip."""


def run(
    *,
    seconds: float | None = None,
    identities: int = 12,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the benchmark; ``seconds`` is ignored (clips of 51 frames)."""
    pipeline = Pipeline.from_recipe("miniature", device)
    results = []
    for index in range(identities):
        results.append(_one(pipeline, index, identities, seed))
        if progress:
            progress("characters", index + 1, identities)
    names = {
        "points_before": "landmarks of the blueprint against the truth, % of eye distance",
        "points_after": "landmarks of the result against the truth, % of eye distance",
        "points_truth": "landmarks found in the truth itself (the detector's own error), %",
        "psnr_before": "PSNR of the enlarged blueprint's face against the truth, dB",
        "psnr_after": "PSNR of the result's face against the truth, dB",
        "judge_before": "judge similarity before",
        "judge_after": "judge similarity after",
        "judge_truth": "judge similarity of the truth (ceiling)",
        "stillness": "stillness (motion kept, ≥ .95 wanted)",
        "stillness_truth": "stillness of the truth itself: what a perfect lock would get",
        "flicker": "flicker ÷ the blueprint's (≤ 1.1 wanted)",
        "flicker_truth": "flicker of the truth itself ÷ the blueprint's",
        "honesty": "honesty: judge's gain ÷ in-loop gain (≥ .8 wanted)",
    }
    means = {k: over_clips([r[k] for r in results]) for k in names}
    rows = [
        [text, number(means[k].value), f"{number(means[k].low)} … {number(means[k].high)}"]
        for k, text in names.items()
    ]
    command = f"facelock bench decoupling --identities {identities} --seed {seed}"
    body = table(["figure", "mean", "95 % interval over characters"], rows)
    return publish("decoupling", command, body, {k: f.model_dump() for k, f in means.items()}, out)


@torch.no_grad()
def _one(pipeline: Pipeline, index: int, count: int, seed: int) -> dict[str, float | None]:
    parts, size = pipeline.parts, pipeline.recipe.native_size[0]
    who, other = cast.member(index), cast.member(count + index)
    identity = cast.identity(who, parts)
    _, now = cast.true_clip(who, CLIP, 64, 70 + seed)
    same = torch.zeros(CLIP, dtype=torch.long)
    stranger = world.render(take(other.face, same), take(who.look, same), now, 64)
    truth = world.render(take(who.face, same), take(who.look, same), now, size)
    again = parts.backbone.reconstruct  # type: ignore[attr-defined]
    raw = torch.cat([again(window) for window in stranger.split(WINDOW)])
    locked, lock = parts.locker.lock(raw, [identity])
    final, restored = parts.restorer.restore(locked, [identity])
    plain = parts.upscaler.upscale(raw)
    points, box = world.landmarks(take(who.face, same), now, size)
    before, after, true = (tuple(parts.judge.measure(v, [identity])) for v in (plain, final, truth))
    records = ChunkRecords(0, CLIP, after, ledger_unlocked=before, lock=tuple(lock), restore=tuple(restored))
    top, first = (Series.from_rows(rows, frames=CLIP) for rows in (true, before))
    alive = stillness(motion_signals(top), motion_signals(first), fps=float(pipeline.fps))
    result = figures(pipeline, [records], identity, CLIP, float(np.nanmean(top.similarity)))
    assert result.unlocked is not None  # noqa: S101 - it was given
    return {
        "points_before": _point_error(first, points),
        "points_after": _point_error(Series.from_rows(after, frames=CLIP), points),
        "points_truth": _point_error(top, points),
        "psnr_before": face_psnr(plain, truth, box),
        "psnr_after": face_psnr(final, truth, box),
        "judge_before": result.unlocked.mean.value,
        "judge_after": result.figures.mean.value,
        "judge_truth": result.figures.ceiling.value,
        "stillness": result.stillness.value,
        "stillness_truth": alive.value,
        "flicker": result.flicker.residual_ratio,
        "flicker_truth": flicker(top, first).residual_ratio,
        "honesty": result.honesty.ratio,
    }


def _point_error(series: Series, truth: Tensor) -> float:
    """Mean distance of the detected landmarks to the true ones, in % of the eye distance."""
    seen = torch.from_numpy(series.landmarks).float()
    eyes = (truth[:, 1] - truth[:, 0]).norm(dim=-1)
    return float(((seen - truth).norm(dim=-1).mean(1) / eyes).nanmean() * 100)


def face_psnr(frames: Tensor, truth: Tensor, box: Tensor) -> float:
    """PSNR inside the true face boxes (T, 4)."""
    total, count = 0.0, 0
    for a, b, (x1, y1, x2, y2) in zip(frames, truth, box.round().long().tolist(), strict=True):
        d = (a - b)[:, max(y1, 0) : y2, max(x1, 0) : x2]
        total, count = total + float(d.square().sum()), count + d.numel()
    return float(-10 * torch.log10(torch.tensor(total / count)))
