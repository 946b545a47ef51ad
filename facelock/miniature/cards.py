"""Model cards: what each bundled model is, how it was trained, and its figures on held-out characters.

The figures are measured on the exported files, through the code that serves users::

    python -m facelock.miniature --root /work cards

``models/miniature/training.json`` says what a part went through: part → its sittings, each with ``steps``, ``last``
(figures) and, where they were kept, ``device``, ``seconds``, ``samples`` and ``curve`` (see
:mod:`facelock.miniature.curves`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facelock.alignment import aligner_class
from facelock.assets import asset_dir
from facelock.faces import load_encoder, load_pack
from facelock.faces.pack import Pack
from facelock.miniature import curves, data, exam, heldout, sheets, world
from facelock.miniature.alignment import recogniser_view
from facelock.miniature.card_texts import CARDS, COMMON, RECIPE, Card
from facelock.miniature.parameters import sample_appearance, sample_nuisance
from facelock.miniature.recognition import Embed, FacePool, degrade, shipped
from facelock.miniature.siblings import recognition_figures
from facelock.restoration import restorer_class, upscaler_class
from facelock.weights import locate

Figures = Mapping[str, float]
"""Figure → value. ``"figure | column"`` stands in a table of its own, with a column for each."""
CPU = torch.device("cpu")


@dataclass
class Findings:
    """What measuring gives: figures of each part, and pictures (PNG) by name."""

    figures: dict[str, Figures] = field(default_factory=dict)
    sheets: dict[str, bytes] = field(default_factory=dict)


def write(models: Path, sittings: Mapping[str, Sequence[Mapping[str, Any]]], found: Findings) -> None:
    """Write a card beside each model of ``models/miniature``: what it went through, and what it can do.

    Pictures go to ``models/miniature/curves``: a curve of each part whose sittings kept one, and what was measured.
    """
    folder = models / "miniature"
    pictures = {part: png for part in sittings if (png := curves.draw(sittings[part]))} | found.sheets
    (folder / "curves").mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        (folder / "curves" / f"{name}.png").write_bytes(png)
    for name, card in CARDS.items():
        up = os.path.relpath(folder / "curves", (folder / name).parent)
        (folder / name).write_text(_card(card, sittings, found, {p: f"{up}/{p}.png" for p in pictures}))


def _card(
    card: Card,
    sittings: Mapping[str, Sequence[Mapping[str, Any]]],
    found: Findings,
    pictures: Mapping[str, str],
) -> str:
    """The whole text; ``pictures`` are those that exist, by name, as the card links them."""
    trained = [part for part in card.parts if part in sittings]
    lines = [_training(part, sittings[part]) for part in trained]
    drawn = [f"![Curves of {part}]({pictures[part]})" for part in trained if part in pictures]
    shown = [f"![{said}]({pictures[name]})\n\n{said}" for name, said in card.sheets if name in pictures]
    blocks = [
        f"# {card.title}",
        card.text,
        COMMON,
        "## Training",
        f"{card.data} {RECIPE}",
        "\n".join(lines),
        *drawn,
        "Commands, sets and seeds: docs/training.md.",
        "## Held-out figures",
        card.reading,
        *(table for part in card.parts for table in tables(part, found.figures.get(part, {}))),
        *shown,
        "## Limits",
        card.limits,
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _training(part: str, sittings: Sequence[Mapping[str, Any]]) -> str:
    went = ", then from those weights ".join(_sitting(s) for s in sittings)
    said = ", ".join(f"{k} {v:.4g}" for k, v in sittings[-1]["last"].items())
    return f"- `{part}`: {went}; last logged: {said}."


def _sitting(sitting: Mapping[str, Any]) -> str:
    """ "4200 steps of 1,075,200 samples in all, 96 s on NVIDIA H100", or as much of it as was kept."""
    said = f"{sitting['steps']} steps"
    if "samples" in sitting:
        said += f" ({sitting['samples']:,} samples)"
    if "seconds" in sitting:
        said += f" in {sitting['seconds']:,.0f} s"
    if sitting.get("device"):
        said += f" on {sitting['device']}"
    if sitting.get("repeated"):
        said += " (no curve was kept: the one below is of the same command, run again)"
    return said


def tables(part: str, figures: Figures) -> list[str]:
    """Markdown tables of a part's figures: plain ones, and those of several columns; none where there are none."""
    plain: dict[str, float] = {}
    columns: list[str] = []
    rows: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        figure, _, column = name.partition(" | ")
        if not column:
            plain[figure] = value
            continue
        rows.setdefault(figure, {})[column] = value
        columns += [column] * (column not in columns)
    out = []
    if plain:
        out.append(_table([part, "value"], {k: [v] for k, v in plain.items()}))
    if rows:
        body = {k: [row.get(c, math.nan) for c in columns] for k, row in rows.items()}
        out.append(_table([part, *columns], body))
    return out


