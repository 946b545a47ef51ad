"""``facelock bench blueprint``: does the miniature's stage 1 show what a prompt names, alive, and for how long?

Four questions, all of the blueprint alone, without the lock but where it says so:

- does a classifier that learned from true renders read each slot of the vocabulary as the prompt named it;
- do pose and expression vary as they do in true renders under the same words;
- how far are its frames from true renders, and how much of that is due to fewer sampler steps;
- do colour and sharpness last, with the lock mending the context and without.

``against`` is the folder of another blueprint (diffusers format), measured on the same prompts beside the recipe's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from facelock.bench import blueprint_tables as tables
from facelock.bench import frechet
from facelock.bench.blueprint_clips import (
    Models,
    Sample,
    Window,
    long_clip,
    one_prompt,
    pipeline_of,
    training_shard,
)
from facelock.bench.renders import VALUES, wanted
from facelock.bench.side_by_side import each
from facelock.bench.slots import Lessons, SlotReader, accuracy, by_word, chance, learn
from facelock.bench.tables import publish
from facelock.bootstrap import over_clips
from facelock.errors import ConfigError
from facelock.protocols import Progress

Result = TypeVar("Result")
STEPS = (4, 6, 8, 30)
"""Sampler steps that are compared, besides the recipe's own; the last is the one the others are measured by."""
SHORTEST = 2.0
"""Seconds of a continuation whose ends can be compared."""
LONG_CLIPS = 2
"""Characters of the long continuations."""


@dataclass(frozen=True)
class Sizes:
    """How much the classifier learns from: shards of 128 people, and rounds over all frames."""

    shards: int = 72
    epochs: int = 4


