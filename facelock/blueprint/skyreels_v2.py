"""Stage 1 by a SkyReels-V2 diffusion-forcing checkpoint: prompt and locked tail in, the next frames out.

::

    backbone = SkyReelsV2(folder, size=(64, 64), fps=12, window=17, context=5, steps=8, guidance_scale=3.0)
    first = backbone.extend("a woman talking", None, seed=1)            # (17, 3, 64, 64)
    more = backbone.extend("a woman talking", first[-5:], seed=2)       # (12, 3, 64, 64)

Diffusion forcing gives every latent frame its own noise level. The tail of the clip so far, encoded, enters
a window clean (level 0) and stays; the other latents start as noise and are denoised together. That is the
synchronous mode of diffusers' ``SkyReelsV2DiffusionForcingPipeline``, whose results this reproduces, with
three differences: the past comes in as frames, so that the lock can mend it first; memory does not grow with
the clip; and both halves of classifier-free guidance share one forward pass.

Shapes: F latent frames of a window, h w their size, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor
from transformers import UMT5EncoderModel

from facelock.blueprint.checkpoint import Layout
from facelock.blueprint.regions import Regions, shares
from facelock.blueprint.wan_base import WanBackbone


class SkyReelsV2(WanBackbone):
    """A :class:`facelock.protocols.Backbone` over the parts of one checkpoint folder.

    ``context_noise`` in [0, 0.06] is SkyReels' ``addnoise_condition`` / 1000. References are not used: this backbone
    takes no identities, the lock gives them.
    """

    layout = Layout(
        kind="skyreels_v2",
        networks={
            "text_encoder": UMT5EncoderModel,
            "transformer": SkyReelsV2Transformer3DModel,
            "vae": AutoencoderKLWan,
        },
        schedulers=(UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler),
    )

    def _take(self, *, regions: int = 1, region_width: int | None = None) -> None:
        """``regions`` people stand side by side, each in a window ``region_width`` pixels wide (as wide as the frame
        is high, if None) under a prompt of its own (:mod:`facelock.blueprint.regions`)."""
        self._region_count, self._region_width = regions, region_width

    @cached_property
    def _regions(self) -> Regions:
        """Where the people stand, in latents."""
        width = self.size[1] if self._region_count == 1 else self._region_width or self.size[0]
        return Regions.across(
            self._region_count, *(side // self._scales()[1] for side in (self.size[1], width))
        )

    def _texts(self, prompt: str) -> list[Tensor]:
        """Text states of each region's prompt."""
        return [self._embed(part) for part in shares(prompt, self._region_count)]

    def _denoise(self, texts: Sequence[Tensor], past: Tensor | None, seed: int) -> Tensor:
        """Clean latents of one window, (1, z, F, h, w) float32, the first of them ``past``."""
        generator = torch.Generator("cpu").manual_seed(seed)
        latents = self._noise(self._latent_shape(), generator)
        known = 0
        if past is not None:
            known = past.shape[2]
            latents[:, :, :known] = past
        scheduler = self._fresh_scheduler()
        for index, timestep in enumerate(scheduler.timesteps):
            noisy, levels = self._window_input(latents, timestep, known, generator)
            predicted = self._predicted(noisy, levels, texts)[:, :, known:]
            # in place, as published: the solver keeps a view of its last sample, so it is what it has become
            latents[:, :, known:] = self._advance(scheduler, predicted, latents, index, known)
        return latents

    def _window_input(
        self, latents: Tensor, timestep: Tensor, known: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The transformer's input: latents (1, z, F, h, w) and noise levels, (1, F) in 0..1000."""
        levels = timestep.long().expand(1, latents.shape[2]).clone()
        levels[:, :known] = round(1000 * self.context_noise)
        if known and self.context_noise:
            latents = latents.clone()
            past = latents[:, :, :known]
            past.lerp_(self._noise(past.shape, generator), self.context_noise)
        return latents, levels

    def _predicted(self, latents: Tensor, levels: Tensor, texts: Sequence[Tensor]) -> Tensor:
        """The guided prediction for the whole frame, (1, z, F, h, w) float32; ``texts`` holds each region's."""
        if len(texts) == 1:
            return self._predict(latents, levels, texts[0])
        return self._regions.blend(latents, lambda part, region: self._predict(part, levels, texts[region]))

    def _predict(self, latents: Tensor, levels: Tensor, texts: Tensor) -> Tensor:
        """The guided prediction, (1, z, F, h, w) float32; ``texts`` is (1 or 2, L, D), the prompt last."""
        return self._guided(texts, lambda some: self._forward(latents, levels, some))

    def _forward(self, latents: Tensor, levels: Tensor, texts: Tensor) -> Tensor:
        """One pass of the transformer for every text, (N, z, F, h, w) float32."""
        dtype, count = self._transformer.patch_embedding.weight.dtype, len(texts)
        return self._transformer(
            hidden_states=latents.to(dtype).expand(count, -1, -1, -1, -1),
            timestep=levels.expand(count, -1),
            encoder_hidden_states=texts.to(dtype),
            enable_diffusion_forcing=True,
            fps=[0 if self.fps == 16 else 1] * count,
            return_dict=False,
        )[0].float()

    def _can_pair(self) -> bool:
        # diffusers 0.42 adds the frame-rate embedding in a shape that only fits a batch of one
        return not self._transformer.config.inject_sample_info
