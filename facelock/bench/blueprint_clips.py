"""What ``facelock bench blueprint`` makes, one picklable unit of work at a time: renders, clips, continuations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facelock.bench import cast
from facelock.bench.fading import Trace, fading
from facelock.bench.frechet import Array
from facelock.bench.renders import act, named, sheets, wanted
from facelock.bench.slots import Lessons
from facelock.job import Job, plan_chunks
from facelock.journal import Tail
from facelock.miniature.data import WINDOW
from facelock.pipeline import Pipeline
from facelock.recipe import load_recipe
from facelock.report.comparison import motion_signals, stillness
from facelock.report.figures import Series
from facelock.runtime import derive_seed
from facelock.steps import Steps
from facelock.types import Identity

CLIP = 3 * WINDOW
"""Frames of the clips whose motion is compared."""
STILL_EVERY = 2
"""Motion is measured on every so many of the prompts."""
STRIDE = 2
"""The classifier looks at every so many frames of a window: 9 of 17."""
DECODED, ACTED, PLAIN, APART = 8, 24, 96, WINDOW
"""Clips of a training shard that go through the autoencoders, others, those of which single frames are looked at only,
and the distance of these."""
TRUE_STRIDE = 4
"""Of a long true clip every so many frames are rendered."""
Models = Sequence[str | None]


@cache
def pipeline_of(model: str | None, device: str) -> Pipeline:
    """This process's pipeline of the recipe ``miniature``, with the blueprint ``model`` (a folder) if given."""
    recipe = load_recipe("miniature")
    if model is not None:
        own = recipe.blueprint.model_copy(update={"model": model})
        recipe = recipe.model_copy(update={"blueprint": own})
    return Pipeline.from_recipe(recipe, device)


@cache
def _reference(device: str) -> Identity:
    """Somebody for the judge to look for: its landmarks and poses are those of any face."""
    return cast.identity(cast.member(0), pipeline_of(None, device).parts)


def name_of(model: str | None) -> str:
    """What a blueprint is called in the results."""
    return "blueprint" if model is None else "against"


# ---------------------------------------------------------------------- what the classifier learns from


def training_shard(index: int, *, seed: int, models: Models, device: str) -> Lessons:
    """True renders of training identities: some through each autoencoder and as they are, many more as single frames.

    A window takes as long to decode as forty frames to render, so most people are seen in one plain frame only.
    """
    labels = wanted(DECODED + ACTED + PLAIN, 1000 * (seed + 1) + index)
    clips = act(labels, "train", WINDOW, 1000 * (seed + 1) + index)
    twice, moving = slice(0, DECODED), slice(0, DECODED + ACTED)
    single = slice(DECODED + ACTED, None)
    raw = clips.render(twice)
    seen = [
        clips.sheets(twice, STRIDE, _decoded(raw, pipeline_of(m, device))[:, ::STRIDE], 2 * index)
        for m in models
    ]
    plain = torch.cat([raw[:, ::STRIDE], clips.render(slice(DECODED, DECODED + ACTED), STRIDE)])
    signals = clips.signals(moving, STRIDE)
    return Lessons(
        clips=torch.cat([clips.sheets(moving, STRIDE, plain, 2 * index), *seen]),
        labels=torch.cat([labels[moving], *[labels[twice] for _ in seen]]),
        signals=torch.cat([signals, *[signals[twice] for _ in seen]]),
        more=clips.sheets(single, APART, clips.render(single, APART), 2 * index + 1),
        more_labels=labels[single],
        more_signals=clips.signals(single, APART),
    )


def _decoded(clips: Tensor, pipeline: Pipeline) -> Tensor:
    """(N, 17·k, 3, H, W) clips as the blueprint's autoencoder shows them, window by window."""
    again = pipeline.parts.backbone.reconstruct  # type: ignore[attr-defined]
    return torch.stack([torch.cat([again(part) for part in clip.split(WINDOW)]) for clip in clips])


# ---------------------------------------------------------------------- one prompt


@dataclass(frozen=True)
class Window:
    """What is kept of a window of 17 frames."""

    sheets: Tensor
    """(9, 3, 88, 64) uint8: every other frame, and its mouth (:func:`facelock.bench.renders.sheets`)."""
    faces: Array
    """(n, D) the judge's embeddings of the faces found in every fourth; n ≤ 5."""

    @classmethod
    def of(cls, judge: Any, clip: Tensor) -> Window:
        """Of the first window of (T, 3, 64, 64) frames in [0, 1]."""
        frames = clip[:WINDOW:STRIDE].contiguous()
        found = judge.pack.detect(frames)
        first = [int((found.frame == f).nonzero()[0]) for f in found.frame.unique()]
        faces = found.select(torch.tensor(first, dtype=torch.long))
        points = torch.full((len(frames), 5, 2), torch.nan)
        points[faces.frame] = faces.landmarks.float()
        some = faces.select((faces.frame % STRIDE == 0).nonzero()[:, 0])
        embedded = judge.pack.embed(frames, some).double().numpy()
        return cls(sheets(frames, points), np.asarray(embedded))


@dataclass(frozen=True)
class Shown:
    """What one blueprint showed under one prompt."""

    windows: dict[int, Window]
    """Sampler steps → the first window."""
    decoded: tuple[Window, Window]
    """The two true renders of the prompt, through its autoencoder."""


@dataclass(frozen=True)
class Sample:
    """One prompt: two true renders of held-out people, and what each blueprint made of it."""

    truth: tuple[Window, Window]
    shown: dict[str, Shown]
    """By the blueprint's name."""
    stillness: dict[str, dict[str, float | None]]
    """Per blueprint, and for the other ``true`` render: signal → variance ÷ that of the true render."""


