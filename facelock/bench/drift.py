"""``facelock bench drift``: does the character stay the same person?

Three arms in one run, same prompts and seeds, all starting from the same locked first chunk:

- **B0** the backbone chained by its own last frames, enlarged by the recipe's upscaler;
- **B2** a plain per-frame face swap (insightface's way: swap, paste back, no loop) on B0's frames, then enlarged;
- **FaceLock** the pipeline as the recipe has it.

Stillness, flicker and honesty set FaceLock beside its own blueprint, unlocked, and B2 beside B0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facelock.bench import cast
from facelock.bench.side_by_side import each, pipeline_of
from facelock.bench.stills import Stills
from facelock.bench.swap import PlainSwap
from facelock.bench.tables import interval, number, publish, table
from facelock.bootstrap import over_clips
from facelock.job import Job, plan_chunks
from facelock.pipeline import Pipeline, resize
from facelock.protocols import Progress
from facelock.report import build_report
from facelock.report.figures import pool
from facelock.report.model import Character
from facelock.runtime import derive_seed
from facelock.types import ChunkRecords, Identity

ARMS = ("B0", "B2", "FaceLock")
LABELS = {"B0": "backbone chained", "B2": "plain face swap"}


def run(
    *,
    seconds: float = 60.0,
    identities: int = 12,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the benchmark; returns every figure, and writes ``drift.md``, ``.json`` and ``.png`` to ``out``."""
    arms: dict[str, list[Character]] = {arm: [] for arm in ARMS}
    work = partial(one_character, seconds=seconds, seed=seed, out=out, device=device)
    for index, found in enumerate(each(work, identities, device, jobs)):
        for name, character in found.items():
            arms[name].append(character)
        if progress:
            progress("characters", index + 1, identities)
    return _publish(arms, seconds, identities, seed, out)


def one_character(
    index: int, *, seconds: float, seed: int, out: Path | None, device: str
) -> dict[str, Character]:
    """Every arm's figures of the ``index``-th held-out character."""
    pipeline = pipeline_of("miniature", device)
    frames = round(seconds * float(pipeline.fps))
    who = cast.member(index)
    identity = cast.identity(who, pipeline.parts)
    top = cast.ceiling(who, pipeline.parts, pipeline.recipe.native_size[0])
    stills = Stills(frames, float(pipeline.fps))
    clips = one_clip(pipeline, who.prompt, identity, frames, seed + index, stills)
    if out is not None and identity.portrait is not None:
        stills.save(out / f"drift-{index:02d}.png", identity.portrait)
    return {name: figures(pipeline, records, identity, frames, top) for name, records in clips.items()}


def one_clip(
    pipeline: Pipeline, prompt: str, identity: Identity, frames: int, seed: int, stills: Stills
) -> dict[str, list[ChunkRecords]]:
    """All three arms of one character, as records only: memory hardly grows with the length."""
    arms: dict[str, list[ChunkRecords]] = {name: [] for name in ARMS}
    parts, size = pipeline.parts, pipeline.recipe.native_size
    swap = PlainSwap(parts)
    before: dict[str, Tensor | None] = {"B0": None, "B2": None}
    made = pipeline.run(Job(prompt, frames / float(pipeline.fps), seed), [identity])
    for ours, raw in zip(made, _own_chain(pipeline, prompt, identity, frames, seed), strict=True):
        span, rows = ours.span, {}
        stills.see("FaceLock", ours.chunk.frames, span.start)
        arms["FaceLock"].append(replace(ours.records, thumbnails={}, thumbnails_unlocked={}))
        for name, low in (("B0", raw), ("B2", swap(raw, identity))):
            large = resize(parts.upscaler.upscale(low), size)
            rows[name] = tuple(parts.judge.measure(large, [identity], start=span.start, before=before[name]))
            before[name] = large[-1]
            stills.see(LABELS[name], large, span.start)
        arms["B0"].append(ChunkRecords(span.start, span.length, rows["B0"]))
        arms["B2"].append(ChunkRecords(span.start, span.length, rows["B2"], ledger_unlocked=rows["B0"]))
    return arms


def figures(
    pipeline: Pipeline, records: Sequence[ChunkRecords], identity: Identity, frames: int, ceiling: float
) -> Character:
    """The report's figures of one clip."""
    judge = pipeline.parts.judge
    report = build_report(
        records,
        settings={},
        identities=[identity],
        thresholds=judge.thresholds,
        fps=pipeline.fps,
        frames=frames,
        kind="generate",
        encoder=judge.encoder,
        ceiling=ceiling,
    )
    return report.characters[0]


@torch.no_grad()
def _own_chain(
    pipeline: Pipeline, prompt: str, identity: Identity, frames: int, seed: int
) -> Iterator[Tensor]:
    """B0's low-resolution chunks: the first one locked like ours, then the backbone on its own frames."""
    backbone, context = pipeline.parts.backbone, None
    for span in plan_chunks(frames, first=backbone.first_chunk, chunk=backbone.chunk):
        chunk_seed = derive_seed(seed, span.index, "blueprint")
        raw = backbone.extend(prompt, context, seed=chunk_seed, references=[identity])
        if context is None:
            raw, _ = pipeline.parts.locker.lock(raw, [identity])
        context = raw[-backbone.context :]
        yield raw[: span.length]


def _publish(
    arms: Mapping[str, Sequence[Character]], seconds: float, identities: int, seed: int, out: Path | None
) -> dict[str, Any]:
    header = ["judge's figures", *ARMS]
    results: dict[str, Any] = {"seconds": seconds, "identities": identities, "seed": seed, "arms": {}}
    columns = []
    for name, characters in arms.items():
        p = pool([c.figures for c in characters]).model_dump()
        p["of_ceiling"] = over_clips([c.figures.ceiling.fraction for c in characters]).model_dump()
        p["stillness"] = over_clips([c.stillness.value for c in characters]).model_dump()
        p["flicker"] = over_clips([c.flicker.residual_ratio for c in characters]).model_dump()
        p["jitter"] = over_clips([c.flicker.jitter_ratio for c in characters]).model_dump()
        p["honesty"] = over_clips([c.honesty.ratio for c in characters]).model_dump()
        p["per_character"] = [
            {"name": c.name, **c.figures.model_dump(exclude={"wrong_spans", "spans"})} for c in characters
        ]
        results["arms"][name] = p
        columns.append(
            [
                interval(p["mean"]),
                interval(p["of_ceiling"]),
                interval(p["drift"]),
                interval(p["slope"]),
                interval(p["corrected_slope"]),
                interval(p["above_far_1e3"]),
                interval(p["coverage"]),
                number(p["minimum"]),
                number(p["longest_below_far_1e3"], 1),
                interval(p["stillness"]),
                interval(p["flicker"]),
                interval(p["honesty"]),
            ]
        )
    labels = [
        "mean similarity",
        "mean ÷ ceiling (true renders)",
        "drift: first 15 % − last 15 %",
        "slope per minute",
        "slope, pose, size and sharpness as covariates",
        "readable frames above FAR 1e-3",
        "coverage (frames with a readable face)",
        "lowest similarity of any frame",
        "longest run below FAR 1e-3, s",
        "stillness (motion ÷ unlocked)",
        "flicker (÷ unlocked)",
        "honesty (judge's gain ÷ loop's)",
    ]
    rows = [[label, *cells] for label, *cells in zip(labels, *columns, strict=True)]
    command = f"facelock bench drift --seconds {seconds:g} --identities {identities} --seed {seed}"
    return publish("drift", command, table(header, rows), results, out)
