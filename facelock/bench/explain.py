"""``facelock bench explain``: one part of a face is changed; does ``verify --explain`` name it?

Held-out characters, each with their reference picture as a user gives it, and clips of true renders in which exactly
one part is another character's, under other light, pose, place and motion. The clips go the whole way: detected,
cropped, embedded by the judge. Said is the share in which the part named first is the one that was changed, by one
frame and by the whole clip; and how often an unchanged face is said to differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facelock.bench import cast
from facelock.bench.tables import number, publish, table
from facelock.explain import Difference, PartsTable, table_of
from facelock.identity import embedding_of
from facelock.miniature import data
from facelock.miniature.parts_of_face import PARTS, change
from facelock.pipeline import Pipeline
from facelock.protocols import FacePack, Progress

FPS = 12
SIZE = 128
"""Pixels of the renders' sides."""
NOTHING = "nothing"
Found = dict[str, list[tuple[Difference, ...]]]
"""Changed part → what was said of each frame, or of each clip."""


def run(
    *,
    seconds: float = 1.0,
    identities: int = 40,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A clip of ``seconds`` for each part of each of ``identities`` held-out characters, and one with none changed."""
    parts = Pipeline.from_recipe("miniature", device).parts
    pack: FacePack = parts.judge.pack  # type: ignore[attr-defined]
    known, frames = table_of(pack.encoder), max(1, round(seconds * FPS))
    singly: Found = {part: [] for part in (NOTHING, *PARTS)}
    together: Found = {part: [] for part in (NOTHING, *PARTS)}
    for index in range(identities):
        who = cast.member(index)
        reference = embedding_of(cast.identity(who, parts), pack.encoder.id)
        for number_, part in enumerate(singly):
            rows = _embedded(who, part, frames, seed * 100 + number_, pack)
            if len(rows):
                singly[part] += [known.explain(reference, row[None]) for row in rows]
                together[part].append(known.explain(reference, rows))
        if progress:
            progress("characters", index + 1, identities)
    found = _figures(singly, together, known, frames)
    command = f"facelock bench explain --seconds {seconds:g} --identities {identities} --seed {seed}"
    return publish("explain", command, _table(found, frames, identities), found, out)


def _embedded(who: cast.Member, part: str, frames: int, seed: int, pack: FacePack) -> Tensor:
    """(N, D) of the frames in which a face is found, ``part`` being another character's."""
    changed = data.seeded(600, seed, who.index)
    face = who.face if part == NOTHING else change(who.face, part, changed)
    pictures, _ = cast.true_clip(replace(who, face=face), frames, SIZE, seed + 1)
    faces = pack.detect(pictures)
    first = [int((faces.frame == frame).nonzero()[0]) for frame in faces.frame.unique()]
    return pack.embed(pictures, faces.select(torch.tensor(first, dtype=torch.int64))).cpu()


def _figures(singly: Found, together: Found, known: PartsTable, frames: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"clips": sum(map(len, together.values())), "chance": 1 / len(PARTS)}
    for name, found, length in (("frame", singly, 1), ("clip", together, frames)):
        first = {part: _share([said[0].part == part for said in found[part]]) for part in PARTS}
        limit = known.limit(length)
        beyond = {part: _share([each[0].sigma > limit for each in said]) for part, said in found.items()}
        figures[name] = {"first": first, "beyond_noise": beyond, "total": sum(first.values()) / len(first)}
    return figures


def _share(right: list[bool]) -> float:
    return sum(right) / len(right) if right else 0.0


def _table(found: Mapping[str, Any], frames: int, identities: int) -> str:
    one, all_ = found["frame"], found["clip"]
    header = [
        "changed part",
        "named first, 1 frame",
        f"{frames} frames",
        "beyond noise, 1 frame",
        f"{frames} frames",
    ]
    rows = [
        [part, *(number(level["first"][part], 3) for level in (one, all_))]
        + [number(level["beyond_noise"][part], 3) for level in (one, all_)]
        for part in PARTS
    ]
    rows.append(["**all**", number(one["total"]), number(all_["total"]), "", ""])
    rows.append(["chance", number(found["chance"]), number(found["chance"]), "", ""])
    quiet = [number(level["beyond_noise"][NOTHING], 3) for level in (one, all_)]
    rows.append(["nothing changed", "–", "–", *quiet])
    said = f"{identities} held-out characters × {len(PARTS)} parts, and each unchanged; share of clips (or frames)."
    return f"{table(header, rows)}\n\n{said}"