def run(
    *,
    seconds: float = 40.0,
    identities: int = 64,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    against: Path | None = None,
    jobs: int | None = None,
    sizes: Sizes = Sizes(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the benchmark: ``identities`` prompts, long continuations of ``seconds``; see the module.

    Returns every figure, and writes ``blueprint.md`` and ``.json`` to ``out``. Raises ``ConfigError`` for too few
    prompts or seconds, ``ModelError`` for a folder ``against`` that holds no blueprint.
    """
    if identities < 2:
        raise ConfigError("The benchmark blueprint needs at least 2 prompts. Give a larger --identities.")
    if seconds < SHORTEST:
        raise ConfigError(
            f"A continuation of {seconds:g} s says nothing. Give --seconds {SHORTEST:g} or more."
        )
    models: tuple[str | None, ...] = (None,) if against is None else (None, str(against))
    for model in reversed(models):
        pipeline_of(model, device)  # a folder that is none is refused now
    own = pipeline_of(None, device).recipe.blueprint.steps
    bench = Bench(seed, models, device, jobs, progress or (lambda *_: None))
    reader = bench.reader(sizes)
    samples = bench.samples(identities, _steps(own))
    fadings = bench.fadings(min(LONG_CLIPS, identities), seconds)
    command = f"facelock bench blueprint --seconds {seconds:g} --identities {identities} --seed {seed}"
    command += f" --against {against}" if against else ""
    results = {
        "seconds": seconds,
        "prompts": identities,
        "steps": own,
        "most_steps": max(_steps(own)),
        "long_clips": len(fadings),
        "against": None if against is None else str(against),
        **figures(reader, samples, fadings, wanted(identities, seed), _steps(own)),
    }
    return publish("blueprint", command, tables.body(results), results, out)


@dataclass(frozen=True)
class Bench:
    """The parts of one run, each spread over the cores."""

    seed: int
    models: Models
    device: str
    jobs: int | None
    told: Progress

    def _all(self, what: str, work: Callable[..., Result], count: int, **options: Any) -> list[Result]:
        """``work(0)`` to ``work(count - 1)``, told as ``what``."""
        ready = partial(work, seed=self.seed, models=self.models, device=self.device, **options)
        found: list[Result] = []
        for one in each(ready, count, self.device, self.jobs):
            found.append(one)
            self.told(what, len(found), count)
        return found

    def reader(self, sizes: Sizes) -> SlotReader:
        """The classifier, trained on renders of training identities."""
        lessons = Lessons.joined(self._all("true renders", training_shard, sizes.shards))
        return learn(
            lessons, self.seed, sizes.epochs, lambda done: self.told("classifier", done, sizes.epochs)
        )

    def samples(self, count: int, steps: Sequence[int]) -> list[Sample]:
        """Each prompt, rendered and generated."""
        return self._all("prompts", one_prompt, count, prompts=count, steps=steps)

    def fadings(self, count: int, seconds: float) -> list[dict[str, dict[str, float]]]:
        """The long continuations' figures, by arm."""
        return self._all("long clips", long_clip, count, seconds=seconds)


def _steps(own: int) -> tuple[int, ...]:
    """Sampler steps to compare: the recipe's own first, which the slots are read at."""
    return (own, *(steps for steps in STEPS if steps != own))


def figures(
    reader: SlotReader,
    samples: Sequence[Sample],
    fadings: Sequence[Mapping[str, Mapping[str, float]]],
    labels: Tensor,
    steps: Sequence[int],
) -> dict[str, Any]:
    """Every figure: ``slots``, ``stillness``, ``frechet`` and ``fading``, for each blueprint by name.

    ``labels`` (N, 9) is what the prompts of the N ``samples`` name; ``steps`` begins with the recipe's own.
    """
    names = list(samples[0].shown)
    return {
        "slots": {slot: _slot(reader, samples, labels, steps[0], slot) for slot in VALUES},
        "stillness": {
            name: _stillness([s.stillness.get(name) for s in samples]) for name in ("true", *names)
        },
        "frechet": {name: _frechet(reader, samples, name, steps) for name in names},
        "fading": _fading(fadings),
    }


def _slot(
    reader: SlotReader, samples: Sequence[Sample], labels: Tensor, steps: int, slot: str
) -> dict[str, Any]:
    """Chance, the classifier's own accuracy, and each blueprint's, of one slot."""
    twice = labels.repeat(2, 1)
    held_out = _sheets([s.truth[k] for k in (0, 1) for s in samples])
    found: dict[str, Any] = {
        "chance": chance(labels, slot),
        "clips": int((labels[:, list(VALUES).index(slot)] >= 0).sum()),
        "true": accuracy(reader.read(held_out), twice, slot).model_dump(),
        "blueprints": {},
    }
    for name in samples[0].shown:
        decoded = _sheets([s.shown[name].decoded[k] for k in (0, 1) for s in samples])
        made = reader.read(_sheets([s.shown[name].windows[steps] for s in samples]))
        found["blueprints"][name] = {
            "decoded": accuracy(reader.read(decoded), twice, slot).model_dump(),
            "made": accuracy(made, labels, slot).model_dump(),
            "words": by_word(made, labels, slot),
        }
    return found


def _stillness(found: Sequence[Mapping[str, float | None] | None]) -> dict[str, Any]:
    """Per signal and over all (``value``): the geometric mean over prompts of motion ÷ the true renders'."""
    rows = [row for row in found if row is not None]
    means: dict[str, Any] = {}
    for signal in rows[0] if rows else ():
        values = [row[signal] for row in rows]
        logs = [None if v is None else float(np.log(max(v, 1e-6))) for v in values]
        mean = over_clips(logs)
        means[signal] = {
            k: None if v is None else float(np.exp(v))
            for k, v in (("value", mean.value), ("low", mean.low), ("high", mean.high))
        }
    return means


def _frechet(
    reader: SlotReader, samples: Sequence[Sample], name: str, steps: Sequence[int]
) -> dict[str, Any]:
    """Per features, and per set of frames, the distance to true renders and its ratio to the most steps."""
    most = f"{max(steps)} steps"
    arms = {
        "other true renders": [s.truth[1] for s in samples],
        "the same renders through its autoencoder": [s.shown[name].decoded[0] for s in samples],
        **{f"{n} steps": [s.shown[name].windows[n] for s in samples] for n in sorted(steps)},
    }
    truth = [s.truth[0] for s in samples]
    seen = {arm: _described(reader, windows) for arm, windows in arms.items()}
    faces = {arm: [window.faces for window in windows] for arm, windows in arms.items()}
    return {
        "classifier": frechet.ladder(seen, _described(reader, truth), most),
        "judge": frechet.ladder(faces, [window.faces for window in truth], most),
    }


def _sheets(windows: Sequence[Window]) -> Tensor:
    return torch.stack([window.sheets for window in windows])


def _described(reader: SlotReader, windows: Sequence[Window]) -> list[np.ndarray]:
    """The classifier's features of some frames of each clip, (n, D) float64."""
    return [f.double().numpy() for f in reader.describe(_sheets(windows)[:, ::2])]


def _fading(clips: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Per arm the mean over clips of each figure."""
    return {
        arm: {key: float(np.mean([clip[arm][key] for clip in clips])) for key in first}
        for arm, first in clips[0].items()
    }
