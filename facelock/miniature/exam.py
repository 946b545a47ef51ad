"""The exam of aligner and restorer: held-out faces, the true render beside every answer.

Landmarks and turns are read by the face detector. Nods, mouth, eyes, gaze, glasses and light are read by
comparison with renders (:data:`PROBES`): the wanted face is rendered with the parameter at several values, and the
value whose render is nearest is what the picture shows. Neither asks the networks that are being examined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from facelock.faces.pack import Pack
from facelock.miniature.alignment import SIDE, recogniser_view
from facelock.miniature.heldout import Box, Faces, cut_box
from facelock.miniature.recognition import Embed

EYES: Box = (28, 36, 100, 68)
MOUTH: Box = (40, 78, 88, 114)
FACE: Box = (20, 28, 108, 116)


@dataclass(frozen=True)
class Probe:
    """One parameter of look or moment, the values it is rendered with, and where they differ."""

    parameter: str
    values: tuple[float, ...]
    box: Box
    said: str


PROBES = (
    Probe("pitch", (-0.2, -0.1, 0.0, 0.1, 0.2), FACE, "nod of the head: correlation with the frame's"),
    Probe("glasses", (-0.5, 0.5), EYES, "glasses: share of pictures with the frame's"),
    Probe("blink", (0.0, 0.25, 0.5, 0.77), EYES, "eyelids: correlation with the frame's"),
    Probe(
        "gaze_x", (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9), EYES, "gaze, sideways: correlation with the frame's"
    ),
    Probe("open", (0.0, 0.25, 0.5, 0.75, 1.0), MOUTH, "mouth, how open: correlation with the frame's"),
    Probe("smile", (-0.4, -0.05, 0.3, 0.65, 1.0), MOUTH, "smile: correlation with the frame's"),
    Probe(
        "light_x", (-0.9, -0.45, 0.0, 0.45, 0.9), FACE, "light from the side: correlation with the frame's"
    ),
)
REACH = 2
"""Pixels by which a picture may lie beside the render it is compared with."""
RING = 4
"""Pixels on either side of the head's outline that count as the blend."""
MARGIN = 40
"""Pixels put around a crop for the detector, which looks for faces in whole frames."""


def decibels(error: Tensor, where: Tensor | None = None) -> float:
    """PSNR of squared errors (N, H, W) of values in [0, 1], of all pixels or of those ``where`` is 1."""
    mean = error.mean() if where is None else (error * where).sum() / where.sum()
    return float(-10 * torch.log10(mean))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of those that are finite; nan where one of the two never changes."""
    known = a.isfinite() & b.isfinite()
    a, b = a[known] - a[known].mean(), b[known] - b[known].mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / scale) if len(a) > 1 and scale > 1e-9 else float("nan")


@dataclass(frozen=True)
class Truth:
    """The true render of wanted faces, and where in it is what."""

    faces: Faces
    picture: Tensor
    """(N, 3, 128, 128)."""
    face: Tensor
    """(N, 128, 128), 1 where the front of the head is to be seen, with no hair before it."""
    ring: Tensor
    """(N, 128, 128), 1 within :data:`RING` pixels of the head's outline."""


def truth_of(faces: Faces) -> Truth:
    """Render ``faces``; the bare face is where the render equals the head drawn alone."""
    picture, (drawn, coverage) = faces.render(), faces.draw_face()
    bare = (coverage[:, 0] > 0.99) & ((drawn - picture).abs().amax(1) < 0.02)
    window = 2 * RING + 1
    grown = F.max_pool2d(coverage, window, 1, RING)
    shrunk = -F.max_pool2d(-coverage, window, 1, RING)
    ring = ((grown - shrunk) > 0.5)[:, 0]
    return Truth(faces, picture, (bare & ~ring).float(), ring.float())


