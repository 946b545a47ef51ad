"""``facelock bench stages``: the goals of docs/speed.md that need no GPU, on the miniature, all arms in one run.

* the lock switched off against diffusers' own pipeline on the same checkpoint, window, steps and prompt;
* what lock and restoration add to a chunk, against a plain insightface loop with the same networks;
* a late chunk of a long clip against an early one: time and memory;
* how busy the cores are, with the stages in turn and with the next blueprint ahead;
* the lock alone against that loop, by ``facelock bench lock``;
* eight shots against one warm one, by ``facelock bench film``;
* denoising steps with identity guidance against steps without;
* every speed choice of a recipe: seconds a chunk, how far the pictures move, and the judge's similarity of whole clips.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facelock.bench import cast, film, kept, lock
from facelock.bench.guidance import DECODER, Clock
from facelock.bench.swap import PlainSwap
from facelock.bench.tables import number, publish, table
from facelock.bench.timing import Timing, interleaved, resident
from facelock.job import Job
from facelock.pipeline import Pipeline
from facelock.protocols import Progress
from facelock.recipe import Recipe, load_recipe
from facelock.recipe.sections import GuidanceRecipe, SpeedRecipe
from facelock.runtime import resolve_device
from facelock.tuning import Speed, StepCache
from facelock.tuning.placement import Placement
from facelock.tuning.plan import Plan
from facelock.tuning.ratios import measure_ratios
from facelock.weights import locate

ROUNDS = 5
BUSY_SECONDS = 5.0
"""Of the clips that show how busy the cores are."""
SHOT_SECONDS = 20.0
"""Of a shot, at most: a third of the long clip."""


def run(
    *,
    seconds: float = 60.0,
    identities: int = 1,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """All of it; ``seconds`` is the length of the long clip, ``rounds`` how often each warm figure is taken."""
    recipe = load_recipe("miniature")
    pipeline, who = Pipeline.from_recipe(recipe, device), cast.member(identities - 1)
    parts = {
        "lock off": lambda: lock_off(recipe, device, who.prompt, seed, rounds),
        "overhead": lambda: overhead(pipeline, who, rounds),
        "long clip": lambda: long_clip(pipeline, who, seconds, seed),
        "busy": lambda: busy(recipe, device, who, min(seconds, BUSY_SECONDS), seed, rounds),
        "lock alone": lambda: {
            "ratio": lock.run(seconds=2.0, identities=1, seed=seed, device=device)["ratio"]
        },
        "guided": lambda: guided(recipe, device, who, seed, rounds),
        "shots": lambda: film.run(seconds=min(seconds / 3, SHOT_SECONDS), seed=seed, device=device),
        "choices": lambda: choices(recipe, device, who.prompt, seed, rounds),
        "kept": lambda: kept_identity(recipe, device, tuple(found["choices"]["mag_ratios"]), seed),
    }
    found: dict[str, Any] = {}
    for done, (name, work) in enumerate(parts.items(), 1):
        found[name] = work()
        if progress:
            progress("parts", done, len(parts))
    return publish("stages", f"facelock bench stages --seconds {seconds:g}", _body(found), found, out)


# ---------------------------------------------------------------------- lock off


def lock_off(recipe: Recipe, device: str, prompt: str, seed: int, rounds: int) -> dict[str, Any]:
    """One window by our backbone, by its plain path, and by diffusers' pipeline."""
    where = resolve_device(device)
    ours, plain = backbone(recipe, device), backbone(recipe, device, reference=True)
    theirs = _published(recipe, where)
    arms = {
        "diffusers": lambda: theirs(prompt, seed),
        "FaceLock, lock off": lambda: ours.extend(prompt, None, seed=seed),
        "FaceLock --reference": lambda: plain.extend(prompt, None, seed=seed),
    }
    times = interleaved(arms, rounds, where)
    base = times["diffusers"].warm
    return {
        "seconds": _plain(times),
        "ratio": times["FaceLock, lock off"].warm / base,
        "reference_ratio": times["FaceLock --reference"].warm / base,
    }


