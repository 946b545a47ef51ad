"""Stage 1 by ConsisID: one short clip of one known face, for comparison; it cannot be continued.

::

    backbone = ConsisID(folder, size=(480, 720), fps=8, window=49, context=1, steps=50, guidance_scale=6.0,
                        features="features")
    frames = backbone.extend("a woman talking", None, seed=1, references=[maria])     # (49, 3, 480, 720)

ConsisID draws the face itself, from features that :mod:`facelock.blueprint.consisid_features` explains; the lock
then has less to do, and the report tells how much. diffusers' own ``ConsisIDPipeline`` does the sampling. The model
has no way to be given frames, so a clip is its window at most: longer ones are refused before anything is loaded.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    ConsisIDPipeline,
    ConsisIDTransformer3DModel,
)
from PIL import Image
from torch import Tensor
from transformers import T5EncoderModel

from facelock.blueprint.base import LoadedBackbone
from facelock.blueprint.checkpoint import Checkpoint, Layout
from facelock.blueprint.common import clean_text, decoded, denoised, tell_cut
from facelock.blueprint.consisid_features import FeatureFolder, Features, FeatureSource
from facelock.blueprint.published import sampler, watched
from facelock.errors import InputError
from facelock.types import Identity
from facelock.weights.pretrained import quiet

logger = logging.getLogger(__name__)


class ConsisID(LoadedBackbone):
    """A :class:`facelock.protocols.Backbone` over the parts of one checkpoint folder, for one chunk.

    ``context`` is kept by whoever asks, but never continued from; ``flow_shift``, ``context_noise`` and ``guide`` are
    refused.
    """

    layout = Layout(
        kind="consisid",
        networks={
            "text_encoder": T5EncoderModel,
            "transformer": ConsisIDTransformer3DModel,
            "vae": AutoencoderKLCogVideoX,
        },
        schedulers=(CogVideoXDPMScheduler, CogVideoXDDIMScheduler),
        float32=frozenset(),  # the pipeline encodes the face in the transformer's type
    )

    def _take(self, *, features: str | Path | FeatureSource = "") -> None:
        """``features`` is the folder of the faces' features, or what computes them."""
        self.features = _source(features)

    def _open(self, parts: Checkpoint, flow_shift: float | None) -> None:
        """Set up the pipeline over the loaded parts."""
        self._scheduler = parts.scheduler
        self._pipe = sampler(ConsisIDPipeline, parts, self.device)

    @property
    def chunk(self) -> int:
        """Frames of the one chunk."""
        return self.window

    def extend(
        self, prompt: str, context: Tensor | None, *, seed: int, references: Sequence[Identity] = ()
    ) -> Tensor:
        """Return the clip, (window, 3, H, W) float32 in [0, 1] on its device, of the first of ``references``.

        The same arguments give the same bytes on the same device. Raises ``InputError`` for a context, and where
        nobody or nobody known is referred to, ``DeviceError`` when memory runs out, and ``NotFiniteError`` where
        latents or frames stopped being finite, latents also in float32 if that can be tried.
        """
        if context is not None:
            raise InputError(
                f"ConsisID writes one clip of {self.window / self.fps:.1f} seconds and cannot continue it. "
                "Ask for that many at most, or give another recipe."
            )
        face = self._face(references)
        tell_cut(self._pipe.tokenizer, clean_text(prompt), self._pipe.transformer.config.max_text_seq_length)
        with quiet(), torch.no_grad(), self._working():
            latents = denoised(lambda: self._denoise(prompt, face, seed), self.modules, self._bound)
            frames = decoded(self._pipe.vae, lambda: self._pipe.decode_latents(latents))
            return frames[: self.window].contiguous()

    def _face(self, references: Sequence[Identity]) -> Features:
        """The features of the one face that can be drawn; the others' come from the lock alone."""
        if not references:
            raise InputError("ConsisID draws one known face. Give a reference picture of it.")
        others = ", ".join(identity.name for identity in references[1:])
        if others:
            logger.warning(
                "ConsisID draws one face, %s; the lock alone gives that of %s.", references[0].name, others
            )
        face, network = self.features(references[0]), self._pipe.transformer.config
        wanted = (1, network.LFE_id_dim), [network.LFE_vit_dim] * network.LFE_num_scale
        found = tuple(face.condition.shape), [states.shape[-1] for states in face.hidden]
        if found != wanted:
            raise InputError(
                f"The features of {references[0].name} are {found[0]} and {found[1]}, this checkpoint takes "
                f"{wanted[0]} and {wanted[1]}. Compute them with its own tools."
            )
        return face

    def _denoise(self, prompt: str, face: Features, seed: int) -> Tensor:
        """Clean latents, (1, F, z, h, w)."""
        pipe, (height, width) = self._pipe, self.size
        pipe.scheduler = copy.deepcopy(self._scheduler)
        latents: Tensor = pipe(
            image=Image.fromarray(face.picture.permute(1, 2, 0).numpy()),
            prompt=clean_text(prompt),
            negative_prompt=clean_text(self.negative_prompt),
            height=height,
            width=width,
            num_frames=(self._latents() - 1) * pipe.vae_scale_factor_temporal + 1,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
            id_cond=face.condition,
            id_vit_hidden=list(face.hidden),
            max_sequence_length=pipe.transformer.config.max_text_seq_length,
            output_type="latent",
            callback_on_step_end=watched(self.steps, self.on_step),
        ).frames
        return latents

    def _latents(self) -> int:
        """Latents that hold the window: an odd number, since of an even one the VAE makes 4 frames of each.

        Of an odd one it makes 1 frame of the first and 4 of each other, which is what the model was trained with.
        """
        latents = -(-(self.window - 1) // self._pipe.vae_scale_factor_temporal) + 1
        return int(latents + 1 - latents % 2)


def _source(features: str | Path | FeatureSource) -> FeatureSource:
    return features if callable(features) else FeatureFolder(features)
