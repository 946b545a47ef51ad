"""What ConsisID wants to know of a face, which only its own tools can compute.

ConsisID (Yuan et al. 2025, "Identity-Preserving Text-to-Video Generation by Frequency Decomposition") is told whose
face to draw by an ArcFace embedding that is *not* normalised, joined with a normalised EVA-CLIP one, by the hidden
states of five EVA-CLIP layers, and by the face cut out on white. FaceLock keeps unit-norm embeddings, so not even the
first half can be had from an identity. The features are computed once per person where ConsisID's tools are installed
(insightface, facexlib, consisid_eva_clip, torchvision and the checkpoint's ``face_encoder/`` folder)::

    from diffusers.pipelines.consisid.consisid_utils import prepare_face_models, process_face_embeddings_infer

    helper, backup, clip, app, mean, std = prepare_face_models(folder, "cuda", torch.bfloat16)
    cond, hidden, picture, _ = process_face_embeddings_infer(
        helper, clip, backup, mean, std, app, "cuda", torch.bfloat16, "maria.png"
    )
    stored = {f"id_vit_hidden.{index}": states.float().cpu() for index, states in enumerate(hidden)}
    stored["picture"] = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    stored["id_cond"] = cond.float().cpu()
    save_file(stored, "features/maria.safetensors")

and read from that folder, here or anywhere, by :class:`FeatureFolder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from facelock.blueprint.fits import FEATURE_REMEDY, feature_file
from facelock.errors import InputError
from facelock.types import Identity

LARGEST_FILE = 1 << 28
"""Bytes; the published model's features are 12 MB."""


@dataclass(frozen=True)
class Features:
    """One face, as ConsisID sees it."""

    condition: Tensor
    """(1, 1280) float32: ArcFace 512, as it comes, and EVA-CLIP 768, unit norm."""
    hidden: tuple[Tensor, ...]
    """Five times (1, 577, 1024) float32: hidden states of EVA-CLIP."""
    picture: Tensor
    """(3, S, S) uint8 RGB: the face, aligned, on white."""


class FeatureSource(Protocol):
    """Whatever knows a character's features: a folder, or an extractor that somebody plugs in."""

    def __call__(self, identity: Identity) -> Features:
        """The features of ``identity``. Raises ``InputError`` where there are none."""
        ...


class FeatureFolder:
    """Reads ``<character's name>.safetensors`` from a folder."""

    def __init__(self, folder: str | Path) -> None:
        """That ``folder`` is one was asked before (:mod:`facelock.blueprint.fits`)."""
        self.folder = Path(folder)

    def __call__(self, identity: Identity) -> Features:
        """The features of that name. Raises ``InputError`` for a file that is missing or damaged."""
        path = feature_file(self.folder, identity.name)
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise InputError(f"{path}: {path.stat().st_size} bytes are no features. {FEATURE_REMEDY}")
            return _features(load(path.read_bytes()))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path}: cannot be used ({error}). {FEATURE_REMEDY}") from error


def _features(stored: Mapping[str, Tensor]) -> Features:
    """Raises ``KeyError`` for what is missing and ``ValueError`` for what cannot be."""
    hidden = tuple(stored[f"id_vit_hidden.{index}"] for index in range(_layers(stored)))
    condition, picture = stored["id_cond"], stored["picture"]
    for name, value in (("id_cond", condition), *((f"id_vit_hidden.{i}", v) for i, v in enumerate(hidden))):
        if not torch.isfinite(value.float()).all():
            raise ValueError(f"{name} is not finite")
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(f"picture is {tuple(picture.shape)} {picture.dtype}, not (3, S, S) uint8")
    return Features(condition.float(), tuple(states.float() for states in hidden), picture)


def _layers(stored: Mapping[str, Tensor]) -> int:
    return max(sum(name.startswith("id_vit_hidden.") for name in stored), 1)
