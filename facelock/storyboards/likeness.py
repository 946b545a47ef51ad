"""Is it the same person in shot 1 and shot 12? Frames of each shot are compared with those of the others.

A few frames of every shot, spread evenly over those in which the character is recognised, are embedded by
the judge, which no stage optimises. Embeddings stay in memory; only similarities are written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from facelock.protocols import FacePack
from facelock.report.model import LedgerEntry
from facelock.storyboards.cut import Cut, Placed
from facelock.types import Faces, Status
from facelock.video.writing import read_chunks

SAMPLES = 6
"""Frames of each shot and character."""
FRAMES_PER_READ = 24
_SEEN = (Status.VERIFIED, Status.WEAK)


@dataclass(frozen=True)
class Sample:
    """One character in one shot."""

    shot: str
    scene: str
    character: str
    embeddings: Tensor
    """(S, D) float32, unit norm, S up to :data:`SAMPLES`."""


@dataclass(frozen=True)
class Likeness:
    """Mean cosine similarities of pairs of frames; None where there is no such pair."""

    within: float | None
    """Both of one shot, averaged over the shots."""
    across: float | None
    """Of different shots, averaged over pairs of shots."""
    scenes: float | None
    """Of different scenes, averaged over pairs of shots."""
    worst: tuple[str, str] | None = None
    """The pair of shots that is least alike."""
    worst_similarity: float | None = None


def sample_shot(shot: Placed, pack: FacePack) -> list[Sample]:
    """Embed a few frames of a finished shot for each of its characters."""
    if shot.report is None or shot.result.video is None:
        return []
    wanted = {name: spread(_seen(shot.report.ledger, name)) for name in shot.unit.characters}
    rows = {(row.frame, row.character): row for row in shot.report.ledger}
    found: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for chunk in read_chunks(shot.result.video, FRAMES_PER_READ):
        for number, frame in enumerate(chunk.frames):
            names = [name for name, frames in wanted.items() if chunk.start + number in frames]
            if names:
                boxes = {name: rows[chunk.start + number, name].box for name in names}
                _embed(frame[None], pack, boxes, found)
    return [
        Sample(shot.unit.name, shot.unit.scene, name, torch.stack(vectors))
        for name, vectors in found.items()
        if vectors
    ]


def _seen(ledger: Iterable[LedgerEntry], name: str) -> list[int]:
    return [row.frame for row in ledger if row.character == name and row.status in _SEEN and row.box]


def spread(frames: Sequence[int], count: int = SAMPLES) -> set[int]:
    """Up to ``count`` of ``frames``, evenly along them, ends included."""
    if len(frames) <= count:
        return set(frames)
    return {frames[round(index * (len(frames) - 1) / (count - 1))] for index in range(count)}


def _embed(frame: Tensor, pack: FacePack, boxes: dict[str, Any], found: dict[str, list[Tensor]]) -> None:
    """Add each character's embedding: that of the face nearest to where the ledger says it is."""
    faces = pack.detect(frame)
    if not len(faces):
        return
    vectors = pack.embed(frame, faces).cpu().float()
    for name, box in boxes.items():
        found[name].append(vectors[_nearest(faces, box)])


def _nearest(faces: Faces, box: Sequence[float]) -> int:
    return int((faces.box - torch.tensor(box)).abs().sum(1).argmin())


def similarity(first: Tensor, second: Tensor) -> float:
    """Mean cosine over all pairs of rows of (S, D) and (R, D) unit vectors."""
    return float((first.double() @ second.double().T).mean())


def within(embeddings: Tensor) -> float | None:
    """Mean cosine over pairs of different rows of (S, D); None for fewer than two."""
    count = len(embeddings)
    if count < 2:
        return None
    table = embeddings.double() @ embeddings.double().T
    return float((table.sum() - table.diagonal().sum()) / (count * (count - 1)))


def likeness(samples: Sequence[Sample]) -> Likeness:
    """Compare the shots of one character."""
    pairs = [
        (similarity(a.embeddings, b.embeddings), (a.shot, b.shot), a.scene != b.scene)
        for a, b in combinations(samples, 2)
    ]
    worst = min(pairs, default=None)
    return Likeness(
        within=mean(within(sample.embeddings) for sample in samples),
        across=mean(value for value, _, _ in pairs),
        scenes=mean(value for value, _, other in pairs if other),
        worst=worst[1] if worst else None,
        worst_similarity=worst[0] if worst else None,
    )


def strangers(samples: Sequence[Sample]) -> float | None:
    """Mean cosine of frames of different characters, averaged over pairs of shots; None for a cast of one."""
    return mean(
        similarity(a.embeddings, b.embeddings)
        for a, b in combinations(samples, 2)
        if a.character != b.character
    )


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is there."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def sample_film(cut: Cut, pack_of: Callable[[Placed], FacePack | None]) -> list[Sample]:
    """Sample every shot; ``pack_of`` gives the judge's face pack, or None where a shot is left out."""
    samples: list[Sample] = []
    for shot in cut.shots:
        pack = pack_of(shot)
        if pack is not None:
            samples += sample_shot(shot, pack)
    return samples