def backbone(recipe: Recipe, device: str, speed: Speed | None = None, **options: Any) -> Any:
    """The recipe's backbone, with a speed choice."""
    from facelock.blueprint import backbone_class

    low, where = recipe.blueprint, resolve_device(device)
    if speed:
        options["place"] = Placement(where, speed, Plan(), steps=low.steps)
    return backbone_class(low.kind)(
        locate(low.model), size=low.size, fps=float(low.fps), window=low.window, context=low.context,
        steps=low.steps, guidance_scale=low.guidance_scale, device=where, precision=low.precision, **options,
    )  # fmt: skip


def _published(recipe: Recipe, where: torch.device) -> Any:
    """A call of diffusers' pipeline that makes the same window."""
    from diffusers import SkyReelsV2DiffusionForcingPipeline

    low, folder = recipe.blueprint, locate(recipe.blueprint.model)
    with _no_bars():
        pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained(folder, dtype=torch.float32).to(where)
    pipe.set_progress_bar_config(disable=True)
    length = min(512, pipe.tokenizer.model_max_length)

    def call(prompt: str, seed: int) -> Any:
        return pipe(
            prompt, height=low.size[0], width=low.size[1], num_frames=low.window, base_num_frames=low.window,
            num_inference_steps=low.steps, guidance_scale=low.guidance_scale, fps=int(low.fps),
            max_sequence_length=length, generator=torch.Generator().manual_seed(seed), output_type="pt",
        )  # fmt: skip

    return call


@contextmanager
def _no_bars() -> Iterator[None]:
    """Silence the bars that both libraries draw while they load."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    both = (diffusers_logging, transformers_logging)
    for library in both:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in both:
            library.enable_progress_bar()


# ---------------------------------------------------------------------- lock and restore


def overhead(pipeline: Pipeline, who: cast.Member, rounds: int) -> dict[str, Any]:
    """Seconds that lock and restoration add to one chunk, and what the plain loop adds for the same frames."""
    parts, low = pipeline.parts, pipeline.recipe.blueprint
    frames = low.window - low.context
    clip, _ = cast.true_clip(cast.member(who.index + 1), frames, low.size[0], 1)
    identity = cast.identity(who, parts)
    loops = {
        "insightface loop": PlainSwap(parts, own_size=True, restores=True),
        "the same loop, at our detection size": PlainSwap(parts, restores=True),
    }

    def ours() -> object:
        with torch.no_grad():
            return parts.restorer.restore(parts.locker.lock(clip, [identity])[0], [identity])

    def plain(loop: PlainSwap) -> object:
        """Each frame enlarged, swapped and restored, as the usual tools do: they know the final picture only."""
        with torch.no_grad():
            return [loop(parts.upscaler.upscale(frame), identity) for frame in clip.split(1)]

    arms = {name: lambda loop=loop: plain(loop) for name, loop in loops.items()}  # type: ignore[misc]
    times = interleaved({"lock + restore": ours, **arms}, rounds)
    return {
        "frames": frames,
        "seconds": _plain(times),
        "ratios": {name: times["lock + restore"].warm / times[name].warm for name in loops},
    }


# ---------------------------------------------------------------------- long clips


def long_clip(pipeline: Pipeline, who: cast.Member, seconds: float, seed: int) -> dict[str, Any]:
    """Time and memory of late chunks against early ones; the very first, which loads the models, is left out."""
    spans: list[float] = []
    held: list[int] = []
    began = time.perf_counter()
    identity = cast.identity(who, pipeline.parts)
    for _ in pipeline.run(Job(who.prompt, seconds, seed), [identity]):
        now = time.perf_counter()
        spans.append(now - began)
        held.append(resident())
        began = now
    few = max(1, min(5, (len(spans) - 2) // 2))
    whole = spans[1:-1] if len(spans) > 3 else spans  # the last is cut short
    early, late = whole[:few], whole[-few:]
    return {
        "chunks": len(spans),
        "early": statistics.median(early),
        "late": statistics.median(late),
        "time_ratio": statistics.median(late) / statistics.median(early),
        "early_mib": max(held[: 1 + few]) / 2**20,
        "late_mib": max(held) / 2**20,
        "memory_ratio": max(held) / max(held[: 1 + few]),
    }


# ---------------------------------------------------------------------- busy cores


def busy(
    recipe: Recipe, device: str, who: cast.Member, seconds: float, seed: int, rounds: int
) -> dict[str, Any]:
    """A saved clip with the stages in turn and with overlap: seconds, and the share of the cores' time in use."""
    ahead = recipe.model_copy(update={"speed": SpeedRecipe(overlap=True)})
    pipelines = {
        "in turn": Pipeline.from_recipe(recipe, device),
        "overlap": Pipeline.from_recipe(ahead, device),
    }
    identity = cast.identity(who, pipelines["in turn"].parts)
    with tempfile.TemporaryDirectory() as folder:

        def saved(name: str) -> object:
            clip = pipelines[name].generate(who.prompt, identity, seconds=seconds, seed=seed)
            return clip.save(Path(folder, f"{name}.mp4"), overwrite=True, target=0.0)

        times = interleaved({name: lambda name=name: saved(name) for name in pipelines}, rounds)  # type: ignore[misc]
        files = {Path(folder, f"{name}.mp4").read_bytes() for name in pipelines}
    return {
        "seconds": _plain(times),
        "share": {name: timing.share() for name, timing in times.items()},
        "ratio": times["overlap"].warm / times["in turn"].warm,
        "same_bytes": len(files) == 1,
    }


