"""The parts of a drawn face, faces in which one of them is changed, and what a judge makes of that.

``python -m facelock.miniature parts`` measures the table that :mod:`facelock.explain` reads, on characters that the
judge never saw (split ``train``; its own is ``judge``), and leaves it beside the judge's weights. It is to be run
again whenever they change.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from facelock.explain import SECOND, PartsTable
from facelock.miniature import data, world
from facelock.miniature.motion import clip_nuisance
from facelock.miniature.parameters import (
    ACTIONS,
    IDENTITY,
    MOTIONS,
    NUISANCE,
    Params,
    identity_vector,
    sample_appearance,
    sample_identity,
    sample_nuisance,
    take,
)
from facelock.miniature.recognition import SIZE, Embed, degrade, shipped
from facelock.miniature.samples import PORTRAIT

log = logging.getLogger(__name__)

PARTS: dict[str, tuple[str, ...]] = {
    "head": ("skull_w", "head_top", "head_low", "jaw", "chin", "cheek", "depth", "ear"),
    "eyes": (
        *("eye_x", "eye_y", "eye_w", "eye_r", "eye_slant", "iris_r", "iris_hue", "iris_value", "lashes"),
    ),
    "brows": ("brow_t", "brow_l", "brow_a", "brow_gap", "brow_arch", "brow_tone"),
    "nose": ("nose_len", "nose_w", "nose_out", "nose_bridge"),
    "mouth": ("mouth_y", "mouth_w", "lip_u", "lip_l", "lip_s", "mouth_curve"),
    "skin": ("skin_tone", "skin_warmth", "blush", "under_eye"),
    "marks": ("freckles", "mole", "mole_x", "mole_y"),
}
"""Part, as a person would call it → the identity's parameters that make it. ``feminine`` paints nothing itself."""
COLUMNS = {part: [list(IDENTITY).index(name) for name in names] for part, names in PARTS.items()}
"""Part → its columns of :func:`facelock.miniature.parameters.identity_vector`."""
LEAST = 0.5
"""Smallest change of a part, as root mean square over its parameters, each of which spans -1 to 1; two characters
differ by 0.8 on average."""
PEOPLE, FRAMES, BATCH = 400, 4, 64
"""Characters that are measured; frames of each second of theirs; crops drawn at once."""
QUANTILE = 0.99
"""Share of unchanged clips that stay below the table's limits."""
RIDGE = 1e-4
"""Added to the parameters' mean square where the response is fitted."""


def change(face: Params, part: str, generator: torch.Generator) -> Params:
    """The same faces (B,) with one part of another character's, at least ``LEAST`` away."""
    before, out = identity_vector(face)[:, COLUMNS[part]], dict(face)
    near = torch.ones(len(before), dtype=torch.bool)
    while near.any():
        other = sample_identity(len(before), generator)
        out |= {name: torch.where(near, other[name], out[name]) for name in PARTS[part]}
        moved = identity_vector(out)[:, COLUMNS[part]] - before
        near = moved.square().mean(1).sqrt() < LEAST
    return out


def portraits(count: int, generator: torch.Generator) -> Params:
    """Nuisance of reference pictures: the sample portraits' with a quarter of the spread that other pictures have."""
    other = sample_nuisance(count, generator)
    return {
        name: PORTRAIT.get(name, 0.0) + 0.25 * (other[name] - (low + high) / 2)
        for name, (low, high) in NUISANCE.items()
    } | {"place": other["place"], "blink": torch.full((count,), PORTRAIT["blink"])}


