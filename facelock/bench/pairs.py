"""``facelock bench pairs``: two people in one shot, each with its own face in every frame?

Pairs of held-out characters, drawn side by side by the recipe ``miniature-two`` and locked to their references. The
judge measures every frame: how often a face is the wrong person's, by what margin (similarity to its own identity
minus to the other's) it is the right one, and how often the two have changed places.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facelock.bench import cast
from facelock.bench.side_by_side import each, pipeline_of
from facelock.bench.tables import number, publish, table
from facelock.job import Job
from facelock.miniature.parameters import PLACES
from facelock.miniature.vocabulary import PLACE_PHRASES
from facelock.protocols import Progress
from facelock.types import LedgerRow, Status

RECIPE = "miniature-two"


def run(
    *,
    seconds: float = 10.0,
    identities: int = 6,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A clip of ``seconds`` of each of ``identities`` ÷ 2 pairs."""
    rows: list[LedgerRow] = []
    pairs = max(1, identities // 2)
    for index, ledger in enumerate(
        each(partial(_clip, seconds=seconds, seed=seed, device=device), pairs, device, jobs)
    ):
        rows += ledger
        if progress:
            progress("pairs", index + 1, pairs)
    found = _figures(rows)
    command = f"facelock bench pairs --seconds {seconds:g} --identities {identities} --seed {seed}"
    lines = [[name.replace("_", " "), number(value, 3)] for name, value in found.items()]
    return publish("pairs", command, table(["two people in one shot, by the judge", ""], lines), found, out)


def _clip(index: int, *, seconds: float, seed: int, device: str) -> list[LedgerRow]:
    """The ledger of one pair's clip."""
    pipeline = pipeline_of(RECIPE, device)
    left, right = cast.member(2 * index), cast.member(2 * index + 1)
    place = PLACE_PHRASES[index % len(PLACES)]
    prompt = " | ".join(f"{_without_place(who.prompt)} {place}" for who in (left, right))
    identities = [cast.identity(who, pipeline.parts) for who in (left, right)]
    rows: list[LedgerRow] = []
    with torch.no_grad():
        for made in pipeline.run(Job(prompt, seconds, seed + index), identities):
            rows += made.records.ledger
    return rows


def _without_place(prompt: str) -> str:
    for phrase in PLACE_PHRASES:
        prompt = prompt.replace(phrase, "")
    return " ".join(prompt.split())


def _crossed(rows: list[LedgerRow]) -> int:
    """Frames, two rows each, in which the first character is right of the second."""
    boxes = [(a.box, b.box) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    return sum(a[0] + a[2] > b[0] + b[2] for a, b in boxes if a and b)


def _figures(rows: list[LedgerRow]) -> dict[str, float]:
    """Counts of statuses and the margins' spread over all rows, two a frame."""
    status = Counter(row.status for row in rows)
    margins = np.array([row.margin for row in rows if row.margin is not None])
    figures = {
        "frames": len(rows) / 2,
        "wrong": float(status[Status.WRONG]),
        "nearer_the_other_person": float((margins < 0).sum()),
        "frames_with_places_changed": float(_crossed(rows)),
        "share_verified": status[Status.VERIFIED] / len(rows),
        "share_weak": status[Status.WEAK] / len(rows),
        "share_unreadable_or_absent": (status[Status.UNREADABLE] + status[Status.ABSENT]) / len(rows),
    }
    if len(margins):
        figures |= {
            "margin_mean": float(margins.mean()),
            "margin_1st_percentile": float(np.percentile(margins, 1)),
            "margin_least": float(margins.min()),
        }
    return figures