def bounds(truth: Truth) -> dict[str, float]:
    """PSNR of the face where it is drawn from the true parameters: as finely as a side allows, or a pixel aside."""

    def reached(drawn: Tensor) -> float:
        drawn = F.interpolate(drawn, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return decibels((drawn - truth.picture).square().mean(1), truth.face)

    aside = truth.faces.matrices.clone()
    aside[:, 0, 2] += 1
    return {
        "bound: the true face drawn at 64 px, PSNR of the face, dB": reached(truth.faces.draw_face(64)[0]),
        "bound: the true face drawn at 128 px, PSNR of the face, dB": reached(truth.faces.draw_face(128)[0]),
        "bound: the same one pixel aside, dB": reached(replace(truth.faces, matrices=aside).draw_face()[0]),
    }


def likeness(pictures: Tensor, truth: Truth) -> dict[str, float]:
    """How near crops (N, 3, 128, 128) come to the true render: PSNR, and the difference at the blend."""
    wrong = pictures - truth.picture
    error, apart = wrong.square().mean(1), wrong.abs().mean(1) * 255
    ring, face = ((apart * where).sum() / where.sum() for where in (truth.ring, truth.face))
    return {
        "PSNR of the face, dB": decibels(error, truth.face),
        "PSNR of the whole crop, dB": decibels(error),
        "mean difference in the face, of 255": float(face),
        f"mean difference within {RING} px of its outline, of 255": float(ring),
        "the latter ÷ the former": float(ring / face),
    }


def resemblance(
    pictures: Tensor, truth: Tensor, reference: Tensor, embed: Embed, who: str
) -> dict[str, float]:
    """Mean cosine to the reference's picture, and as a share of the true render's (all (N, 3, 128, 128))."""
    wanted, shown, most = (F.normalize(embed(recogniser_view(x))) for x in (reference, pictures, truth))
    alike, ceiling = float((shown * wanted).sum(1).mean()), float((most * wanted).sum(1).mean())
    return {f"{who}: cosine to the reference": alike, f"{who}: share of the true render's": alike / ceiling}


# ---- turns, by landmarks


def found_landmarks(pictures: Tensor, pack: Pack) -> Tensor:
    """The detector's landmarks in crops (N, 3, 128, 128), (N, 5, 2); nan where it finds no face."""
    faces = pack.detect(F.pad(pictures, (MARGIN,) * 4, mode="replicate"))
    out = torch.full((len(pictures), 5, 2), float("nan"))
    for i in faces.score.argsort().tolist():  # the surest comes last
        out[faces.frame[i]] = faces.landmarks[i] - MARGIN
    return out


def turn(points: Tensor) -> Tensor:
    """How far the nose is to the side of the eyes' middle, in eye distances, by landmarks (N, 5, 2): (N,)."""
    across = points[:, 1] - points[:, 0]
    return ((points[:, 2] - points[:, :2].mean(1)) * across).sum(1) / across.square().sum(1)


def pose(pictures: Tensor, truth: Truth, pack: Pack) -> dict[str, float]:
    """How far the detector's landmarks are from the true ones, and whether the head turns as it should."""
    found, true = found_landmarks(pictures, pack), truth.faces.landmarks()
    apart = (found - true).norm(dim=-1).mean(1) / (true[:, 1] - true[:, 0]).norm(dim=-1)
    return {
        "landmarks found beside the true ones, % of the eye distance": float(apart.nanmean() * 100),
        "turn of the head: correlation with the frame's": correlation(turn(found), turn(true)),
    }


# ---- the rest of the moment, by comparison with renders


def probe_renders(faces: Faces, probe: Probe) -> Tensor:
    """``faces`` with the probe's parameter at each of its values, (values, N, 3, h, w) of its box."""
    return torch.stack([faces.changed(probe.parameter, v).render(box=probe.box) for v in probe.values])


def reading(pictures: Tensor, renders: Tensor, probe: Probe) -> Tensor:
    """The probe's value whose render is nearest, per picture (N,), wherever it lies within :data:`REACH` pixels."""
    left, top, right, bottom = probe.box
    nearest = torch.full(renders.shape[:2], float("inf"))
    for dx in range(-REACH, REACH + 1):
        for dy in range(-REACH, REACH + 1):
            part = cut_box(pictures, (left + dx, top + dy, right + dx, bottom + dy))
            nearest = torch.minimum(nearest, (renders - part).abs().mean((2, 3, 4)))
    return torch.tensor(probe.values)[nearest.argmin(0)]


def agreement(read: Tensor, faces: Faces, probe: Probe) -> float:
    """Share of pictures on the right side of 0 for glasses; else the correlation with the true values."""
    if probe.parameter == "glasses":
        return float(((read > 0) == (faces.look["glasses"] > 0)).float().mean())
    true = faces.now[probe.parameter]
    return correlation(read, true.clamp(min(probe.values), max(probe.values)))


# ---- all of it


@dataclass(frozen=True)
class Examiners:
    """Who reads the answers: recognisers by name, and a detector."""

    embed: Mapping[str, Embed]
    pack: Pack


def examine(
    answers: Mapping[str, Tensor],
    truth: Truth,
    shown: Mapping[str, Faces],
    reference: Tensor,
    by: Examiners,
) -> dict[str, float]:
    """Figures ``"figure | column"`` for each column of ``answers``, crops (N, 3, 128, 128).

    ``shown`` says whose face a column shows, which the comparison with renders must know.
    """
    columns = {name: _column(x, truth, reference, by) for name, x in answers.items()}
    for probe in PROBES:
        for faces in {id(f): f for f in shown.values()}.values():
            renders = probe_renders(faces, probe)
            for name in answers:
                if shown[name] is faces:
                    columns[name][probe.said] = agreement(
                        reading(answers[name], renders, probe), faces, probe
                    )
    figures = next(iter(columns.values()))
    return {f"{figure} | {name}": columns[name][figure] for figure in figures for name in columns}


def _column(x: Tensor, truth: Truth, reference: Tensor, by: Examiners) -> dict[str, float]:
    out = likeness(x, truth)
    for who, embed in by.embed.items():
        out |= resemblance(x, truth.picture, reference, embed, who)
    return out | pose(x, truth, by.pack)
