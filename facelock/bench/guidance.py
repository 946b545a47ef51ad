"""``facelock bench guidance``: does identity guidance help, or does it please the recogniser that it climbs?

The miniature's blueprint with and without guidance, each without and with the lock; guided by several short edits from
the beginning on; and guided so late that nothing makes a face of the edits. Held-out characters, the same prompts and
seeds.

The in-loop recogniser gives the gradient, so what it says of guided frames is no evidence: the
judge's figures are. Honesty is the judge's gain ÷ the recogniser's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facelock.bench import cast
from facelock.bench.stills import Stills
from facelock.bench.tables import number, publish, table
from facelock.bootstrap import over_clips
from facelock.closed_loop import assign, similarity
from facelock.guidance import IdentityGuide
from facelock.identity import embedding_of
from facelock.job import Job
from facelock.pipeline import Pipeline
from facelock.protocols import FacePack, Progress
from facelock.recipe import load_recipe
from facelock.recipe.sections import GuidanceRecipe
from facelock.report.comparison import LEAST_GAIN
from facelock.types import Identity, LedgerRow

DECODER = "miniature/tiny_decoder"
LABELS = {
    "loop": "in-loop similarity (gives the gradient)",
    "judge": "judge similarity",
    "motion": "landmark motion per frame, % of eye distance",
    "sharpness": "sharpness of the face (Laplacian variance)",
    "score": "detector's score of the face",
    "coverage": "frames with a readable face",
}
"""Figure of one clip → what it is called."""


@dataclass
class Clock:
    """Seconds of denoising steps, from each window's second on: ``on_step`` of a backbone.

    On a CPU these are seconds of the processor, which other processes do not lengthen.
    """

    read: Callable[[], float]
    spans: list[float] = field(default_factory=list)
    last: float = 0.0

    def __call__(self, done: int, steps: int) -> None:
        """Called after every step."""
        now = self.read()
        if done > 1:
            self.spans.append(now - self.last)
        self.last = now


def run(
    *,
    seconds: float = 29 / 12,
    identities: int = 4,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the benchmark; returns every figure, and writes ``guidance.md``, ``.json`` and contact sheets to ``out``."""
    recipe = load_recipe("miniature")
    settings = recipe.guidance or GuidanceRecipe(decoder=DECODER)
    pipeline = Pipeline.from_recipe(recipe.model_copy(update={"guidance": settings}), device)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    read = time.process_time if pipeline.parts.device == "cpu" else time.perf_counter
    guides, backbone = _guides(pipeline.parts.guide), pipeline.parts.backbone  # type: ignore[attr-defined]
    clocks = {name: Clock(read) for name in guides}
    for index in range(identities):
        who = cast.member(index)
        identity = cast.identity(who, pipeline.parts)
        frames = round(seconds * float(pipeline.fps))
        stills = Stills(frames, float(pipeline.fps))
        for name, (guide, locked) in ARMS.items():
            _set(backbone, guides[guide], clocks[guide])
            job = Job(who.prompt, seconds, seed + index, None, locked, locked)
            found[name].append(_clip(pipeline, job, identity, stills, name))
        if out is not None and identity.portrait is not None:
            stills.save(out / f"guidance-{index:02d}.png", identity.portrait)
        if progress:
            progress("characters", index + 1, identities)
    _set(backbone, None, None)
    step = {name: fmean(clocks[guide].spans) for name, guide in TIMED.items()}
    command = f"facelock bench guidance --seconds {seconds:.4g} --identities {identities} --seed {seed}"
    return publish("guidance", command, *_results(found, step, settings), out)


ARMS = {
    "plain": ("none", False),
    "guided": ("early", False),
    "in short edits": ("short", False),
    "guided late": ("late", False),
    "plain, locked": ("none", True),
    "guided, locked": ("early", True),
}
"""Arm → its guide, and whether it is locked (and restored)."""
TIMED = {"plain": "none", "guided": "early", "in short edits": "short"}
"""What a step is called in the table → its guide."""
SHORT: dict[str, Any] = {"window": (0.6, 0.97), "scale": 0.15, "trust_radius": 0.6}
"""What sets the guide of the arm ``in short edits`` off from the recipe's."""
LATE: dict[str, Any] = {"window": (0.15, 0.85), "scale": 0.15, "trust_radius": 1.0}
"""What sets the guide of the arm ``guided late`` off from the recipe's: edits that no later step makes a face of."""


def _set(backbone: Any, guide: Any, clock: Clock | None) -> None:
    backbone.guide, backbone.on_step = guide, clock


