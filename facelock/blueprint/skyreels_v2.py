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

import copy
import html
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ftfy
import torch
from torch import Tensor

from facelock.blueprint.skyreels_checkpoint import device_errors, load_checkpoint
from facelock.blueprint.wan_vae_cpu import accelerate_vae
from facelock.blueprint.x0_edit import steered
from facelock.errors import ConfigError, FaceLockError, InputError, ModelError
from facelock.protocols import Guide
from facelock.types import Identity

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LONGEST_TEXT = 512
"""Tokens of a prompt that the published checkpoints were trained with; a tokenizer may ask for fewer."""
REMEMBERED_PROMPTS = 64


class _NotFiniteError(FaceLockError):
    """A denoising step gave NaN or infinity."""


class SkyReelsV2:
    """A :class:`facelock.protocols.Backbone` over the parts of one checkpoint folder."""

    def __init__(
        self,
        folder: str | Path,
        *,
        size: tuple[int, int],
        fps: float,
        window: int,
        context: int,
        steps: int = 8,
        guidance_scale: float = 3.0,
        flow_shift: float | None = None,
        negative_prompt: str = "",
        context_noise: float = 0.0,
        device: str | torch.device = "cpu",
        precision: str = "float32",
        on_step: Callable[[int, int], None] | None = None,
        guide: Guide | None = None,
    ) -> None:
        """Load the checkpoint.

        ``size`` is (height, width) in pixels; ``window`` frames are denoised at once, ``context`` of them the
        past. ``guidance_scale`` up to 1 means no guidance. ``flow_shift`` replaces the scheduler's own.
        ``context_noise`` in [0, 0.06] is the share of noise mixed into the past, which smooths long clips
        (SkyReels' ``addnoise_condition`` / 1000). ``precision`` is of text encoder and transformer.
        ``on_step(done, steps)`` is called after every denoising step, and may raise to stop. ``guide`` may edit
        what each step predicts; without one, nothing is computed for it.

        Raises ``ModelError``, ``DeviceError``, and ``ConfigError`` for sizes that the checkpoint cannot do.
        """
        self.size, self.fps, self.window, self.context = (
            (int(size[0]), int(size[1])),
            float(fps),
            window,
            context,
        )
        self.steps, self.guidance_scale, self.negative_prompt = steps, guidance_scale, negative_prompt
        self.context_noise, self.on_step, self.guide = context_noise, on_step, guide
        self.device = torch.device(device)
        parts = load_checkpoint(Path(folder), device=self.device, dtype=_dtype(precision, self.device))
        self._tokenizer, self._text_encoder = parts.tokenizer, parts.text_encoder
        self._transformer, self._vae = parts.transformer, parts.vae
        self._scheduler = _scheduler(parts.scheduler, flow_shift)
        self._check_settings(str(folder))
        if self.device.type == "cpu":
            accelerate_vae(self._vae)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in self._latent_statistics())
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        self._prompts: dict[str, Tensor] = {}
        # diffusers 0.42 adds the frame-rate embedding in a shape that only fits a batch of one
        self._pair_guidance = not self._transformer.config.inject_sample_info

    @property
    def chunk(self) -> int:
        """New frames of every call with a context."""
        return self.window - self.context

    @property
    def first_chunk(self) -> int:
        """New frames of the first call."""
        return self.window

    def extend(
        self, prompt: str, context: Tensor | None, *, seed: int, references: Sequence[Identity] = ()
    ) -> Tensor:
        """Return the next frames, (T, 3, H, W) float32 in [0, 1] on the CPU.

        T is ``first_chunk`` without a context, else ``chunk``. ``context`` is the clip's last ``context``
        frames, (context, 3, H, W) in [0, 1]. The same arguments give the same bytes on the same device.
        ``references`` are for the guide, where there is one: the checkpoint takes no identities, the lock gives them.

        Raises ``InputError`` for a context of another shape, ``DeviceError`` when memory runs out, and
        ``FaceLockError`` naming the step where the latents stopped being finite, also in float32.
        """
        self._check_context(context)
        if self.guide is not None:
            self.guide.begin(references)
        with torch.no_grad(), device_errors(str(self.device)):
            past = None if context is None else self._encode(context)
            latents = self._sample(self._embed(prompt), past, seed)
            frames = self._decode(latents)
        return frames[0 if context is None else self.context :].contiguous()

    def reconstruct(self, frames: Tensor) -> Tensor:
        """What the checkpoint's autoencoder leaves of (T, 3, H, W) frames in [0, 1]: of the same shape.

        T must be 1 more than a multiple of the frames per latent. For benchmarks: the compression alone.
        """
        with torch.no_grad(), device_errors(str(self.device)):
            return self._decode(self._encode(frames))

    # ------------------------------------------------------------------ denoising

    def _sample(self, texts: Tensor, past: Tensor | None, seed: int) -> Tensor:
        """Denoise one window; when a step is not finite, once more in float32."""
        try:
            return self._denoise(texts, past, seed)
        except _NotFiniteError as error:
            logger.warning("%s Trying this chunk once more in float32.", error)
        with _in_float32(self._transformer):
            return self._denoise(texts, past, seed)

    def _denoise(self, texts: Tensor, past: Tensor | None, seed: int) -> Tensor:
        """Clean latents of one window, (1, z, F, h, w) float32, the first of them ``past``."""
        generator = torch.Generator("cpu").manual_seed(seed)
        latents = self._noise(self._latent_shape(), generator)
        known = 0
        if past is not None:
            known = past.shape[2]
            latents[:, :, :known] = past
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(self.steps, device=self.device)
        for index, timestep in enumerate(scheduler.timesteps):
            noisy, levels = self._window_input(latents, timestep, known, generator)
            velocity = self._predict(noisy, levels, texts)[:, :, known:]
            if self.guide is not None:
                velocity = steered(self.guide, velocity, latents, scheduler.sigmas[index], index, known)
            # one step for all new latents: the solver's state is the same for each
            new = scheduler.step(velocity, timestep, latents[:, :, known:], return_dict=False)[0]
            if not torch.isfinite(new).all():
                raise _NotFiniteError(
                    f"The blueprint's latents are not finite after denoising step {index + 1} of "
                    f"{self.steps}. Try another seed or a higher precision."
                )
            latents[:, :, known:] = new
            if self.on_step:
                self.on_step(index + 1, self.steps)
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

    def _noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Drawn on the CPU, so that a seed means the same on every device."""
        return torch.randn(tuple(shape), generator=generator).to(self.device)

    def _predict(self, latents: Tensor, levels: Tensor, texts: Tensor) -> Tensor:
        """The guided velocity, (1, z, F, h, w) float32; ``texts`` is (1 or 2, L, D), the prompt last."""
        if len(texts) == 1:
            return self._forward(latents, levels, texts)
        if self._pair_guidance:
            try:
                without, given = self._forward(latents, levels, texts).chunk(2)
                return without + self.guidance_scale * (given - without)
            except torch.OutOfMemoryError:
                logger.warning("Memory is short: guidance goes on in two passes, which is slower.")
                self._pair_guidance = False
                torch.cuda.empty_cache()
        without, given = (self._forward(latents, levels, text) for text in texts.split(1))
        return without + self.guidance_scale * (given - without)

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
        tokens = self._tokenizer(_clean(text), truncation=True, max_length=length, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        states = self._text_encoder(ids, mask).last_hidden_state
        if not torch.isfinite(states).all():
            raise FaceLockError("The text encoder's output is not finite. Choose a higher precision.")
        return torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))

    # ------------------------------------------------------------------ pictures and latents

    def _encode(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) in [0, 1] → normalised latents, (1, z, F, h, w)."""
        video = frames.to(self.device, torch.float32).transpose(0, 1)[None] * 2 - 1
        return (self._vae.encode(video).latent_dist.mode() - self._mean) / self._std

    def _decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (1, z, F, h, w) → (T, 3, H, W) in [0, 1] on the CPU."""
        latents = latents * self._std + self._mean
        try:
            video = self._vae.decode(latents, return_dict=False)[0]
        except torch.OutOfMemoryError:
            logger.warning("Memory is short: the VAE goes on in tiles, which may show faint seams.")
            torch.cuda.empty_cache()
            self._vae.enable_tiling()
            video = self._vae.decode(latents, return_dict=False)[0]
        if not torch.isfinite(video).all():
            raise FaceLockError("The blueprint's VAE gave values that are not finite. Try another seed.")
        return (video[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1).cpu()

    def _latent_shape(self) -> tuple[int, int, int, int, int]:
        time, space = self._scales()
        height, width = (side // space for side in self.size)
        return 1, self._vae.config.z_dim, (self.window - 1) // time + 1, height, width

    def _scales(self) -> tuple[int, int]:
        """Frames per latent, pixels per latent."""
        halvings = self._vae.config.temperal_downsample
        return 2 ** sum(halvings), 2 ** len(halvings)

    def _latent_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        return self._vae.config.latents_mean, self._vae.config.latents_std

    # ------------------------------------------------------------------ checks

    def _check_context(self, context: Tensor | None) -> None:
        expected = (self.context, 3, *self.size)
        if context is not None and tuple(context.shape) != expected:
            raise InputError(f"The context is {tuple(context.shape)}. Give the last frames as {expected}.")
        if context is not None and not torch.isfinite(context).all():
            raise InputError("The context holds values that are not finite. Give frames in [0, 1].")

    def _check_settings(self, folder: str) -> None:
        """Refuse what this checkpoint cannot do, each with the numbers that would fit."""
        time, space = self._scales()
        network = self._transformer.config
        depth, patch, _ = network.patch_size
        channels = self._vae.config.z_dim
        if network.in_channels != channels or depth != 1:
            raise ModelError(
                f"{folder}: the transformer takes {network.in_channels} channels and patches {depth} latents "
                f"deep, the VAE makes {channels} channels. Use a text-to-video model."
            )
        for name, frames in (("window", self.window), ("context", self.context)):
            _require(
                frames >= 1 and frames % time == 1 % time, f"{name} = {frames}", f"n * {time} + 1 frames"
            )
            latents = (frames - 1) // time + 1
            block = network.num_frame_per_block
            _require(
                latents % block == 0, f"{name} = {frames}", f"a multiple of {block} latents ({latents} now)"
            )
        _require(
            self.context < self.window, f"context = {self.context}", f"less than the window, {self.window}"
        )
        step = space * patch
        _require(
            min(self.size) > 0 and not any(s % step for s in self.size), f"size = {self.size}", f"n * {step}"
        )
        largest = max(self._latent_shape()[2:])
        longest = int(network.rope_max_seq_len)
        _require(largest <= longest, f"{largest} latents along one axis", f"at most {longest}")
        _require(self.steps >= 1, f"steps = {self.steps}", "1 or more")
        _require(
            0 <= self.context_noise <= 0.06, f"context_noise = {self.context_noise}", "between 0 and 0.06"
        )


def _require(holds: bool, found: str, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"The blueprint cannot work with {found}. Give {allowed} in the recipe.")


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision not in PRECISIONS:
        raise ConfigError(f"No precision is called {precision!r}. Give one of: {', '.join(PRECISIONS)}.")
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("float16 takes hours on a CPU. Give float32 or bfloat16 as the recipe's precision.")
    return PRECISIONS[precision]


def _scheduler(scheduler: Any, flow_shift: float | None) -> Any:
    """The checkpoint's scheduler, shifted otherwise if asked."""
    if getattr(scheduler.config, "use_dynamic_shifting", False):
        raise ModelError("The blueprint's scheduler shifts by picture size. Use one with a fixed flow_shift.")
    if flow_shift is None:
        return scheduler
    key = "flow_shift" if "flow_shift" in scheduler.config else "shift"
    return type(scheduler).from_config(scheduler.config, **{key: flow_shift})


def _clean(text: str) -> str:
    """Mend encoding, resolve HTML entities, collapse white space: what the text encoders were trained on."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@contextmanager
def _in_float32(network: torch.nn.Module) -> Iterator[None]:
    """Hold all parameters in float32 for a while; each returns to its own type without loss."""
    kept = [(parameter, parameter.dtype) for parameter in network.parameters()]
    for parameter, _ in kept:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in kept:
            parameter.data = parameter.data.to(dtype)