@torch.no_grad()
def one_prompt(
    index: int, *, prompts: int, steps: Sequence[int], seed: int, models: Models, device: str
) -> Sample:
    """The ``index``-th of all ``prompts``; ``steps`` begins with the recipe's own."""
    moves = index % STILL_EVERY == 0
    length = CLIP if moves else WINDOW
    labels = wanted(prompts, seed)[index : index + 1]
    acted = [act(labels, "heldout", length, 2000 * (seed + 1) + 2 * index + k) for k in (0, 1)]
    true = torch.cat([clips.render(slice(None)) for clips in acted])
    made, decoded = {}, {}
    for model in models:
        start = derive_seed(seed, index, "bench")
        made[name_of(model)] = _made(acted[0].prompts[0], length, steps, start, model, device)
        decoded[name_of(model)] = _decoded(true, pipeline_of(model, device))
    judge = pipeline_of(None, device).parts.judge
    shown = {
        name: Shown({n: Window.of(judge, w) for n, w in windows.items()}, _both(judge, decoded[name]))
        for name, (windows, _) in made.items()
    }
    alive = _alive({name: clip for name, (_, clip) in made.items()}, decoded, device) if moves else {}
    return Sample(_both(judge, true), shown, alive)


def _both(judge: Any, clips: Tensor) -> tuple[Window, Window]:
    return Window.of(judge, clips[0]), Window.of(judge, clips[1])


def _made(
    prompt: str, length: int, steps: Sequence[int], seed: int, model: str | None, device: str
) -> tuple[dict[int, Tensor], Tensor]:
    """The first window per number of steps, and the clip of ``length`` frames at the first of them."""
    pipeline = pipeline_of(model, device)
    backbone: Any = pipeline.parts.backbone
    own = backbone.steps
    first = derive_seed(seed, 0, "blueprint")
    windows = {}
    try:
        for count in steps[1:]:
            backbone.steps = count
            windows[count] = backbone.extend(prompt, None, seed=first)[:WINDOW]
    finally:
        backbone.steps = own
    job = Job(prompt, length / float(pipeline.fps), seed, None, False, False)
    clip = torch.cat(list(chained(pipeline, job, [])))
    return {steps[0]: clip[:WINDOW], **windows}, clip


def chained(pipeline: Pipeline, job: Job, identities: Sequence[Identity]) -> Iterator[Tensor]:
    """The low-resolution chunks of ``job``, locked and anchored as the pipeline does it, or on its own frames alone."""
    frames, tail = job.frame_count(pipeline.fps), None
    backbone = pipeline.parts.backbone
    for span in plan_chunks(frames, first=backbone.first_chunk, chunk=backbone.chunk):
        step = Steps(span, frames, None)
        raw, _ = pipeline.draw(step, job, identities, tail)
        shown, _ = step("lock", pipeline.locking(job), raw, identities, start=span.start)
        end = pipeline.ended(shown, tail)
        tail = Tail(end, shown[-1:], raw[-1:], tail.anchor if tail and job.lock else end)
        yield shown


def _alive(
    made: dict[str, Tensor], decoded: dict[str, Tensor], device: str
) -> dict[str, dict[str, float | None]]:
    """Motion of each clip ÷ that of the true render through the same autoencoder; ``true``: of the other render."""
    base = {name: _signals(clips[0], device) for name, clips in decoded.items()}
    first = next(iter(decoded))
    pairs = {name: (_signals(clip, device), base[name]) for name, clip in made.items()}
    pairs["true"] = (_signals(decoded[first][1], device), base[first])
    fps = float(pipeline_of(None, device).fps)
    found = {name: stillness(ours, theirs, fps=fps) for name, (ours, theirs) in pairs.items()}
    return {name: {"value": figure.value, **figure.ratios} for name, figure in found.items()}


def _signals(clip: Tensor, device: str) -> dict[str, Array]:
    """Pose, expression and landmarks of (T, 3, 64, 64) frames, as the judge reads them off enlarged ones."""
    parts = pipeline_of(None, device).parts
    rows = parts.judge.measure(parts.upscaler.upscale(clip), [_reference(device)])
    return motion_signals(Series.from_rows(rows, frames=len(clip)))


# ---------------------------------------------------------------------- long continuations


@torch.no_grad()
def long_clip(
    index: int, *, seconds: float, seed: int, models: Models, device: str
) -> dict[str, dict[str, float]]:
    """Fading of one held-out character's clip: true renders, and each blueprint locked and unlocked."""
    who, fps = cast.member(index), float(pipeline_of(None, device).fps)
    frames = round(seconds * fps)
    found = {"true renders": fading(_true_trace(index, frames, seed), fps / TRUE_STRIDE)}
    for model in models:
        pipeline = pipeline_of(model, device)
        identity = cast.identity(who, pipeline.parts)
        for arm, lock in (("locked", True), ("unlocked", False)):
            job = Job(who.prompt, seconds, seed + index, None, lock, False)
            trace = Trace.joined(Trace.of(chunk) for chunk in chained(pipeline, job, [identity]))
            found[f"{name_of(model)}, {arm}"] = fading(trace, fps)
    return found


def _true_trace(index: int, frames: int, seed: int) -> Trace:
    """Every fourth frame of a true render of somebody held out under the character's prompt."""
    clips = act(torch.tensor([named(cast.member(index).prompt)]), "heldout", frames, 3000 + seed + index)
    return Trace.of(clips.render(slice(None), TRUE_STRIDE)[0])
