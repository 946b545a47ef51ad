"""Stage 1 by an LTX-2 checkpoint: prompt and locked tail in, the next frames and their sound out.

::

    backbone = LTX2(folder, size=(512, 768), fps=24, window=121, context=9, steps=30, guidance_scale=3.0)
    frames, sound = backbone.extend_with_sound("a woman talking", None, seed=1)       # (121, 3, 512, 768)
    frames, sound = backbone.extend_with_sound("a woman talking", frames[-9:], seed=2)  # (112, 3, 512, 768)

diffusers' own ``LTX2InContextPipeline`` does the sampling (HaCohen et al. 2026, "LTX-2: Efficient Joint Audio-Visual
Foundation Model"). The locked tail is a video condition at latent 0: its tokens stay clean while the others are
denoised. Where the recipe asks for it, each character's best picture is an in-context reference: its tokens are
appended and attended to, never shown. That needs a checkpoint that was trained for it (an IC-LoRA, merged).

Pictures and sound are denoised together, so mouth and voice of one chunk belong together. The past goes in as
pictures only: nothing conditions a chunk's sound on the sound before it. Each chunk therefore also writes the sound
of its context frames, and the end of that (:data:`FADE` seconds) is the lead that the clip fades over to. A voice or
a melody may change at such a border; ambience does not click. The pipeline's own sound is up to 3 mel frames and a
rounding shorter than its pictures: one or two latents more are asked for and the sound is cut to the sample.

Shapes: F latent frames of a window, h w their size, z channels, L text tokens.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2InContextPipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from torch import Tensor
from torch.nn import functional
from transformers import Gemma3ForConditionalGeneration

from facelock.blueprint.base import LoadedBackbone
from facelock.blueprint.checkpoint import Checkpoint, Layout
from facelock.blueprint.common import check_context, clean_text, decoded, denoised, tell_cut
from facelock.blueprint.published import sampler, watched
from facelock.blueprint.x0_edit import guided
from facelock.errors import NotFiniteError
from facelock.protocols import Guide
from facelock.types import Identity, Sound

logger = logging.getLogger(__name__)

FADE = 0.05
"""Seconds of a chunk's lead: long enough to hide a border, short enough to hear no two voices."""
LONGEST_TEXT = 1024
"""Tokens of a prompt that the published checkpoints were trained with."""
REMEMBERED_PROMPTS = 4
"""Each is some hundred MiB: all 49 layers of a 12B text encoder."""
GREY = 0.5


class _Vocoder:
    """Reads either of the two vocoders: the published checkpoints up to LTX-2.0 have one, later ones the other."""

    @staticmethod
    def from_pretrained(folder: Path, **options: Any) -> Any:
        kinds = {kind.__name__: kind for kind in (LTX2Vocoder, LTX2VocoderWithBWE)}
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
        if named not in kinds:
            raise ValueError(f"its class is none of {', '.join(kinds)}")
        return kinds[named].from_pretrained(folder, **options)


