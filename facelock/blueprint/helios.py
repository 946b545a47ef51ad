"""Stage 1 by a Helios checkpoint: long video in sections, each continued from a compressed history of latents.

::

    backbone = Helios(folder, size=(384, 640), fps=24, window=99, context=66, steps=50, guidance_scale=5.0)
    first = backbone.extend("a woman talking", None, seed=1)            # (99, 3, 384, 640)
    more = backbone.extend("a woman talking", first[-66:], seed=2)      # (33, 3, 384, 640)

Helios writes sections of 9 latents, which decode to 33 frames each. Before a section's own tokens stand those of the
first latent and of the last 19: one at full resolution, two at half, 16 at a quarter. Here the history is not what the
model remembers having made but the locked tail, encoded section by section, as diffusers' ``HeliosPipeline`` takes a
video to continue; its first frame takes the place of the first latent. Latents are the autoencoder's mode, where the
pipeline draws from its posterior, and sections come back whole, where the pipeline drops the last frames of a clip
(97 of 99). References are not used: this backbone takes no identities, the lock gives them.

Shapes: F latent frames, h w their size, z channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, HeliosScheduler, HeliosTransformer3DModel
from diffusers.pipelines.helios.pipeline_helios import calculate_shift
from torch import Tensor
from transformers import UMT5EncoderModel

from facelock.blueprint.checkpoint import Layout
from facelock.blueprint.fits import SECTION
from facelock.blueprint.wan_base import WanBackbone
from facelock.types import Identity

HISTORY = (16, 2, 1)
"""Latents of the past at a quarter, at half and at full resolution, the oldest first."""


@dataclass(frozen=True)
class Past:
    """The locked tail."""

    first: Tensor
    """(1, z, 1, h, w): its first frame."""
    latents: Tensor
    """(1, z, F, h, w): all of it, section by section."""


class Helios(WanBackbone):
    """A :class:`facelock.protocols.Backbone` over the parts of one checkpoint folder of ``HeliosPipeline``.

    ``context_noise`` in [0, 0.2] is σ of the noise that the past's latents are mixed with: 0.111 to 0.135 is what the
    published pipeline draws for a video that it did not make itself.
    """

    layout = Layout(
        kind="helios",
        networks={
            "text_encoder": UMT5EncoderModel,
            "transformer": HeliosTransformer3DModel,
            "vae": AutoencoderKLWan,
        },
        schedulers=(HeliosScheduler,),
    )

    # ------------------------------------------------------------------ pictures and latents

    def _section_frames(self) -> int:
        """Frames of one section."""
        return (SECTION - 1) * self._scales()[0] + 1

    def _condition(self, context: Tensor | None, references: Sequence[Identity]) -> Past | None:
        if context is None:
            return None
        return Past(super()._encode(context[:1]), self._encode(context))

    def _encode(self, frames: Tensor) -> Tensor:
        """(33·n, 3, H, W) in [0, 1] → normalised latents, (1, z, 9·n, h, w), each section by itself."""
        sections = frames.split(self._section_frames())
        return torch.cat([super(Helios, self)._encode(section) for section in sections], dim=2)

    def _decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (1, z, 9·n, h, w) → (33·n, 3, H, W) in [0, 1]."""
        sections = latents.split(SECTION, dim=2)
        return torch.cat([super(Helios, self)._decode(section) for section in sections])

    def _new(self, frames: Tensor, context: Tensor | None) -> Tensor:
        return frames[: self.first_chunk if context is None else self.chunk]

    # ------------------------------------------------------------------ denoising

    def _denoise(self, texts: Tensor, past: Past | None, seed: int) -> Tensor:
        """Clean latents of as many sections as are needed, (1, z, 9·n, h, w) float32."""
        generator = torch.Generator("cpu").manual_seed(seed)
        _, channels, _, height, width = self._latent_shape()
        history = torch.zeros(1, channels, sum(HISTORY), height, width, device=self.device)
        first = None
        if past is not None:
            first = self._noisy(past.first, generator)
            history = torch.cat([history, self._noisy(past.latents, generator)], dim=2)
        sections: list[Tensor] = []
        for _ in range(-(-(self.first_chunk if past is None else self.chunk) // self._section_frames())):
            section = self._section(texts, first, history[:, :, -sum(HISTORY) :], generator)
            first = section[:, :, :1] if first is None else first
            history = torch.cat([history, section], dim=2)
            sections.append(section)
        return torch.cat(sections, dim=2)

    def _noisy(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """The past, with its share of noise."""
        if not self.context_noise:
            return latents
        return latents.lerp(self._noise(latents.shape, generator), self.context_noise)

    def _section(
        self, texts: Tensor, first: Tensor | None, history: Tensor, generator: torch.Generator
    ) -> Tensor:
        """One section, (1, z, 9, h, w); ``first`` is the prefix, (1, z, 1, h, w), black where nothing is known."""
        _, channels, _, height, width = self._latent_shape()
        latents = self._noise((1, channels, SECTION, height, width), generator)
        prefix = torch.zeros_like(latents[:, :, :1]) if first is None else first
        long, middle, last = history.split(HISTORY, dim=2)
        seen = {"short": torch.cat([prefix, last], dim=2), "mid": middle, "long": long}
        scheduler = self._fresh_scheduler(
            sigmas=np.linspace(0.999, 0.0, self.steps + 1)[:-1], mu=self._shift()
        )
        for index, timestep in enumerate(scheduler.timesteps):
            velocity = self._predict(latents, timestep, texts, seen)
            latents = self._advance(scheduler, velocity, latents, index, generator=generator)
        return latents

    def _predict(self, latents: Tensor, timestep: Tensor, texts: Tensor, seen: dict[str, Tensor]) -> Tensor:
        """The guided velocity, (1, z, 9, h, w) float32; ``texts`` is (1 or 2, L, D), the prompt last."""
        return self._guided(texts, lambda some: self._forward(latents, timestep, some, seen))

    def _shift(self) -> float:
        """How far the schedule is shifted towards noise: by the tokens of a section."""
        depth, tall, wide = self._transformer.config.patch_size
        _, _, _, height, width = self._latent_shape()
        config = self._scheduler.config
        return float(
            calculate_shift(
                SECTION * height * width // (depth * tall * wide),
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.15),
            )
        )

    def _forward(self, latents: Tensor, timestep: Tensor, texts: Tensor, seen: dict[str, Tensor]) -> Tensor:
        """One pass of the transformer for every text, (N, z, 9, h, w) float32."""
        dtype, count = self._transformer.patch_embedding.weight.dtype, len(texts)
        long, middle, last = HISTORY
        places = torch.arange(1 + sum(HISTORY) + SECTION, device=self.device)[None]
        prefix, far, near, newest, own = places.split([1, long, middle, last, SECTION], dim=1)
        past = {f"latents_history_{k}": v.to(dtype).expand(count, -1, -1, -1, -1) for k, v in seen.items()}
        return self._transformer(  # type: ignore[no-any-return]
            hidden_states=latents.to(dtype).expand(count, -1, -1, -1, -1),
            timestep=timestep.expand(count),
            encoder_hidden_states=texts.to(dtype),
            indices_hidden_states=own,
            indices_latents_history_short=torch.cat([prefix, newest], dim=1),
            indices_latents_history_mid=near,
            indices_latents_history_long=far,
            **past,
            return_dict=False,
        )[0].float()

    # ------------------------------------------------------------------ checks

    def _shifted(self, scheduler: Any, flow_shift: float | None) -> Any:
        """The scheduler as it is: its shift depends on the picture's size."""
        return scheduler
