"""Which recognisers look at a clip: names of packs, as users give them, to loaded packs.

::

    seen = open_perception("opencv:yunet+sface", judge="insightface:buffalo_s")
    seen.faces.detect(frames)      # the pack in the loop
    seen.judge.encoder.thresholds  # the recogniser that measures

A pack is named in one of these ways:

=========================  ==========================================================================
``miniature``              the bundled pack; its judge is the bundled CRATE
``insightface:NAME``       an insightface pack: a folder, or a name under ``<root>/models``; the root is
                           ``$INSIGHTFACE_HOME``, else ``~/.insightface``
``opencv:DETECTOR+SFACE``  YuNet and SFace through OpenCV: ``opencv:yunet+sface`` are the catalog's
``DETECTOR+RECOGNISER``    two files or catalog names: SCRFD or YuNet, and an ArcFace-format recogniser
=========================  ==========================================================================

A judge is named the same way, or by a recogniser alone, which then looks where the loop's detector finds faces.
What a file is, is found by looking into it. Nothing is ever downloaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facelock.errors import ConfigError, ModelError
from facelock.faces import (
    CrateEncoder,
    Detector,
    OnnxEncoder,
    Pack,
    ScrfdDetector,
    YunetDetector,
    kind_of,
    load_pack,
)
from facelock.protocols import Encoder, FacePack
from facelock.types import Thresholds
from facelock.weights import Catalog, digest, is_here, locate, require_commercial
from facelock.weights.calibration import accepted_from, calibrated

MINIATURE = "miniature"
INSIGHTFACE = "insightface:"
OPENCV = "opencv:"
GRAMMAR = f"{MINIATURE}, insightface:NAME, opencv:yunet+sface, or DETECTOR+RECOGNISER"


@dataclass(frozen=True)
class Perception:
    """The two packs that look at a clip."""

    faces: FacePack
    """In the loop: detector and the recogniser that stages optimise."""
    judge: FacePack
    """Measures; no stage optimises it."""
    names: tuple[str, str]
    """As they were asked for: pack and judge."""

    @property
    def packs(self) -> tuple[FacePack, ...]:
        """Both, or the one that is both."""
        same = self.faces.encoder.id == self.judge.encoder.id
        return (self.faces,) if same else (self.faces, self.judge)


def open_perception(
    faces: str = MINIATURE,
    judge: str | None = None,
    *,
    device: torch.device | str = "cpu",
    commercial: bool = False,
) -> Perception:
    """Load the pack ``faces`` and the ``judge``; without a ``judge``, the pack's own, else the pack itself.

    ``commercial`` refuses weights whose licence does not allow commercial use, before they are loaded. Raises
    ``ConfigError`` then and for a name that means nothing, ``ModelError`` for weights that are missing or damaged,
    ``DeviceError`` for a device that onnxruntime cannot use.
    """
    loop = _pack(faces, device, commercial)
    if judge is None:
        own = _miniature_judge(device, commercial) if faces == MINIATURE else loop
        return Perception(loop, own, (faces, MINIATURE if faces == MINIATURE else faces))
    if judge == MINIATURE:
        return Perception(loop, _miniature_judge(device, commercial), (faces, judge))
    if judge == faces:
        return Perception(loop, loop, (faces, judge))
    if judge.startswith((INSIGHTFACE, OPENCV)) or _pair(judge):
        return Perception(loop, _pack(judge, device, commercial), (faces, judge))
    encoder = _encoder(locate(judge, commercial=commercial), device)
    return Perception(
        loop, Pack(loop.detector, encoder, cut=loop.cut, look_again=loop.look_again), (faces, judge)
    )


def pack_of(
    detector: Path,
    encoder: Path,
    *,
    detection_size: int = 640,
    threshold: float = 0.5,
    thresholds: Thresholds | None = None,
    device: torch.device | str = "cpu",
) -> Pack:
    """Any detector file with any recogniser file: what a recipe's kind ``pack`` names.

    ``thresholds`` of the recogniser default to what its weights are known for. Raises ``ModelError``.
    """
    found = _detector(detector, device, detection_size=detection_size, threshold=threshold)
    return Pack(found, _encoder(encoder, device, thresholds), cut="library", look_again=True)


def pack_member(path: Path, *, detector: bool) -> Path:
    """The detector, or the recogniser, that a recipe's ``path`` means: itself, or in the folder of a whole pack.

    Raises ``ModelError`` for a folder that holds none.
    """
    if path.is_file() or kind_of(path) == "crate":
        return path
    return _members(path)[0 if detector else 1]


def _pack(name: str, device: torch.device | str, commercial: bool) -> Pack:
    if name == MINIATURE:
        return load_pack(
            "onnx_pack",
            detector=locate("miniature/detector", commercial=commercial),
            encoder=locate("miniature/recogniser", commercial=commercial),
            name="miniature/recogniser",
            device=device,
        )
    if name.startswith(INSIGHTFACE):
        detector, encoder = _insightface_files(name.removeprefix(INSIGHTFACE))
    elif name.startswith(OPENCV):
        detector, encoder = (_opencv_file(part) for part in _parts(name.removeprefix(OPENCV), name))
    else:
        detector, encoder = (locate(part) for part in _parts(name, name))
    if commercial:
        require_commercial([detector, encoder])
    return Pack(_detector(detector, device), _encoder(encoder, device), cut="library", look_again=True)


def _miniature_judge(device: torch.device | str, commercial: bool) -> Pack:
    return load_pack(
        "crate",
        detector=locate("miniature/detector", commercial=commercial),
        encoder=locate("miniature/judge", commercial=commercial),
        name="miniature/judge",
        device=device,
    )


def _parts(text: str, name: str) -> tuple[str, str]:
    """Detector and recogniser of ``DETECTOR+RECOGNISER``."""
    found = _pair(text)
    if not found:
        raise ConfigError(f"No face pack is called {name!r}. Give {GRAMMAR}.")
    return found


def _pair(text: str) -> tuple[str, str] | None:
    """The two sides of the ``+`` that has a file on each, since files may have one in their names; else the first."""
    places = [place for place, letter in enumerate(text) if letter == "+"]
    pairs = [(text[:place], text[place + 1 :]) for place in places]
    pairs = [(left, right) for left, right in pairs if left and right]
    if not pairs or Path(text).expanduser().exists():
        return None
    there = [pair for pair in pairs if all(Path(part).expanduser().exists() for part in pair)]
    return (there or pairs)[0]


def _opencv_file(part: str) -> Path:
    """``yunet`` and ``sface`` are the catalog's; anything else is a file or a catalog name itself."""
    short = f"{OPENCV.removesuffix(':')}/{part}"
    known = part in ("yunet", "sface") or short in Catalog.load().entries
    return locate(short if known and not Path(part).expanduser().is_file() else part)


