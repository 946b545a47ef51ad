"""How much more the aligner must move so that a locked clip moves as much as its blueprint.

What the blueprint generates is blurred in other ways than what the reader was trained on, and least squares shrinks
what it sees badly: heads turn less than they did. Nobody knows the truth behind a generated frame,
but its own motion is measured before and after the lock (``facelock.comparison.motion_signals``). The gains that make
the two equal go into the exported reader. Only characters of the training split take part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from facelock.comparison import motion_signals, stillness
from facelock.figures import Series
from facelock.job import Job
from facelock.miniature import data
from facelock.miniature.parameters import HAIR_COLOURS, HAIR_STYLES, NUISANCE, sample_appearance, take
from facelock.miniature.samples import PORTRAIT
from facelock.miniature.vocabulary import MOTION_PHRASES, PLACE_PHRASES
from facelock.miniature.world import render
from facelock.pipeline import Pipeline
from facelock.types import Identity, LedgerRow

SIGNALS = {"yaw": "yaw", "pitch": "pitch", "roll": "roll"}
"""What the reader reads → the signal that it moves. Mouth and lids are left out: the next chunk continues from what is
locked, and with a gain of 2 on them eyes that were once read as shut stayed shut for the rest of the clip."""
LARGEST = 2.0
"""Of a gain; beyond it, noise is what moves."""
AGAIN = 0.5
"""Share of a step that a second measurement takes: a dozen clips tell a ratio within a third or so."""
ACTIONS = ("talking", "smiling", "laughing", "talking")


def prompt(index: int, woman: bool) -> str:
    """A prompt of the miniature's vocabulary; actions, motions and places go round."""
    hair = f"{HAIR_STYLES[1 + index % (len(HAIR_STYLES) - 1)]} {list(HAIR_COLOURS)[index % len(HAIR_COLOURS)]} hair"
    moves = MOTION_PHRASES[index % len(MOTION_PHRASES)]
    who, place = "woman" if woman else "man", PLACE_PHRASES[index % len(PLACE_PHRASES)]
    return f"a {who} with {hair} {ACTIONS[index % len(ACTIONS)]} and {moves} {place}"


def character(index: int, pipeline: Pipeline) -> tuple[Identity, str]:
    """The ``index``-th character of the training split, and what it is to do."""
    face = take(data.identities("train", index + 1), slice(index, index + 1))
    look = sample_appearance(1, data.seeded(51, index), face["feminine"])
    now = {k: torch.zeros(1) for k in NUISANCE} | {k: torch.tensor([v]) for k, v in PORTRAIT.items()}
    picture = (render(face, look, now, 256)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    identity = pipeline.parts.identity(picture, name=f"train-{index}", face=None)
    return identity, prompt(index, bool(face["feminine"] > 0.5))


def measure(clips: int, seconds: float, pipeline: Pipeline | None = None) -> dict[str, float]:
    """Reader's name → motion of locked clips ÷ their blueprints' (geometric mean of variance ratios over clips)."""
    pipeline = pipeline or Pipeline.from_recipe("miniature", "cpu")
    ratios: dict[str, list[float]] = {name: [] for name in SIGNALS}
    for index in range(clips):
        identity, text = character(index, pipeline)
        job = Job(text, seconds, index)
        locked, raw = list[LedgerRow](), list[LedgerRow]()
        with torch.no_grad():
            for made in pipeline.run(job, [identity]):
                locked += made.records.ledger
                raw += made.records.ledger_unlocked
        frames = job.frame_count(pipeline.fps)
        ours, theirs = (motion_signals(Series.from_rows(rows, frames=frames)) for rows in (locked, raw))
        found = stillness(ours, theirs, fps=float(pipeline.fps)).ratios
        for name, signal in SIGNALS.items():
            if (ratio := found.get(signal)) is not None:
                ratios[name].append(max(ratio, 1e-3))
    return {name: float(np.exp(np.mean(np.log(values)))) for name, values in ratios.items() if values}


def gains(known: Mapping[str, float], ratios: Mapping[str, float]) -> dict[str, float]:
    """``known`` gains, corrected towards variance ratios of 1; from 1 to ``LARGEST``.

    ``ratios`` were measured with the ``known`` gains. What had none before gets the whole step, the others half.
    """
    wanted = {
        name: known.get(name, 1.0) * ratio ** (-AGAIN / 2 if name in known else -0.5)
        for name, ratio in ratios.items()
    }
    return {name: round(min(max(gain, 1.0), LARGEST), 4) for name, gain in wanted.items()}


def read_gains(folder: Path) -> dict[str, float]:
    """The gains of the reader trained in ``folder``; none where they were not measured."""
    path = folder / "gains.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write_gains(folder: Path, values: Mapping[str, float]) -> None:
    """Keep them beside the reader's training state."""
    (folder / "gains.json").write_text(json.dumps(dict(values), indent=1) + "\n")
