"""Same and different people on real photos, per recogniser: separation, and the thresholds that follow from it.

Different pairs are few (some thousands), so that false-accept rates of 1e-3 and 1e-4 are read off a normal
distribution fitted to the upper half of them; beside it stands what was counted. Real tails can be heavier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facelock.faces import Detector, Pack
from facelock.images import read_picture
from facelock.perception import open_perception
from facelock.protocols import Encoder
from facelock.types import Faces
from facelock.video.writing import probe, read_chunks

ASSETS = Path("../shared/assets")
"""Where real photos, videos and weights lie beside a developer's checkout."""
YUNET = "detectors/face_detection_yunet_2023mar.onnx"
PUBLIC = {"biden": "fr_*biden*.jpg", "obama": "fr_*obama*.jpg", "astronaut": "astronaut.png"}
TOGETHER = "_and_"
"""In the name of a photo of two people: it says of no face whose it is, and is left out."""
ONE_PERSON = (("retalk_3", "WDA_AlexandriaOcasioCortez_000"),)
"""Recordings of one person (the assets' README)."""
VIDEO_FRAMES = 4
RATES = {"far_1e2": 1e-2, "far_1e3": 1e-3, "far_1e4": 1e-4}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """Crops of faces whose owner is known."""

    crops: Tensor
    """(N, 3, 112, 112)."""
    people: tuple[str, ...]
    sources: tuple[str, ...]
    """Photos by themselves; all frames of a video are one source, and say nothing of the same person."""


def photos(assets: Path) -> Iterator[tuple[str, Path]]:
    """(person, file) of every photo of one person."""
    for path in sorted((assets / "photos").glob("*/*/*")):
        yield path.parent.name, path
    for person, pattern in PUBLIC.items():
        for path in sorted((assets / "photos" / "public_domain").glob(pattern)):
            if TOGETHER not in path.name:
                yield person, path


def recognisers(assets: Path) -> list[Path]:
    """The recognisers of the assets."""
    return sorted((assets / "recognisers").glob("*.onnx"))


def open_pack(assets: Path, recogniser: Path) -> Pack:
    """YuNet with one of them."""
    pack = open_perception(f"{assets / YUNET}+{recogniser}").faces
    assert isinstance(pack, Pack)  # noqa: S101 - what the grammar's pair gives
    return pack


def principal(faces: Faces, frame: Tensor) -> Faces:
    """Of one frame (1, 3, H, W) the face that it is a picture of, large and near the middle; or none."""
    if not len(faces):
        return faces
    heights = faces.box[:, 3] - faces.box[:, 1]
    middle = torch.tensor([frame.shape[-1], frame.shape[-2]]) / 2
    away = ((faces.box[:, :2] + faces.box[:, 2:]) / 2 - middle).norm(dim=1)
    return faces.select((heights - away).argmax()[None])


def look(assets: Path, pack: Pack) -> Seen:
    """The principal face of every photo, and of some frames of every video, as ``pack`` crops it."""
    crops, people, sources = [], [], []
    for person, path in photos(assets):
        frames = read_picture(path).frames
        faces = principal(pack.detect(frames), frames)
        crops += list(pack.crops(frames, faces))
        people += [person] * len(faces)
        sources += [path.name] * len(faces)
    for path in sorted((assets / "videos").glob("*.mp4")):
        for frame in _spread(path):
            faces = principal(pack.detect(frame), frame)
            crops += list(pack.crops(frame, faces))
            people += [_person(path.stem)] * len(faces)
            sources += [path.name] * len(faces)
    return Seen(torch.stack(crops), tuple(people), tuple(sources))


def _person(stem: str) -> str:
    return next((group[0] for group in ONE_PERSON if stem in group), stem)


def _spread(path: Path) -> Iterator[Tensor]:
    """Some (1, 3, H, W) frames, evenly along a video."""
    wanted = set(np.linspace(0, probe(path).frames - 1, VIDEO_FRAMES).astype(int).tolist())
    for chunk in read_chunks(path, 8):
        for place, frame in enumerate(chunk.frames):
            if chunk.start + place in wanted:
                yield frame[None].clone()


def pairs(embeddings: Tensor, seen: Seen) -> tuple[Floats, Floats]:
    """Cosines of pairs of the same and of different people; frames of one video are no pair."""
    cosines = (embeddings @ embeddings.T).double().numpy()
    people, sources = np.array(seen.people), np.array(seen.sources)
    upper = np.triu(np.ones_like(cosines, dtype=bool), 1) & (sources[:, None] != sources[None])
    same = people[:, None] == people[None]
    return cosines[upper & same], cosines[upper & ~same]


def accept_thresholds(different: Floats) -> dict[str, float]:
    """Similarities at ``RATES``: the larger of what was counted and of the tail's normal fit."""
    middle = float(np.median(different))
    spread = float(np.sqrt(np.mean((different[different > middle] - middle) ** 2)))
    fit = NormalDist(middle, spread)
    counted = {name: float(np.quantile(different, 1 - rate)) for name, rate in RATES.items()}
    enough = {name: rate * len(different) >= 1 for name, rate in RATES.items()}
    return {
        name: max(fit.inv_cdf(1 - rate), counted[name] if enough[name] else float(different.max()))
        for name, rate in RATES.items()
    }


def area_under_curve(same: Floats, different: Floats) -> float:
    """Probability that a same pair is more alike than a different one."""
    below = np.searchsorted(np.sort(different), same, "left") + np.searchsorted(
        np.sort(different), same, "right"
    )
    return float(below.mean() / 2 / len(different))


def separation(encoder: Encoder, seen: Seen) -> dict[str, Any]:
    """All figures of one recogniser."""
    same, different = pairs(encoder.embed_crops(seen.crops), seen)
    return {
        "encoder": encoder.id,
        "same_pairs": len(same),
        "different_pairs": len(different),
        "same": _summary(same),
        "different": _summary(different),
        "auc": area_under_curve(same, different),
        "thresholds": accept_thresholds(different),
        "below_far_1e2": float((same < encoder.thresholds.far_1e2).mean()),
    }


def _summary(values: Floats) -> dict[str, float]:
    low, high = np.quantile(values, [0.05, 0.95])
    return {
        "mean": float(values.mean()),
        "p5": float(low),
        "p95": float(high),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def measure(assets: Path) -> tuple[list[Mapping[str, Any]], Seen]:
    """The figures of every recogniser of the assets, and what they were measured on."""
    packs: Sequence[Pack] = [open_pack(assets, path) for path in recognisers(assets)]
    seen = look(assets, packs[0])
    return [separation(pack.encoder, seen) for pack in packs], seen


__all__ = ["Detector", "Seen", "accept_thresholds", "measure", "open_pack", "photos", "recognisers"]