# ---------------------------------------------------------------------- guidance


def guided(recipe: Recipe, device: str, who: cast.Member, seed: int, rounds: int) -> dict[str, Any]:
    """Denoising steps of a window with identity guidance, as a recipe has it that says no more, and without."""
    led = recipe.model_copy(update={"guidance": GuidanceRecipe(decoder=DECODER)})
    parts: Any = Pipeline.from_recipe(led, device).parts
    model, people = parts.backbone, [cast.identity(who, parts)]
    guides = {"plain": None, "guided": parts.guide}
    clocks = {name: Clock(time.perf_counter) for name in guides}

    def window(name: str) -> None:
        model.guide, model.on_step = guides[name], clocks[name]
        model.extend(who.prompt, None, seed=seed, references=people)

    interleaved({name: lambda name=name: window(name) for name in guides}, rounds, resolve_device(device))  # type: ignore[misc]
    steps = {name: statistics.fmean(clock.spans) for name, clock in clocks.items()}
    return {"seconds_per_step": steps, "ratio": steps["guided"] / steps["plain"]}


# ---------------------------------------------------------------------- speed choices


def speeds(ratios: tuple[float, ...]) -> dict[str, Speed]:
    """The choices of a recipe's [speed] that run on any machine, one by one."""
    return {
        "attention native_math": Speed(attention="native_math"),
        "cache first_block": Speed(cache=StepCache("first_block", threshold=0.1)),
        "cache mag": Speed(cache=StepCache("mag", threshold=0.12, ratios=ratios, most=2)),
        "cache pab": Speed(cache=StepCache("pab")),
        "cache sea": Speed(cache=StepCache("sea", threshold=0.3)),
        "quantise float8": Speed(quantise="float8"),
        "channels_last": Speed(channels_last=True),
        "vae_precision bfloat16": Speed(vae_precision="bfloat16"),
    }


