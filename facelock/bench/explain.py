"""``facelock bench explain``: one part of a face is changed; does ``verify --explain`` name it?

Held-out characters, each with their reference picture as a user gives it, and clips of true renders in which exactly
one part is another character's, under other light, pose, place and motion. The clips go the whole way: detected,
cropped, embedded by the judge. Said is the share in which the part named first is the one that was changed, by one
frame and by the whole clip; how often an unchanged face is said to differ; and, where two parts were changed, whether
they are the first two named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
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
PAIRS = tuple(combinations(PARTS, 2))
Changed = tuple[str, ...]
Found = dict[Changed, list[tuple[Difference, ...]]]
"""Changed parts → what was said of each frame, or of each clip."""


def run(
    *,
    seconds: float = 1.0,
    identities: int = 40,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Clips of ``seconds`` of each of ``identities`` held-out characters: each part changed, none, and a pair."""
    parts = Pipeline.from_recipe("miniature", device).parts
    pack: FacePack = parts.judge.pack  # type: ignore[attr-defined]
    known, frames = table_of(pack.encoder), max(1, round(seconds * FPS))
    singly, together = Found(), Found()
    for index in range(identities):
        who = cast.member(index)
        reference = embedding_of(cast.identity(who, parts), pack.encoder.id)
        kinds: list[Changed] = [(), *((part,) for part in PARTS), PAIRS[index % len(PAIRS)]]
        for kind, changed in enumerate(kinds):
            rows = _embedded(who, changed, frames, seed * 100 + kind, pack)
            if len(rows):
                said = [known.explain(reference, row[None]) for row in rows]
                singly.setdefault(changed, []).extend(said)
                together.setdefault(changed, []).append(known.explain(reference, rows))
        if progress:
            progress("characters", index + 1, identities)
    found = _figures(singly, together, known, frames)
    command = f"facelock bench explain --seconds {seconds:g} --identities {identities} --seed {seed}"
    return publish("explain", command, _table(found, frames, identities), found, out)


def _embedded(who: cast.Member, changed: Changed, frames: int, seed: int, pack: FacePack) -> Tensor:
    """(N, D) of the frames in which a face is found, the parts ``changed`` being other characters'."""
    face, generator = who.face, data.seeded(600, seed, who.index)
    for part in changed:
        face = change(face, part, generator)
    pictures, _ = cast.true_clip(replace(who, face=face), frames, SIZE, seed + 1)
    faces = pack.detect(pictures)
    first = [int((faces.frame == frame).nonzero()[0]) for frame in faces.frame.unique()]
    return pack.embed(pictures, faces.select(torch.tensor(first, dtype=torch.int64))).cpu()


def _figures(singly: Found, together: Found, known: PartsTable, frames: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"clips": sum(map(len, together.values())), "chance": 1 / len(PARTS)}
    figures["chance_of_both"] = 1 / len(PAIRS)
    for name, found, length in (("frame", singly, 1), ("clip", together, frames)):
        limit = known.limit(length)
        single = {(changed or (NOTHING,))[0]: said for changed, said in found.items() if len(changed) < 2}
        first = {part: _share([each[0].part == part for each in single.get(part, [])]) for part in PARTS}
        beyond = {part: _share([each[0].sigma > limit for each in said]) for part, said in single.items()}
        both = [
            {each[0].part, each[1].part} == set(changed)
            for changed, said in found.items()
            if len(changed) == 2
            for each in said
        ]
        figures[name] = {
            "first": first,
            "beyond_noise": beyond,
            "total": sum(first.values()) / len(first),
            "both": _share(both),
        }
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
    both = [number(level["both"]) for level in (one, all_)]
    rows.append([f"two, both named first (chance {found['chance_of_both']:.3f})", *both, "", ""])
    quiet = [number(level["beyond_noise"][NOTHING], 3) for level in (one, all_)]
    rows.append(["nothing changed", "–", "–", *quiet])
    said = f"{identities} held-out characters × {len(PARTS)} parts, a pair, and none; share of clips (or frames)."
    return f"{table(header, rows)}\n\n{said}"