def _insightface_files(name: str) -> tuple[Path, Path]:
    """The detector and the recogniser of a pack: the first of each kind by name, as insightface takes them."""
    return _members(_insightface_folder(name))


def _members(folder: Path) -> tuple[Path, Path]:
    kinds = {path: kind_of(path) for path in sorted(folder.glob("*.onnx"))}
    found = [
        next((p for p, kind in kinds.items() if kind == wanted), None) for wanted in ("scrfd", "arcface")
    ]
    detector, encoder = found
    if detector is None or encoder is None:
        lacks = "detector" if detector is None else "recogniser"
        raise ModelError(
            f"{folder}: holds no {lacks} in insightface's ONNX format. Give a whole pack, such as buffalo_l."
        )
    return detector, encoder


def _insightface_folder(name: str) -> Path:
    if not name:
        raise ConfigError(f"insightface: needs the name of a pack. Give {GRAMMAR}.")
    root = Path(os.environ.get("INSIGHTFACE_HOME") or "~/.insightface").expanduser()
    places = [root / "models" / name, Path(name).expanduser()]
    for folder in reversed(places):
        if folder.is_dir():
            return folder
    known = Catalog.load().find(f"insightface/{name}")
    if known and is_here(known):
        return locate(known.name)
    fetch = f"'facelock models pull {known.name}' or " if known else ""
    raise ModelError(
        f"The insightface pack {name!r} is neither a folder nor in {places[0]}. Fetch it with {fetch}"
        f"'insightface-cli model.download {name}' (its weights are for non-commercial research), or give a folder."
    )


def _detector(path: Path, device: torch.device | str, **limits: Any) -> Detector:
    kind = kind_of(path)
    if kind == "yunet":
        return YunetDetector(path, device=device, **limits)
    if kind == "scrfd":
        return ScrfdDetector(path, device=device, centred=False, **limits)
    raise ModelError(f"{path}: is no face detector. Give an SCRFD or YuNet ONNX file.")


def _encoder(path: Path, device: torch.device | str, thresholds: Thresholds | None = None) -> Encoder:
    kind = kind_of(path)
    if kind not in ("arcface", "crate"):
        raise ModelError(
            f"{path}: is no recogniser. Give an ONNX file that takes crops of 112 x 112 pixels, or a CRATE folder."
        )
    weights = path / "model.safetensors" if kind == "crate" else path
    sha256 = digest(weights)
    entry = next(
        (
            e
            for e in Catalog.load().entries.values()
            if sha256 in (e.sha256, *e.files.values()) and e.task == "recognition"
        ),
        None,
    )
    known = calibrated(sha256)
    name = entry.name if entry else known.name if known else path.stem
    accepted = thresholds or (entry.thresholds if entry else None) or accepted_from(sha256, name)
    make = CrateEncoder if kind == "crate" else OnnxEncoder
    return make(path, name=name, thresholds=accepted, device=device)
