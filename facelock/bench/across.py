"""``facelock bench across``: how alike true renders of one person are, within a clip and across clips.

The loss from within to across that a film report states is no drift as far as true clips have it too: place,
light, pose and expression change from clip to clip, and no recogniser is blind to them. This measures that
floor, on held-out characters who are what they are by construction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from facelock.bench import cast
from facelock.bench.tables import number, publish, table
from facelock.pipeline import Pipeline
from facelock.protocols import FacePack, Progress
from facelock.storyboards.likeness import Likeness, Sample, likeness, mean, spread

CLIPS = 3
"""Of each character, each with its own place and light."""
FPS = 12
SIZE = 128
"""Pixels of the renders' sides."""


def run(
    *,
    seconds: float = 5.0,
    identities: int = 6,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Three true clips of ``seconds`` of each of ``identities`` held-out characters, compared by the judge."""
    pack: FacePack = Pipeline.from_recipe("miniature", device).parts.judge.pack  # type: ignore[attr-defined]
    found = []
    for index in range(identities):
        found.append(of_true_clips(cast.member(index), pack, max(2, round(seconds * FPS)), seed))
        if progress:
            progress("characters", index + 1, identities)
    losses = [each.within - each.across for each in found if each.within and each.across]
    summary = {
        "within": mean(each.within for each in found),
        "across": mean(each.across for each in found),
        "loss": mean(losses),
        "largest_loss": max(losses, default=None),
    }
    rows = [[name.replace("_", " "), number(value, 3)] for name, value in summary.items()]
    command = f"facelock bench across --seconds {seconds:g} --identities {identities}"
    body = table([f"true clips, {identities} characters × {CLIPS}", ""], rows)
    return publish("across", command, body, {**summary, "clips": CLIPS * identities}, out)


def of_true_clips(who: cast.Member, pack: FacePack, frames: int, seed: int) -> Likeness:
    """Compare clips of one character, sampled as a film's shots are."""
    samples = []
    for clip in range(CLIPS):
        pictures, _ = cast.true_clip(who, frames, SIZE, seed + clip)
        chosen = pictures[sorted(spread(range(len(pictures))))]
        faces = pack.detect(chosen)
        vectors = pack.embed(chosen, faces)
        first = [int((faces.frame == frame).nonzero()[0]) for frame in faces.frame.unique()]
        if first:
            samples.append(Sample(str(clip), str(clip), who.name, vectors[torch.tensor(first)].cpu().float()))
    return likeness(samples)