def _guides(guide: Any) -> dict[str, Any]:
    """Arm's guide by name, all over the same networks."""

    def other(changes: dict[str, Any]) -> IdentityGuide:
        return IdentityGuide(guide.decoder, guide.embedder, guide.pack, replace(guide.settings, **changes))

    return {"none": None, "early": guide, "short": other(SHORT), "late": other(LATE)}


@torch.no_grad()
def _clip(pipeline: Pipeline, job: Job, identity: Identity, stills: Stills, arm: str) -> dict[str, float]:
    """The figures of one clip of one arm."""
    rows: list[LedgerRow] = []
    alike: list[float] = []
    pack = pipeline.parts.locker.pack  # type: ignore[attr-defined]
    for made in pipeline.run(job, [identity]):
        rows += made.records.ledger
        alike += _in_loop(pack, made.chunk.frames, identity)
        stills.see(arm, made.chunk.frames, made.span.start)
    readable = [row for row in rows if row.similarity is not None and row.unreadable is None]
    return {
        "loop": fmean(alike) if alike else 0.0,
        "judge": fmean(row.similarity for row in readable if row.similarity is not None) if readable else 0.0,
        "motion": 100 * _motion(rows),
        "sharpness": fmean(row.sharpness or 0.0 for row in readable) if readable else 0.0,
        "score": fmean(row.score or 0.0 for row in readable) if readable else 0.0,
        "coverage": len(readable) / max(1, len(rows)),
    }


def _in_loop(pack: FacePack, frames: Tensor, identity: Identity) -> list[float]:
    """Similarity of the character's face in each frame that has one, by the loop's own recogniser."""
    reference = embedding_of(identity, pack.encoder.id)[None]
    faces = pack.detect(frames)
    own = pack.embed(frames, faces)
    strangers, width = pack.encoder.thresholds.far_1e2, int(frames.shape[-1])
    index, _ = assign(faces, own, reference, strangers, width)
    return similarity(own[index], reference.expand(len(index), -1)).tolist()


def _motion(rows: Sequence[LedgerRow]) -> float:
    """Mean step of a landmark between neighbouring frames, in eye distances."""
    points = [None if row.landmarks is None else np.array(row.landmarks) for row in rows]
    steps = [
        float(np.linalg.norm(b - a, axis=1).mean() / np.linalg.norm(a[1] - a[0]))
        for a, b in pairwise(points)
        if a is not None and b is not None
    ]
    return fmean(steps) if steps else 0.0


def _results(
    found: Mapping[str, Sequence[Mapping[str, float]]], step: Mapping[str, float], settings: GuidanceRecipe
) -> tuple[str, dict[str, Any]]:
    """The tables, and every figure."""
    means = {arm: {k: fmean(c[k] for c in clips) for k in LABELS} for arm, clips in found.items()}
    rows = [[label, *(number(means[arm][key]) for arm in ARMS)] for key, label in LABELS.items()]
    gains = {
        name: {
            key: over_clips([a[key] - b[key] for a, b in zip(found[after], found[before], strict=True)])
            for key in ("loop", "judge")
        }
        for name, before, after in (
            ("unlocked", "plain", "guided"),
            ("short", "plain", "in short edits"),
            ("late", "plain", "guided late"),
            ("locked", "plain, locked", "guided, locked"),
        )
    }
    honesty = {name: _honesty(gain["judge"].value, gain["loop"].value) for name, gain in gains.items()}
    ratio = {name: value / step["plain"] for name, value in step.items() if name != "plain"}
    said = [
        [f"gain of guidance, {name}: {which}", number(g.value), f"{number(g.low)} … {number(g.high)}"]
        for name, gain in gains.items()
        for which, g in gain.items()
    ]
    said += [[f"honesty, {name}", number(value, 2), ""] for name, value in honesty.items()]
    said += [
        [f"time per denoising step, {name} ÷ plain", number(value, 2), ""] for name, value in ratio.items()
    ]
    said += [[f"ms per denoising step, {name}", number(1000 * value, 1), ""] for name, value in step.items()]
    body = (
        table(["mean over characters", *ARMS], rows)
        + "\n\n"
        + table(["figure", "value", "95 % interval"], said)
    )
    results = {
        "settings": settings.model_dump(mode="json"),
        "arms": means,
        "clips": found,
        "gains": {name: {k: g.model_dump() for k, g in gain.items()} for name, gain in gains.items()},
        "honesty": honesty,
        "seconds_per_step": dict(step),
        "step_ratio": ratio,
    }
    return body, results


def _honesty(judge: float | None, loop: float | None) -> float | None:
    """None where the recogniser itself gained too little to compare with."""
    return None if judge is None or loop is None or loop < LEAST_GAIN else judge / loop