def seconds(count: int, generator: torch.Generator) -> Params:
    """Nuisance (count · FRAMES,) of a moving second each, every clip with its own place, light, action and motion."""
    action = torch.randint(len(ACTIONS), (count,), generator=generator)
    motion = torch.randint(len(MOTIONS), (count,), generator=generator)
    base = sample_nuisance(count, generator)
    moving = clip_nuisance(base, action, motion, SECOND, generator)
    chosen = torch.arange(count)[:, None] * SECOND + torch.arange(0, SECOND, SECOND // FRAMES)
    return take(moving, chosen.view(-1))


def embedded(
    embed: Embed, face: Params, look: Params, now: Params, generator: torch.Generator, *, blur: bool = True
) -> Tensor:
    """(B, D) float64 embeddings of canonical crops; with ``blur`` every second batch is degraded as video is."""
    rows = []
    for start in range(0, len(face["jaw"]), BATCH):
        one, its, moment = (take(p, slice(start, start + BATCH)) for p in (face, look, now))
        x = crops(one, its, moment, generator)
        x = degrade(x, generator) if blur and start // BATCH % 2 else x
        rows.append(embed(x).double())
    return torch.cat(rows)


def crops(face: Params, look: Params, now: Params, generator: torch.Generator | None = None) -> Tensor:
    """(B, 3, 56, 56) ArcFace crops by true landmarks, jittered as a detector's are where a ``generator`` is given."""
    points, _ = world.landmarks(face, now, 256)
    matrices = data.fit_similarity(points, torch.tensor(data.ARCFACE) / 2 - 0.25)
    if generator is not None:
        matrices = data.jitter(matrices, SIZE, generator, 0.5)
    return world.render_rays(face, look, now, world.crop_rays(matrices, SIZE, 256))


@dataclass(frozen=True)
class Shifts:
    """From reference to clip, for B characters: with one part changed each, or with none."""

    embedding: Tensor
    """(B, FRAMES, D) of each frame minus the reference's."""
    parameters: Tensor
    """(B, V) of the face minus the reference's."""


def measure(embed: Embed, people: int, seed: int = 0) -> dict[str, Shifts]:
    """Shifts of ``people`` characters by changed part; ``""`` is no change."""
    generator = data.seeded(900, seed)
    faces = data.identities("train", people)
    look = sample_appearance(people, generator, faces["feminine"])
    reference = embedded(embed, faces, look, portraits(people, generator), generator, blur=False)
    who, found = torch.arange(people).repeat_interleave(FRAMES), {}
    for part in ("", *PARTS):
        face = change(faces, part, generator) if part else faces
        rows = embedded(embed, take(face, who), take(look, who), seconds(people, generator), generator)
        moved = rows.view(people, FRAMES, -1) - reference[:, None]
        found[part] = Shifts(moved, (identity_vector(face) - identity_vector(faces)).double())
        log.info("measured %s", part or "no change")
    return found


def fit(shifts: Mapping[str, Shifts], encoder: str) -> PartsTable:
    """The judge's response to each parameter by least squares, and the rest as noise."""
    moved = torch.cat([each.parameters for each in shifts.values()])
    means = torch.cat([each.embedding.mean(1) for each in shifts.values()])
    ridge = RIDGE * len(moved) * torch.eye(moved.shape[1], dtype=moved.dtype)
    response = torch.linalg.solve(moved.T @ moved + ridge, moved.T @ means)
    rest = torch.cat([each.embedding - (each.parameters @ response)[:, None] for each in shifts.values()])
    signals = {}
    for part, columns in COLUMNS.items():
        by = shifts[part].parameters[:, columns]
        root = torch.linalg.cholesky(by.T @ by / len(by) + 1e-6 * torch.eye(len(columns), dtype=by.dtype))
        signals[part] = root.T @ response[columns]
    table = PartsTable(encoder, signals, (_covariance(rest.flatten(0, 1)), _covariance(rest.mean(1))), (0, 0))
    quiet = shifts[""].embedding
    loud = _loudest(table, quiet[:, 0], 1), _loudest(table, quiet.mean(1), SECOND)
    return replace(table, limits=loud)


def _loudest(table: PartsTable, quiet: Tensor, frames: int) -> float:
    """Sigma that the strongest part reaches in all but a few of the unchanged shifts (B, D)."""
    sigmas = [table.explain_shift(shift, frames)[0].sigma for shift in quiet]
    return float(torch.tensor(sigmas).quantile(QUANTILE))


def _covariance(rows: Tensor) -> Tensor:
    """(D, D) second moment about zero, made regular."""
    found = rows.T @ rows / len(rows)
    return found + 1e-4 * found.diagonal().mean() * torch.eye(len(found), dtype=found.dtype)


def write(models: Path, people: int = PEOPLE) -> PartsTable:
    """Measure the judge that ships in ``models``, leave its table beside it, and list it in the catalog."""
    from facelock.faces import load_encoder
    from facelock.miniature.export import write_catalog
    from facelock.weights import Catalog

    folder = models / "miniature" / "judge"
    encoder = load_encoder("crate", folder, name="miniature/judge")
    table = fit(measure(shipped(encoder), people), encoder.id)
    table.save(folder)
    bundled = {name.removeprefix("miniature/"): entry for name, entry in Catalog.load().entries.items()}
    write_catalog(
        models, {name: vars(entry.thresholds) for name, entry in bundled.items() if entry.thresholds}
    )
    return table