def choices(recipe: Recipe, device: str, prompt: str, seed: int, rounds: int) -> dict[str, Any]:
    """Each choice against none: seconds of a window, and the mean difference of its pixels in 1/255."""
    plain = backbone(recipe, device)
    ratios = measure_ratios(plain.modules["transformer"], lambda: plain.extend(prompt, None, seed=seed))
    tuned = {name: backbone(recipe, device, speed) for name, speed in speeds(ratios).items()}
    made: dict[str, Tensor] = {}

    def window(name: str, model: Any) -> None:
        made[name] = model.extend(prompt, None, seed=seed)

    arms = {name: lambda n=name, m=model: window(n, m) for name, model in {"none": plain, **tuned}.items()}  # type: ignore[misc]
    times = interleaved(arms, rounds, resolve_device(device))
    return {
        "seconds": _plain(times),
        "speed": {name: times["none"].warm / timing.warm for name, timing in times.items()},
        "difference": {name: float((made[name] - made["none"]).abs().mean() * 255) for name in made},
        "mag_ratios": [round(ratio, 4) for ratio in ratios],
    }


def kept_identity(recipe: Recipe, device: str, ratios: tuple[float, ...], seed: int) -> dict[str, float]:
    """The judge's mean similarity of whole clips by each choice, by all at once, and by none."""
    wanted = {"none": Speed(), **speeds(ratios), "all at once": kept.EVERYTHING}
    return {
        name: kept.similarity(kept.recipe_with(recipe, speed), device, seed) for name, speed in wanted.items()
    }


# ---------------------------------------------------------------------- tables


def _plain(times: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    return {name: {"cold": timing.cold, "warm": timing.warm} for name, timing in times.items()}


def _body(found: Mapping[str, Any]) -> str:
    off, more, long, full = (found[name] for name in ("lock off", "overhead", "long clip", "busy"))
    alone, led, shots = found["lock alone"]["ratio"], found["guided"], found["shots"]
    goals = [
        ["lock off ÷ plain diffusers call", number(off["ratio"], 3), "≤ 1.01"],
        ["the same by --reference", number(off["reference_ratio"], 3), ""],
        *(
            [f"lock + restore ÷ {name}, a chunk", number(ratio, 3), "≤ 0.25"]
            for name, ratio in more["ratios"].items()
        ),
        [f"last ÷ early chunks of {long['chunks']}: time", number(long["time_ratio"], 3), "≤ 1.05"],
        ["the same: memory", number(long["memory_ratio"], 3), "≤ 1.02"],
        *([f"busy ÷ wall, {name}", number(share, 3), "≥ 0.85"] for name, share in full["share"].items()),
        ["overlap ÷ in turn, wall", number(full["ratio"], 3), ""],
        ["overlap makes the same bytes", "yes" if full["same_bytes"] else "NO", "yes"],
        [f"{shots['shots']} shots ÷ {shots['shots']} × one warm shot", number(shots["ratio"], 3), "≤ 1.05"],
        *([f"{name} ÷ the lock alone", number(ratio, 2), "≥ 3"] for name, ratio in alone.items()),
        ["guided step ÷ plain step", number(led["ratio"], 2), "≤ 1.08"],
        ["direct 720p / 1088p ÷ blueprint + lock + restore", "facelock bench gpu", "≥ 4, ≥ 15 on a GPU"],
    ]
    arms = {**off["seconds"], **more["seconds"], **full["seconds"]}
    spans = [[name, number(at["cold"], 3), number(at["warm"], 3)] for name, at in arms.items()]
    tuned = found["choices"]
    rows = [
        [name, number(at["cold"], 3), number(at["warm"], 3), number(tuned["speed"][name], 2),
         number(tuned["difference"][name], 2)]
        for name, at in tuned["seconds"].items()
    ]  # fmt: skip
    return "\n\n".join(
        [
            table(["ratio", "measured", "goal"], goals),
            table(["seconds", "cold", "warm"], spans),
            table(
                ["speed choice, one window", "cold, s", "warm, s", "times as fast", "pixels moved, of 255"],
                rows,
            ),
            table(
                ["speed choice, whole clips", "judge's similarity", "against none (within ± 0.01 wanted)"],
                [
                    [name, number(value, 4), number(value - found["kept"]["none"], 4)]
                    for name, value in found["kept"].items()
                ],
            ),
            "MagCache's ratios of this checkpoint: " + ", ".join(map(str, tuned["mag_ratios"])),
        ]
    )
