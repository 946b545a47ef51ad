"""Siblings: held-out pairs of people who differ in a few parameters only, the hardest impostors there are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from facelock.miniature import data, world
from facelock.miniature.parameters import IDENTITY, sample_appearance, sample_nuisance, siblings, take
from facelock.miniature.recognition import Embed, FacePool, arcface_crops, codes, degrade, verification

CHANGED = (5, 10, 20)
"""How many of a face's parameters (``IDENTITY``) a sibling has of its own."""
SIDE = data.CROP // 2
"""Pixels of a rendered crop: those that the recognisers' 56 px are cut from."""


def render_siblings(people: int, changed: int, pictures: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """A sibling of each of the first held-out ``people``: crops (N, 3, 72, 72), landmarks (N, 5, 2), whose (N,).

    Each in ``pictures`` pictures of another look and moment.
    """
    g = data.seeded(data.SPLITS["heldout"], 12, changed)
    who = torch.arange(people).repeat_interleave(pictures)
    face = take(siblings(data.identities("heldout", people), g, changed), who)
    look, now = sample_appearance(len(who), g, face["feminine"]), sample_nuisance(len(who), g)
    points, _ = world.landmarks(face, now, 256)
    matrices = data.jitter(data.fit_similarity(points, data.crop_template(SIDE)), SIDE, g)
    crops = world.render_rays(face, look, now, world.crop_rays(matrices, SIDE, 256))
    return crops, data.apply(matrices, points), who


def sibling_scores(
    embed: Embed, known: tuple[Tensor, Tensor], rendered: tuple[Tensor, Tensor, Tensor], *, blur: bool
) -> Tensor:
    """Cosines between every picture of a sibling and every one of the person it is like.

    ``known`` are embeddings (M, D) of people and who they are (M,), ``rendered`` comes from :func:`render_siblings`.
    """
    crops, points, whose = rendered
    g = torch.Generator().manual_seed(94)
    x = arcface_crops(crops, points, g, 0.5)
    x = degrade(x, g) if blur else x
    rows, who = known
    cosines = F.normalize(embed(x)) @ F.normalize(rows).T
    return cosines[whose[:, None] == who[None]]


def same_scores(known: tuple[Tensor, Tensor]) -> Tensor:
    """Cosines between different pictures of one person, of embeddings (M, D) and who they are (M,)."""
    rows, who = known
    cosines = F.normalize(rows) @ F.normalize(rows).T
    return cosines[torch.triu(who[:, None] == who[None], 1)]


@torch.no_grad()
def recognition_figures(embed: Embed, pool: FacePool, people: int, count: int = 3000) -> dict[str, float]:
    """Held-out verification, and siblings apart, clean and degraded: ``"figure | clean"``, ``"figure | degraded"``.

    The threshold of FAR 1e-3 is that of strangers: a sibling above it is a false accept.
    """
    kin = {changed: render_siblings(people, changed) for changed in CHANGED}
    both: dict[str, dict[str, float]] = {}
    for column, blur in (("clean", False), ("degraded", True)):
        out = both[column] = dict(verification(embed, pool, blur=blur, count=count))
        known = codes(embed, pool, count // 2, 93, blur)
        same = same_scores(known)
        for changed, rendered in kin.items():
            scores = sibling_scores(embed, known, rendered, blur=blur)
            name = f"siblings, {changed} of {len(IDENTITY)} parameters changed"
            out[f"{name}: mean"] = float(scores.mean())
            out[f"{name}: share above far_1e3"] = float((scores > out["far_1e3"]).float().mean())
            out[f"{name}: TAR where 1 in 100 passes"] = float((same > scores.quantile(0.99)).float().mean())
    return {f"{figure} | {column}": both[column][figure] for figure in both["clean"] for column in both}