def _table(head: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for name, values in rows.items():
        cells = [f"{v:.4g}" if math.isfinite(v) else "–" for v in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.no_grad()
def measure(pool: Path, *, count: int = 48, people: int = 200) -> Findings:
    """Held-out figures and pictures of every exported model; ``pool`` holds the ``heldout`` set.

    ``count`` are the scenes of aligner and restorer, ``people`` the held-out ones who get siblings.
    """
    found = Findings()
    faces = FacePool("heldout", pool)
    for part, embed in encoders(asset_dir("models")).items():
        found.figures[part] = recognition_figures(embed, faces, people)
    found.figures["detector"] = _detector()
    scenes = heldout.scenes(count)
    decoded = _decoded(scenes.clips)
    for part, same in (("aligner", False), ("restorer", True)):
        _swapper(part, scenes, decoded, found, same=same)
    _upscaler(found)
    _autoencoder(scenes, decoded, found)
    found.figures["tiny_decoder"] = _tiny_decoder(scenes.clips[:8])
    return found


def encoders(models: Path) -> dict[str, Embed]:
    """The exported recognisers, by part; straight from their files, which the catalog may not list yet."""
    files = {"recogniser": ("onnx_pack", "faces/recogniser.onnx"), "judge": ("crate", "judge")}
    return {
        part: shipped(load_encoder(kind, models / "miniature" / file, name=f"miniature/{part}", device=CPU))
        for part, (kind, file) in files.items()
    }


def _frames(count: int, size: int) -> tuple[Tensor, Tensor]:
    g = data.seeded(123)
    face = data.identities("heldout", count)
    look, now = sample_appearance(count, g, face["feminine"]), sample_nuisance(count, g)
    return world.render(face, look, now, size), world.landmarks(face, now, size)[0]


def _pack() -> Pack:
    return load_pack(
        "onnx_pack",
        detector=locate("miniature/detector"),
        encoder=locate("miniature/recogniser"),
        name="miniature/recogniser",
        detection_size=128,
        threshold=0.5,
        batch=16,
        device=CPU,
    )


def _detector() -> Figures:
    pack = _pack()
    out: dict[str, float] = {}
    for size in (64, 256):
        frames, points = _frames(200, size)
        found = pack.detect(frames)
        eyes = (points[:, 1] - points[:, 0]).norm(dim=-1)
        error = (found.landmarks - points[found.frame]).norm(dim=-1).mean(1) / eyes[found.frame]
        own = error < 0.5
        out[f"frames of {size} px with their face found"] = found.frame[own].unique().numel() / 200
        out[f"false faces per frame of {size} px"] = float((~own).sum()) / 200
        out[f"landmark error at {size} px, % of the eye distance"] = float(error[own].mean() * 100)
    return out


SMALLEST = {"aligner": 0.2, "restorer": 0.26}
"""To which share of its resolution a degraded crop may have been brought down."""


def _swapper(part: str, scenes: heldout.Scenes, decoded: Tensor, found: Findings, *, same: bool) -> None:
    """Aligner or restorer, with somebody else in the frame or, ``same``, the wanted person."""
    wanted = scenes.shown if same else scenes.stranger
    truth, embed = exam.truth_of(wanted), encoders(asset_dir("models"))
    reference = heldout.elsewhere(wanted).render()
    crop = scenes.shown.render()
    blurred = degrade(crop, torch.Generator().manual_seed(17), SMALLEST[part])
    inputs = {"clean": crop, "degraded": blurred, "decoded": scenes.cut(decoded)}
    outputs = {
        name: _answer(part, x, embed["recogniser"](recogniser_view(reference))) for name, x in inputs.items()
    }
    columns = {"true render": truth.picture}
    for name, x in inputs.items():
        columns |= {f"{name}, in": x, f"{name}, out": outputs[name]}
    shown = {name: scenes.shown if name.endswith(" in") else wanted for name in columns}
    found.figures[part] = exam.bounds(truth) | exam.examine(
        columns, truth, shown, reference, exam.Examiners(embed, _pack())
    )
    left = [
        torch.cat([side[k][rows] for k, rows in (("clean", slice(4)), ("decoded", slice(4, 8)))])
        for side in (inputs, outputs)
    ]
    found.sheets[f"{part}_faces"] = sheets.sheet(
        {
            "reference": reference[:8],
            "input": left[0],
            "output": left[1],
            "true render": truth.picture[:8],
            "difference\nof the last\ntwo, x 4": sheets.difference(left[1], truth.picture[:8]),
        }
    )


def _answer(part: str, crops: Tensor, identities: Tensor) -> Tensor:
    """What the exported aligner or restorer makes of crops, in [0, 1]."""
    if part == "aligner":
        swap = aligner_class("inswapper")(locate("miniature/aligner"), encoder="any", batch=16, device=CPU)
        return swap.align(crops, identities, 1.0)
    net = restorer_class("onnx_restorer")(locate("miniature/restorer"), encoder="any", batch=16, device=CPU)
    return net.restore(crops, identities)


def _upscaler(found: Findings) -> None:
    truth, points = _frames(48, 256)
    small = F.avg_pool2d(truth, 4)
    net = upscaler_class("onnx_upscaler")(locate("miniature/upscaler"), scale=4, batch=16, device=CPU)
    large, cubic = (
        net.upscale(small),
        F.interpolate(small, scale_factor=4, mode="bicubic", antialias=True).clamp(0, 1),
    )
    psnr = lambda z: exam.decibels((z - truth).square().mean(1))  # noqa: E731
    found.figures["upscaler"] = {"PSNR, dB": psnr(large), "PSNR of bicubic, dB": psnr(cubic)}
    rows = {
        "input": F.interpolate(small, scale_factor=4, mode="nearest"),
        "bicubic": cubic,
        "output": large,
        "true render": truth,
        "difference\nof the last\ntwo, x 4": sheets.difference(large, truth),
    }
    corner = [(p.mean(0) - 64).round().int().clamp(0, 128).tolist() for p in points[:8]]
    found.sheets["upscaler_faces"] = sheets.sheet(
        {
            name: torch.stack([x[i, :, y : y + 128, left : left + 128] for i, (left, y) in enumerate(corner)])
            for name, x in rows.items()
        }
    )


def _blueprint() -> Any:
    from facelock.blueprint import backbone_class

    return backbone_class("skyreels_v2")(
        locate("miniature/blueprint"), size=(64, 64), fps=12.0, window=17, context=5, steps=8, device=CPU
    )


def _decoded(clips: Tensor) -> Tensor:
    """What the blueprint's autoencoder leaves of clips (N, 17, 3, 64, 64)."""
    net = _blueprint()
    return torch.stack([net.reconstruct(clip) for clip in clips])


def _autoencoder(scenes: heldout.Scenes, decoded: Tensor, found: Findings) -> None:
    error = (decoded - scenes.clips).square()
    found.figures["vae"] = {"PSNR of 17-frame windows, dB": exam.decibels(error)}
    truth, left = scenes.clips[:8, heldout.SHOWN], decoded[:8, heldout.SHOWN]
    rows = {"true render": truth, "decoded": left, "difference\nx 4": sheets.difference(truth, left)}
    found.sheets["vae_faces"] = sheets.sheet(rows, zoom=2)


def _tiny_decoder(clips: Tensor) -> Figures:
    """Against what the autoencoder shows of the same latents."""
    from facelock.guidance import load_tiny_decoder

    vae, net = _blueprint(), load_tiny_decoder(locate("miniature/tiny_decoder"))
    latents = [vae._encode(clip) for clip in clips]
    shown, truth = torch.cat([net(z)[0] for z in latents]), torch.cat([vae._decode(z) for z in latents])
    return {
        "PSNR to the autoencoder's frames, dB": exam.decibels((shown - truth).square()),
        "recogniser, its faces to the autoencoder's": _alike(truth, shown),
    }


def _alike(truth: Tensor, other: Tensor) -> float:
    """Mean cosine of the same faces in two sets of frames, found in the first."""
    pack = _pack()
    faces = pack.detect(truth)
    return float((pack.embed(truth, faces) * pack.embed(other, faces)).sum(1).mean())
