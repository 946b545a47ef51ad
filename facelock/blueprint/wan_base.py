"""What the backbones of the Wan family share: their text encoder, their video autoencoder, and one sampling step.

::

    class Mine(WanBackbone):
        layout = Layout(...)

        def _denoise(self, texts, past, seed): ...      # clean latents, (1, z, F, h, w)

SkyReels-V2, Wan VACE and Helios all read prompts with UMT5, compress frames with ``AutoencoderKLWan`` and predict
the velocity of a rectified flow (x_σ = (1 - σ)·x₀ + σ·noise). What they differ in is how the past comes in. Every
call is a function of its arguments alone: schedulers hold state, so each call gets a fresh copy, and noise is drawn
on the CPU from the chunk's own seed.

Shapes: F latent frames of a window, h w their size, z channels, L text tokens.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from facelock.blueprint.base import LoadedBackbone
from facelock.blueprint.checkpoint import Checkpoint
from facelock.blueprint.common import check_context, clean_text, decoded, denoised, tell_cut
from facelock.blueprint.fits import wan_scales
from facelock.blueprint.wan_vae_cpu import accelerate_vae
from facelock.blueprint.x0_edit import steered
from facelock.errors import ModelError, NotFiniteError
from facelock.types import Identity

logger = logging.getLogger(__name__)

LONGEST_TEXT = 512
"""Tokens of a prompt that the published checkpoints were trained with; a tokenizer may ask for fewer."""
REMEMBERED_PROMPTS = 64


class WanBackbone(LoadedBackbone):
    """Base of the Wan family's :class:`facelock.protocols.Backbone`."""

    def _open(self, parts: Checkpoint, flow_shift: float | None) -> None:
        self._index, self._tokenizer = parts.index, parts.tokenizer
        self._text_encoder, self._vae = (self._network(name) for name in ("text_encoder", "vae"))
        self._transformer = self._network("transformer", "transformer_2")
        config = self._vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        self._prompts: dict[str, Tensor] = {}
        self._says_clean = parts.scheduler.config.get("prediction_type") == "sample"
        self._scheduler = self._shifted(parts.scheduler, flow_shift)
        if self.device.type == "cpu" and not self._reference:
            accelerate_vae(self._vae)
        self._pair_guidance = self._pair_guidance and self._can_pair()

    def _network(self, *names: str) -> Any:
        """The first of the networks ``names`` that the checkpoint has."""
        found = next((self.modules[name] for name in names if name in self.modules), None)
        if found is None:
            raise ModelError(
                f"{self._folder} holds no {' and no '.join(names)}. Pull or export the model again."
            )
        return found

    def extend(
        self, prompt: str, context: Tensor | None, *, seed: int, references: Sequence[Identity] = ()
    ) -> Tensor:
        """Return the next frames, (T, 3, H, W) float32 in [0, 1] on the backbone's device.

        T is ``first_chunk`` without a context, else ``chunk``. ``context`` is the clip's last ``context``
        frames, (context, 3, H, W) in [0, 1]. The same arguments give the same bytes on the same device.

        Raises ``InputError`` for a context of another shape, ``DeviceError`` when memory runs out, and
        ``NotFiniteError`` naming the step where the latents stopped being finite, also in float32 if that can be tried.
        """
        check_context(context, self.context, self.size)
        if self.guide is not None:
            self.guide.begin(references)
        with torch.no_grad(), self._working():
            past = self._condition(context, references)
            texts = self._texts(prompt)
            latents = denoised(lambda: self._denoise(texts, past, seed), self.modules, self._bound)
            frames = self._decode(latents)
        return self._new(frames, context).contiguous()

    def reconstruct(self, frames: Tensor) -> Tensor:
        """What the checkpoint's autoencoder leaves of (T, 3, H, W) frames in [0, 1]: of the same shape.

        T must be 1 more than a multiple of the frames per latent. For benchmarks: the compression alone.
        """
        with torch.no_grad(), self._working():
            return self._decode(self._encode(frames))

    # ------------------------------------------------------------------ what a kind may change

    def _condition(self, context: Tensor | None, references: Sequence[Identity]) -> Any:
        """What the past and the references become for the transformer: the past's latents, if there is one."""
        return None if context is None else self._encode(context)

    def _texts(self, prompt: str) -> Any:
        """What :meth:`_denoise` needs of the prompt: its text states."""
        return self._embed(prompt)

    def _denoise(self, texts: Any, past: Any, seed: int) -> Tensor:
        """Clean latents of one window, (1, z, F, h, w) float32; ``past`` is what :meth:`_condition` returned."""
        raise NotImplementedError

    def _new(self, frames: Tensor, context: Tensor | None) -> Tensor:
        """Of the decoded window, what is new and was asked for."""
        return frames[0 if context is None else self.context : self.window]

    def _can_pair(self) -> bool:
        """Whether both halves of classifier-free guidance may share one forward pass, until memory is short."""
        return True

    def _shifted(self, scheduler: Any, flow_shift: float | None) -> Any:
        """The checkpoint's scheduler, shifted otherwise if asked, and told of velocities (:meth:`_advance`)."""
        changes: dict[str, Any] = {}
        if flow_shift is not None:
            changes["flow_shift" if "flow_shift" in scheduler.config else "shift"] = flow_shift
        if self._says_clean:
            changes["prediction_type"] = "flow_prediction"
        return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler

    # ------------------------------------------------------------------ denoising

    def _noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Drawn on the CPU, so that a seed means the same on every device."""
        return torch.randn(tuple(shape), generator=generator).to(self.device)

    def _fresh_scheduler(self, **options: Any) -> Any:
        """A copy of the scheduler, set to this recipe's steps: solvers remember what they stepped through."""
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(self.steps, device=self.device, **options)
        return scheduler

    def _advance(
        self,
        scheduler: Any,
        predicted: Tensor,
        latents: Tensor,
        step: int,
        known: int = 0,
        *,
        skip: int = 0,
        **options: Any,
    ) -> Tensor:
        """One step of the solver for (1, z, F, h, w) ``latents``: all but the first ``known``, (1, z, F - known, h, w).

        ``predicted`` is of that shape too: the velocity, or the clean latents where the checkpoint's scheduler says
        that its transformer predicts those. The guide sees none of the first ``skip`` latents, which are no frames.
        ``options`` go to the scheduler. Raises :class:`NotFiniteError`.
        """
        velocity = predicted
        if self._says_clean:
            velocity = (latents[:, :, known:] - predicted) / scheduler.sigmas[step]
        if self.guide is not None:
            shown, sigma = latents[:, :, skip:], scheduler.sigmas[step]
            led = steered(self.guide, velocity[:, :, skip:], shown, sigma, step, known)
            velocity = torch.cat([velocity[:, :, :skip], led], dim=2)
        # one step for all new latents: the solver's state is the same for each
        after: Tensor = scheduler.step(
            velocity, scheduler.timesteps[step], latents[:, :, known:], return_dict=False, **options
        )[0]
        if not torch.isfinite(after).all():
            raise NotFiniteError(
                f"The blueprint's latents are not finite after denoising step {step + 1} of "
                f"{self.steps}. Try another seed or a higher precision."
            )
        if self.on_step:
            self.on_step(step + 1, self.steps)
        return after

    def _guided(
        self, texts: Tensor, forward: Callable[[Tensor], Tensor], scale: float | None = None
    ) -> Tensor:
        """The velocity under classifier-free guidance, (1, z, F, h, w) float32.

        ``texts`` is (1 or 2, L, D), the prompt last; ``forward(texts)`` is one pass of the transformer for every
        text, (N, z, F, h, w). ``scale`` defaults to the recipe's.
        """
        if len(texts) == 1:
            return forward(texts)
        scale = self.guidance_scale if scale is None else scale
        if self._pair_guidance:
            try:
                without, given = forward(texts).chunk(2)
                return without + scale * (given - without)
            except torch.OutOfMemoryError:
                logger.warning("Memory is short: guidance goes on in two passes, which is slower.")
                self._pair_guidance = False
                torch.cuda.empty_cache()
        without, given = (forward(text) for text in texts.split(1))
        return without + scale * (given - without)

    # ------------------------------------------------------------------ text

    def _embed(self, prompt: str) -> Tensor:
        """Text states with the negative prompt first, or alone without guidance: (2 or 1, L, D)."""
        texts = [prompt] if self.guidance_scale <= 1 else [self.negative_prompt, prompt]
        return torch.cat([self._embed_text(text) for text in texts])

    def _embed_text(self, text: str) -> Tensor:
        """(1, L, D), zeros after the last token; remembered, because a clip asks for it chunk after chunk."""
        if text not in self._prompts:
            while len(self._prompts) >= REMEMBERED_PROMPTS:
                self._prompts.pop(next(iter(self._prompts)))
            self._prompts[text] = self._encode_text(text)
        return self._prompts[text]

    def _encode_text(self, text: str) -> Tensor:
        length = min(LONGEST_TEXT, int(self._tokenizer.model_max_length))
        tell_cut(self._tokenizer, clean_text(text), length)
        tokens = self._tokenizer(clean_text(text), truncation=True, max_length=length, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        states = self._text_encoder(ids, mask).last_hidden_state
        if not torch.isfinite(states).all():
            raise NotFiniteError("The text encoder's output is not finite. Choose a higher precision.")
        return torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))

    # ------------------------------------------------------------------ pictures and latents

    def _encode(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) in [0, 1] → normalised latents, (1, z, F, h, w)."""
        return self._encode_video(frames.to(self.device, torch.float32).transpose(0, 1)[None] * 2 - 1)

    def _encode_video(self, video: Tensor) -> Tensor:
        """(1, 3, T, H, W) in [-1, 1] → normalised latents, (1, z, F, h, w)."""
        return (self._vae.encode(video).latent_dist.mode() - self._mean) / self._std

    def _decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (1, z, F, h, w) → (T, 3, H, W) in [0, 1]."""
        latents = latents * self._std + self._mean
        return decoded(self._vae, lambda: self._vae.decode(latents, return_dict=False)[0])

    def _latent_shape(self) -> tuple[int, int, int, int, int]:
        time, space = self._scales()
        height, width = (side // space for side in self.size)
        return 1, self._vae.config.z_dim, -(-(self.window - 1) // time) + 1, height, width

    def _scales(self) -> tuple[int, int]:
        """Frames per latent, pixels per latent."""
        return wan_scales(self._vae.config)