class LTX2(LoadedBackbone):
    """A :class:`facelock.protocols.SpeakingBackbone` over the parts of one checkpoint folder.

    ``context_noise`` in [0, 0.5] is the share of every step's noise that the past gets (1 - the condition's strength).
    """

    layout = Layout(
        kind="ltx2",
        networks={
            "text_encoder": Gemma3ForConditionalGeneration,
            "connectors": LTX2TextConnectors,
            "transformer": LTX2VideoTransformer3DModel,
            "vae": AutoencoderKLLTX2Video,
            "audio_vae": AutoencoderKLLTX2Audio,
            "vocoder": _Vocoder,
        },
        schedulers=(FlowMatchEulerDiscreteScheduler,),
        float32=frozenset({"audio_vae", "vocoder"}),
    )

    def _take(
        self,
        *,
        audio_guidance_scale: float = 7.0,
        modality_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        stg_scale: float = 0.0,
        stg_block: int = 29,
        reference_strength: float = 0.0,
    ) -> None:
        """What :class:`facelock.blueprint.options.LTX2Options` describes."""
        self.reference_strength = reference_strength
        self._scales: dict[str, Any] = {
            "guidance_scale": self.guidance_scale,
            "audio_guidance_scale": audio_guidance_scale,
            "spatio_temporal_guidance_blocks": [stg_block] if stg_scale else None,
        } | _for_both(modality_scale=modality_scale, guidance_rescale=guidance_rescale, stg_scale=stg_scale)

    def _open(self, parts: Checkpoint, flow_shift: float | None) -> None:
        """Set up the pipeline over the loaded parts."""
        self._scheduler = parts.scheduler
        self._pipe = sampler(LTX2InContextPipeline, parts, self.device)
        self.sample_rate = int(self._pipe.vocoder.config.output_sampling_rate)
        """Samples per second of its sound."""
        self._prompts: dict[str, tuple[Tensor, Tensor]] = {}
        self._warned = False

    def extend(
        self, prompt: str, context: Tensor | None, *, seed: int, references: Sequence[Identity] = ()
    ) -> Tensor:
        """The frames of :meth:`extend_with_sound` alone."""
        return self.extend_with_sound(prompt, context, seed=seed, references=references)[0]

    def extend_with_sound(
        self, prompt: str, context: Tensor | None, *, seed: int, references: Sequence[Identity] = ()
    ) -> tuple[Tensor, Sound]:
        """Return the next frames, (T, 3, H, W) float32 in [0, 1] on the backbone's device, and what is heard with them.

        T is ``first_chunk`` without a context, else ``chunk``. ``context`` is the clip's last ``context`` frames,
        (context, 3, H, W) in [0, 1]. The sound is at least T frames long and has a lead where there is a context.
        The same arguments give the same bytes on the same device.

        Raises ``InputError`` for a context of another shape, ``DeviceError`` when memory runs out, and
        ``NotFiniteError`` where latents, pictures or sound stopped being finite, latents also in float32 if that can be
        tried.
        """
        check_context(context, self.context, self.size)
        known = 0 if context is None else self.context
        if self.guide is not None:
            self.guide.begin(references)
        with torch.no_grad(), self._working():
            texts, pictures = self._texts(prompt), self._pictures(references)
            latents, heard = denoised(
                lambda: self._denoise(texts, context, seed, pictures), self.modules, self._bound
            )
            frames = self._decode(latents)[known : self.window]
            return frames.contiguous(), self._sound(self._voice(heard), known)

    # ------------------------------------------------------------------ denoising

    def _denoise(
        self, texts: Mapping[str, Tensor], context: Tensor | None, seed: int, pictures: list[Any]
    ) -> tuple[Tensor, Tensor]:
        """Clean latents of one window: (1, z, F, h, w) of the pictures, (1, c, l, m) of the sound."""
        pipe, height, width = self._pipe, *self.size
        pipe.scheduler, pipe.audio_scheduler = (copy.deepcopy(self._scheduler) for _ in range(2))
        if self.guide is not None:
            pipe.scheduler = self._led(self.guide, 0 if context is None else self._latents(self.context))
        past = (
            [] if context is None else [LTX2VideoCondition(context * 255, 0, 1 - self.context_noise, crf=0)]
        )
        made = pipe(
            conditions=past or None,
            reference_conditions=pictures or None,
            height=height,
            width=width,
            num_frames=self._asked(),
            frame_rate=self.fps,
            num_inference_steps=self.steps,
            generator=torch.Generator("cpu").manual_seed(seed),
            audio_latents=self._silence(),
            use_cross_timestep=bool(pipe.transformer.prompt_modulation),  # LTX-2.3's, which LTX-2.0 has not
            output_type="latent",
            callback_on_step_end=watched(self.steps, self.on_step),
            **texts,
            **self._scales,
        )
        return made.frames, made.audio

    def _led(self, guide: Guide, known: int) -> Any:
        """A scheduler whose every step ``guide`` edits; ``known`` latents of F are past."""
        pipe = self._pipe
        space = pipe.vae_spatial_compression_ratio
        shape = (self._latents(self._asked()), *(side // space for side in self.size))
        tokens = math.prod(shape)

        def edit(x0: Tensor, sigma: float, step: int) -> Tensor:
            """Of (1, tokens of the frames, then those of references; z) the frames'."""
            seen = guide(pipe._unpack_latents(x0[:, :tokens], *shape), sigma, step, known)
            return torch.cat([pipe._pack_latents(seen), x0[:, tokens:]], 1)

        scheduler = guided(type(self._scheduler)).from_config(self._scheduler.config)
        scheduler.hook = edit
        return scheduler

    def _silence(self) -> Tensor:
        """(1, c, l, m) zeros in place of which the pipeline draws noise: so many that the sound covers the window."""
        config = self._pipe.audio_vae.config
        mels = math.floor(self.window / self.fps * config.sample_rate / config.mel_hop_length) + 1
        ratio = self._pipe.audio_vae_temporal_compression_ratio
        length = math.ceil((mels + ratio - 1) / ratio)  # the causal decoder leaves ratio - 1 mel frames out
        bins = config.mel_bins // self._pipe.audio_vae_mel_compression_ratio
        return torch.zeros(1, config.latent_channels, length, bins, device=self.device)

    def _latents(self, frames: int) -> int:
        """Latents that hold so many frames."""
        return int(-(-(frames - 1) // self._pipe.vae_temporal_compression_ratio) + 1)

    def _asked(self) -> int:
        """Frames to ask for: the window, or the next count that fills whole latents."""
        return (self._latents(self.window) - 1) * int(self._pipe.vae_temporal_compression_ratio) + 1

    # ------------------------------------------------------------------ text and references

    def _texts(self, prompt: str) -> dict[str, Tensor]:
        """What the pipeline takes in place of the prompts."""
        given, mask = self._text(prompt)
        texts = {"prompt_embeds": given, "prompt_attention_mask": mask}
        if max(self._scales["guidance_scale"], self._scales["audio_guidance_scale"]) > 1:
            without, mask = self._text(self.negative_prompt)
            texts |= {"negative_prompt_embeds": without, "negative_prompt_attention_mask": mask}
        return {name: value.to(self.device) for name, value in texts.items()}

    def _text(self, text: str) -> tuple[Tensor, Tensor]:
        """(1, L, D · layers) states and (1, L) mask, on the CPU; remembered, as a clip asks chunk after chunk."""
        if text not in self._prompts:
            while len(self._prompts) >= REMEMBERED_PROMPTS:
                self._prompts.pop(next(iter(self._prompts)))
            length = min(LONGEST_TEXT, int(self._pipe.tokenizer_max_length))
            tell_cut(self._pipe.tokenizer, clean_text(text), length)
            states, mask, _, _ = self._pipe.encode_prompt(
                clean_text(text), do_classifier_free_guidance=False, max_sequence_length=length
            )
            if not torch.isfinite(states).all():
                raise NotFiniteError("The text encoder's output is not finite. Choose a higher precision.")
            self._prompts[text] = states.cpu(), mask.cpu()
        return self._prompts[text]

    def _pictures(self, references: Sequence[Identity]) -> list[Any]:
        """An in-context reference per character that has a picture, where the recipe asks for them."""
        if not self.reference_strength:
            return []
        bare = [identity.name for identity in references if identity.crops is None]
        if bare and not self._warned:
            logger.warning("No picture is kept of %s: the blueprint goes by the prompt.", ", ".join(bare))
            self._warned = True
        return [
            LTX2ReferenceCondition(framed(identity.crops[0], self.size)[None], self.reference_strength)
            for identity in references
            if identity.crops is not None
        ]

    # ------------------------------------------------------------------ pictures and sound

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents (1, z, F, h, w) as the pipeline returns them → (T, 3, H, W) in [0, 1]."""
        vae = self._pipe.vae
        latents = latents.to(vae.dtype)
        level = (
            torch.zeros(1, device=latents.device, dtype=vae.dtype)
            if vae.config.timestep_conditioning
            else None
        )
        return decoded(vae, lambda: vae.decode(latents, level, return_dict=False)[0])

    def _voice(self, latents: Tensor) -> Tensor:
        """Sound latents (1, c, l, m) → the whole window's (C, n) float32 in [-1, 1] on the CPU."""
        spectrogram = self._pipe.audio_vae.decode(latents.float(), return_dict=False)[0]
        heard = self._pipe.vocoder(spectrogram)[0].float()
        if not torch.isfinite(heard).all():
            raise NotFiniteError("The blueprint's sound holds values that are not finite. Try another seed.")
        return heard.clamp(-1, 1).cpu()

    def _sound(self, heard: Tensor, known: int) -> Sound:
        """Of the window's sound what belongs to the frames after the first ``known``, with a lead."""
        begin = round(known / self.fps * self.sample_rate)
        lead = min(begin, round(FADE * self.sample_rate))
        return Sound(heard[:, begin - lead :].contiguous(), self.sample_rate, lead)


def _for_both(**settings: Any) -> dict[str, Any]:
    """The pipeline's keywords for the same settings of pictures and of sound."""
    return settings | {f"audio_{name}": value for name, value in settings.items()}


def framed(crop: Tensor, size: tuple[int, int]) -> Tensor:
    """A square picture (3, S, S) in the middle of a grey one of ``size`` (height, width), as large as it fits."""
    height, width = size
    side = min(size)
    inner = functional.interpolate(crop[None].float(), (side, side), mode="bicubic", antialias=True)[0]
    picture = torch.full((3, height, width), GREY)
    top, left = (height - side) // 2, (width - side) // 2
    picture[:, top : top + side, left : left + side] = inner.clamp(0, 1).cpu()
    return picture
