"""Stage 1 by a Wan VACE checkpoint: prompt, pictures of the characters and locked tail in, the next frames out.

::

    backbone = WanVace(folder, size=(480, 832), fps=16, window=81, context=17, steps=30, guidance_scale=5.0)
    first = backbone.extend("a woman talking", None, seed=1, references=[maria])          # (81, 3, 480, 832)
    more = backbone.extend("a woman talking", first[-17:], seed=2, references=[maria])    # (64, 3, 480, 832)

VACE (Jiang et al. 2025, "VACE: All-in-One Video Creation and Editing") steers Wan by a second branch that sees a
video, a mask of what is to be made (1) and to be kept (0), and reference pictures, each of them a latent frame in
front of the video. A clip is continued by masking: the locked tail is given and kept, the rest is grey and made. The
branch only steers, so the kept frames come out slightly changed; they are dropped. This reproduces diffusers'
``WanVACEPipeline`` for Wan 2.1 (one transformer) and 2.2 (two: one for the noisy steps, one for the others).

The autoencoder writes 1 + 4·n frames. Other windows are asked for rounded up, and cut to what was asked.

Shapes: R reference pictures, F latent frames of the window, h w their size, z channels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanVACETransformer3DModel,
)
from torch import Tensor
from torch.nn import functional
from transformers import UMT5EncoderModel

from facelock.blueprint.checkpoint import Layout
from facelock.blueprint.wan_base import WanBackbone
from facelock.types import Identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Control:
    """What the control branch sees."""

    latents: Tensor
    """(1, 2·z + 64, R + F, h, w): kept and remade part of the video, and the mask, 8 × 8 pixels to a latent."""
    pictures: int
    """R, the reference pictures in front."""


class WanVace(WanBackbone):
    """A :class:`facelock.protocols.Backbone` over the parts of one checkpoint folder."""

    layout = Layout(
        kind="wan_vace",
        networks={
            "text_encoder": UMT5EncoderModel,
            "transformer": WanVACETransformer3DModel,
            "transformer_2": WanVACETransformer3DModel,
            "vae": AutoencoderKLWan,
        },
        schedulers=(UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler),
        optional=frozenset({"transformer", "transformer_2"}),
    )

    def _take(
        self,
        *,
        conditioning_scale: float = 1.0,
        reference_pictures: int = 1,
        guidance_scale_2: float | None = None,
    ) -> None:
        """What :class:`facelock.blueprint.options.WanVaceOptions` describes."""
        self.conditioning_scale, self.reference_pictures = conditioning_scale, reference_pictures
        self.guidance_scale_2 = guidance_scale_2
        self._without_pictures: set[str] = set()
        self._grey: Tensor | None = None

    @cached_property
    def _boundary(self) -> float | None:
        """The timestep below which the second transformer takes over; None where there is one."""
        ratio = self._index.get("boundary_ratio")
        return None if ratio is None else float(ratio) * int(self._scheduler.config.num_train_timesteps)

    # ------------------------------------------------------------------ past and references

    def _condition(self, context: Tensor | None, references: Sequence[Identity]) -> Control:
        """The locked tail and the characters' pictures, as ``WanVACEPipeline`` encodes them."""
        pictures = self._pictures(references)
        grey = self._grey_latents()
        kept = grey if context is None else self._encode_video(self._video(context))
        video = torch.cat([kept, grey], dim=1)
        mask = self._mask(0 if context is None else self.context)
        for picture in pictures:  # each goes in front of those before it
            seen = self._encode_video(picture[None, :, None])
            video = torch.cat([torch.cat([seen, torch.zeros_like(seen)], dim=1), video], dim=2)
        mask = functional.pad(mask, (0, 0, 0, 0, len(pictures), 0))
        return Control(torch.cat([video, mask], dim=1), len(pictures))

    def _frames(self) -> int:
        """Frames of the window as the autoencoder writes them: 1 more than a multiple of 4."""
        return (self._latent_shape()[2] - 1) * self._scales()[0] + 1

    def _video(self, context: Tensor | None) -> Tensor:
        """The locked tail and, for what is to be made, grey: (1, 3, T, H, W) in [-1, 1]."""
        video = torch.zeros(1, 3, self._frames(), *self.size, device=self.device)
        if context is not None:
            video[0, :, : self.context] = context.to(self.device).transpose(0, 1) * 2 - 1
        return video

    def _grey_latents(self) -> Tensor:
        """(1, z, F, h, w) of a video that is all to be made; always the same, so it is encoded once."""
        if self._grey is None:
            self._grey = self._encode_video(self._video(None))
        return self._grey

    def _mask(self, context: int) -> Tensor:
        """(1, 64, F, h, w): 0 where the first ``context`` frames are kept, 1 where frames are made."""
        _, _, latents, height, width = self._latent_shape()
        frames = torch.ones(1, 1, self._frames(), device=self.device)
        frames[..., :context] = 0
        steps = functional.interpolate(frames, latents, mode="nearest-exact")
        return steps[..., None, None].expand(1, self._scales()[1] ** 2, latents, height, width)

    def _pictures(self, references: Sequence[Identity]) -> list[Tensor]:
        """(3, H, W) in [-1, 1] each: the characters' best pictures, whole, on white."""
        pictures = []
        for identity in references if self.reference_pictures else ():
            if identity.crops is None:
                self._say_without_pictures(identity.name)
                continue
            pictures += [self._on_white(crop) for crop in identity.crops[: self.reference_pictures]]
        return pictures

    def _say_without_pictures(self, name: str) -> None:
        if name not in self._without_pictures:
            self._without_pictures.add(name)
            logger.warning(
                "%s has no pictures, so the blueprint is shown none: the lock alone gives the face.", name
            )

    def _on_white(self, crop: Tensor) -> Tensor:
        """(3, S, S) in [0, 1] → (3, H, W) in [-1, 1], as large as it fits."""
        picture = crop.to(self.device, torch.float32)[None] * 2 - 1
        scale = min(side / own for side, own in zip(self.size, picture.shape[-2:], strict=True))
        height, width = (int(own * scale) for own in picture.shape[-2:])
        resized = functional.interpolate(picture, (height, width), mode="bilinear", align_corners=False)
        top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
        canvas = torch.ones(3, *self.size, device=self.device)
        canvas[:, top : top + height, left : left + width] = resized[0]
        return canvas

    # ------------------------------------------------------------------ denoising

    def _denoise(self, texts: Tensor, past: Control, seed: int) -> Tensor:
        """Clean latents of one window, (1, z, F, h, w) float32."""
        generator = torch.Generator("cpu").manual_seed(seed)
        _, channels, frames, height, width = self._latent_shape()
        latents = self._noise((1, channels, past.pictures + frames, height, width), generator)
        scheduler = self._fresh_scheduler()
        for index, timestep in enumerate(scheduler.timesteps):
            velocity = self._predict(latents, timestep, texts, past.latents)
            latents = self._advance(scheduler, velocity, latents, index, skip=past.pictures)
        return latents[:, :, past.pictures :]

    def _predict(self, latents: Tensor, timestep: Tensor, texts: Tensor, control: Tensor) -> Tensor:
        """The guided velocity, (1, z, R + F, h, w) float32, by the transformer whose step it is."""
        network, scale = self._transformer, self.guidance_scale
        if self._boundary is not None and timestep < self._boundary:
            network = self.modules["transformer_2"]
            scale = scale if self.guidance_scale_2 is None else self.guidance_scale_2
        return self._guided(
            texts, lambda some: self._forward(network, latents, timestep, some, control), scale
        )

    def _forward(
        self, network: Any, latents: Tensor, timestep: Tensor, texts: Tensor, control: Tensor
    ) -> Tensor:
        """One pass of a transformer for every text, (N, z, R + F, h, w) float32."""
        dtype, count = network.patch_embedding.weight.dtype, len(texts)
        weights = [self.conditioning_scale] * len(network.config.vace_layers)
        return network(  # type: ignore[no-any-return]
            hidden_states=latents.to(dtype).expand(count, -1, -1, -1, -1),
            timestep=timestep.expand(count),
            encoder_hidden_states=texts.to(dtype),
            control_hidden_states=control.to(dtype).expand(count, -1, -1, -1, -1),
            control_hidden_states_scale=torch.tensor(weights, dtype=dtype, device=self.device),
            return_dict=False,
        )[0].float()
