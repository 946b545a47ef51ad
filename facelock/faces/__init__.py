"""Perception: which faces a frame holds and whose they are. The table of what a recipe can name.

::

    pack = load_pack("onnx_pack", detector=path, encoder=path, name="miniature/recogniser")
    faces = pack.detect(frames)
    pack.embed(frames, faces)

``kind`` names the encoder; the detector is always an SCRFD file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from facelock.errors import ConfigError
from facelock.faces.crate import CrateEncoder
from facelock.faces.kinds import kind_of
from facelock.faces.onnx_pack import OnnxEncoder, OnnxPack
from facelock.faces.opencv import YunetDetector
from facelock.faces.pack import Detector, Pack
from facelock.faces.scrfd import ScrfdDetector
from facelock.protocols import Encoder
from facelock.runtime import BUSY_BATCH
from facelock.types import Thresholds
from facelock.weights import thresholds as catalog_thresholds

ENCODERS: dict[str, type[OnnxEncoder] | type[CrateEncoder]] = {
    "onnx_pack": OnnxEncoder,
    "crate": CrateEncoder,
}
"""Kind, as recipes name it → class."""


def load_encoder(
    kind: str,
    path: str | Path,
    *,
    name: str,
    thresholds: Thresholds | None = None,
    batch: int = 16,
    device: torch.device | str = "cpu",
) -> Encoder:
    """Open the recogniser at ``path``.

    ``name`` is its name in the catalog, which gives the ``thresholds`` unless they are given. Raises
    ``ConfigError`` for an unknown ``kind``, ``ModelError`` for weights that cannot be used.
    """
    if kind not in ENCODERS:
        raise ConfigError(f"No kind of face pack is called {kind!r}. Give one of {', '.join(ENCODERS)}.")
    accepted = thresholds or catalog_thresholds(name)
    made: Callable[..., Encoder] = ENCODERS[kind]
    if kind == "onnx_pack":  # a recipe's is small: its weights fill a core's cache, not its pictures
        made = partial(OnnxEncoder, on_cpu=BUSY_BATCH)
    return made(path, name=name, thresholds=accepted, batch=batch, device=device)


def load_pack(
    kind: str,
    *,
    detector: str | Path,
    encoder: str | Path,
    name: str,
    thresholds: Thresholds | None = None,
    detection_size: int = 128,
    threshold: float = 0.5,
    batch: int = 16,
    device: torch.device | str = "cpu",
) -> OnnxPack:
    """Open the detector file and the recogniser of ``kind`` beside it; see :func:`load_encoder`."""
    recogniser = load_encoder(kind, encoder, name=name, thresholds=thresholds, batch=batch, device=device)
    return OnnxPack(
        detector,
        recogniser,
        detection_size=detection_size,
        threshold=threshold,
        batch=batch,
        device=device,
    )


__all__ = [
    "ENCODERS",
    "CrateEncoder",
    "Detector",
    "OnnxEncoder",
    "OnnxPack",
    "Pack",
    "ScrfdDetector",
    "YunetDetector",
    "kind_of",
    "load_encoder",
    "load_pack",
]
