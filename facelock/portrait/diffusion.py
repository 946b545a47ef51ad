"""Image-to-image diffusion on canonical portrait crops under IP-Adapter FaceID.

The crop, encoded, gets as much noise as ``strength`` says (SDEdit, Meng et al. 2021, arXiv:2108.01073) and is denoised
by diffusers' own pipelines, told the identity embedding (IP-Adapter, Ye et al. 2023, arXiv:2308.06721). With a mask
only the face is denoised, by an inpainting UNet of nine channels or a plain one of four.

Every face gets the same noise, and batches have one fixed, padded size: what becomes of a face depends on its crop, its
identity and the strength, never on when it is seen or beside whom.

Shapes: N faces, S the crop's side in pixels, E the embedding's size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

import torch
from torch import Tensor

from facelock.errors import ConfigError, DeviceError, ModelError
from facelock.geometry import wide_crop
from facelock.portrait.adapter import dimension, read_adapter, require_encoder
from facelock.portrait.checkpoint import load_pipeline
from facelock.portrait.fits import crop_side
from facelock.precision import in_float32, resolve_dtype
from facelock.types import CropSpec
from facelock.weights import pretrained
from facelock.weights.pretrained import OutOfMemoryError, quiet

logger = logging.getLogger(__name__)

NOISE = 20231
"""Seed of the noise, the same for every face of every frame."""
CPU_ROWS = 1
"""Faces at once on a CPU: there more are no faster, and one alone has the same bits wherever it stands."""
OVAL = (1.35, 1.75)
"""Half width and half height of the face's oval, in units of the distance between the eyes."""
RAISED = 0.1
"""Units by which the oval's middle lies above the landmarks' middle: foreheads are higher than chins are low."""
FEATHER = 0.25
"""Share of the oval's radius over which the repainted face fades into the crop."""


@dataclass(frozen=True)
class PortraitSettings:
    """How a crop is repainted."""

    prompt: str = "a photo of a person's face, natural skin, sharp focus"
    negative_prompt: str = ""
    sampler: str = "ddim"
    """``ddim``, ``euler``, or ``lcm`` with a UNet that was distilled for it."""
    steps: int = 6
    """Denoising steps that are run, whatever the strength."""
    guidance_scale: float = 3.0
    """Classifier-free guidance; up to 1: none, at half the cost."""
    adapter_scale: float = 1.0
    """Share of the adapter's attention. At 0 its LoRA still acts: that is not the checkpoint alone."""
    precision: str = "float32"
    mask: str | None = None
    """``face``: only the face's oval is repainted, all other pixels keep their bits; None: the whole crop."""
    size: int | None = None
    """The crop's side in pixels; None: what the checkpoint was trained with (512 for SD 1.5, 1024 for SDXL)."""


class CoreOptions(TypedDict, total=False):
    """Keyword arguments of :class:`PortraitDiffusion`, which those who load one pass on."""

    adapter: Required[str | Path]
    encoder: Required[str]
    trained_with: str | None
    batch: int
    device: torch.device | str
    settings: PortraitSettings | None


class PortraitDiffusion:
    """One checkpoint with one FaceID adapter, loaded."""

    def __init__(
        self,
        folder: str | Path,
        *,
        adapter: str | Path,
        encoder: str,
        trained_with: str | None = None,
        batch: int = 4,
        device: torch.device | str = "cpu",
        settings: PortraitSettings | None = None,
    ) -> None:
        """Load the diffusers ``folder`` and the ``adapter`` file, and encode the prompt, once.

        ``encoder`` is the id of the recogniser whose embeddings will be given, ``trained_with`` the digest of the one
        the adapter knows (:func:`facelock.portrait.require_encoder`). ``batch`` faces go at once on a GPU. Raises
        ``ConfigError`` for another recogniser, for float16 on a CPU and for sizes that the checkpoint cannot do,
        ``ModelError`` for weights that are missing, damaged or of another kind, ``DeviceError``.
        """
        require_encoder(encoder, trained_with)
        self.encoder, self.settings = encoder, settings or PortraitSettings()
        self.device = torch.device(device)
        self._dtype = resolve_dtype(self.settings.precision, self.device)
        self.batch = max(1, batch if self.device.type == "cuda" else min(batch, CPU_ROWS))
        self.dimension, self._pipeline = self._load(Path(folder), adapter)
        self.crop = wide_crop(
            crop_side(self._pipeline.unet.config, self._pipeline.vae.config, self.settings.size)[0]
        )
        self._mask = None if self.settings.mask is None else face_mask(self.crop)
        with device_errors(self.device), quiet():
            self._pipeline.to(self.device)
            self._pipeline.set_ip_adapter_scale(self.settings.adapter_scale)
            self._text = self._encode_prompt()
        self._halved = self._said = False

    def _load(self, folder: Path, adapter: str | Path) -> tuple[int, Any]:
        """Numbers of the embedding that the adapter takes, and the pipeline; benchmarks build them instead."""
        state = read_adapter(adapter)
        pipeline = load_pipeline(
            folder,
            state,
            where=str(adapter),
            mask=self.settings.mask,
            sampler=self.settings.sampler,
            dtype=self._dtype,
            size=self.settings.size,
        )
        return dimension(state), pipeline

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """``unet`` and ``vae``, for whoever compiles, quantises or moves them."""
        return {"unet": self._pipeline.unet, "vae": self._pipeline.vae}

    def repaint(self, crops: Tensor, identity: Tensor, strength: float) -> Tensor:
        """(N, 3, S, S) in [0, 1] and (N, E) unit norm → (N, 3, S, S) float32 in [0, 1], on the crops' device.

        ``strength`` in [0, 1] is the share of noise: 0 gives the crops themselves, 1 forgets them. Raises
        ``ConfigError`` for a strength beyond, ``ValueError`` for other shapes, ``DeviceError`` when memory runs out
        twice. A face whose result is not finite, also in float32, is NaN: "not repainted", which is said once.
        """
        steps = self.schedule(strength)
        self._check(crops, identity)
        if not len(crops) or not steps:
            return crops.clone()
        with torch.no_grad():
            return self._within_memory(crops, identity, float(strength), steps).to(crops)

    def schedule(self, strength: float) -> int:
        """Steps of a whole schedule of which the last ``settings.steps`` make up ``strength``; 0: nothing to do."""
        if not 0 <= strength <= 1:
            raise ConfigError(f"A denoising strength of {strength:g} cannot be. Give a ladder within (0, 1].")
        if strength == 0:
            return 0
        config = self._pipeline.scheduler.config
        most = int(getattr(config, "original_inference_steps", None) or config.num_train_timesteps)
        steps = math.ceil(self.settings.steps / strength)
        while int(steps * strength) < self.settings.steps:  # as diffusers rounds it
            steps += 1
        steps = min(steps, most)
        return steps if int(steps * strength) else 0

    # ------------------------------------------------------------------ memory and batches

    def _within_memory(self, crops: Tensor, identity: Tensor, strength: float, steps: int) -> Tensor:
        """All batches; where memory runs out, once more in halves."""
        for _ in range(2):
            try:
                with device_errors(self.device):
                    return self._all(crops, identity, strength, steps)
            except OutOfMemoryError as error:
                if self._halved or self.batch == 1:
                    raise DeviceError(
                        f"The portrait diffusion ran out of memory on {self.device} with {self.batch} faces of "
                        f"{self.crop.size} pixels at once. Give a smaller lock.batch or lock.faceid.size."
                    ) from error
            self._halved, self.batch = True, self.batch // 2
            logger.warning("out of memory on %s: from now on %d faces at once", self.device, self.batch)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        raise AssertionError("unreachable")

    def _all(self, crops: Tensor, identity: Tensor, strength: float, steps: int) -> Tensor:
        parts = []
        for begin in range(0, len(crops), self.batch):
            rows = slice(begin, begin + self.batch)
            picture, whose = (self._padded(t[rows].float()) for t in (crops, identity))
            parts.append(self._one(picture, whose, strength, steps)[: len(crops[rows])])
        return torch.cat(parts)

    def _padded(self, rows: Tensor) -> Tensor:
        """``batch`` rows on the device: the last one repeated."""
        rows = rows.to(self.device)
        return torch.cat([rows, rows[-1:].expand(self.batch - len(rows), *rows.shape[1:])])

    # ------------------------------------------------------------------ one batch

    def _one(self, crops: Tensor, identity: Tensor, strength: float, steps: int) -> Tensor:
        clean, good = self._denoise(crops, identity, strength, steps, self._dtype)
        failed = ~_finite(clean)
        if bool(failed.any()) and self._dtype != torch.float32:
            logger.warning(
                "the portrait diffusion is not finite in %s: once more in float32", self.settings.precision
            )
            with in_float32(self._pipeline.unet):
                again, good = self._denoise(crops, identity, strength, steps, torch.float32)
            clean = torch.where(failed[:, None, None, None], again.to(clean.dtype), clean)
            failed = ~_finite(clean)
        if bool(failed.any()):
            step = int(good[failed].min()) + 1
            self._say_not_finite(
                f"its latents after denoising step {step} of {self.settings.steps}, also in float32"
            )
        return self._blend(crops, self._decode(clean))

    def _say_not_finite(self, what: str) -> None:
        """Once: which faces it happens to is in the records of the stage that asked."""
        if not self._said:
            self._said = True
            logger.warning(
                "the portrait diffusion is not finite for some faces (%s): they are not repainted. Check the "
                "checkpoint, or give another sampler or precision.",
                what,
            )

    def _denoise(
        self, crops: Tensor, identity: Tensor, strength: float, steps: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Clean latents of one batch, and how many steps each row stayed finite, (batch,)."""
        good = torch.zeros(len(crops), dtype=torch.long, device=self.device)

        def watch(_: Any, __: int, ___: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            good.add_(_finite(values["latents"]))
            return values

        ids = identity.view(-1, 1, 1, self.dimension).to(dtype)
        if self._guided:
            ids = torch.cat([torch.zeros_like(ids), ids])
        latents = self._pipeline(
            image=self._encode(crops * 2 - 1).to(dtype),
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=self.settings.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(NOISE) for _ in range(len(crops))],
            ip_adapter_image_embeds=[ids],
            output_type="latent",
            callback_on_step_end=watch,
            **{name: text.expand(len(crops), *text.shape[1:]).to(dtype) for name, text in self._text.items()},
            **self._masked(crops, dtype),
        ).images
        return latents, good

    def _masked(self, crops: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """What an inpainting pipeline takes besides: the mask, and the crop without what is under it."""
        if self._mask is None:
            return {}
        hidden = (self._mask > 0).to(crops)[None, None].expand(len(crops), 1, -1, -1)
        seen = self._encode((crops * 2 - 1) * (1 - hidden)).to(dtype)
        side = self.crop.size
        return {"mask_image": hidden, "masked_image_latents": seen, "height": side, "width": side}

    def _blend(self, crops: Tensor, painted: Tensor) -> Tensor:
        """Outside of the mask the crop's own bits."""
        if self._mask is None:
            return painted
        return torch.lerp(crops, painted, self._mask.to(crops))

    # ------------------------------------------------------------------ autoencoder and text

    def _encode(self, pictures: Tensor) -> Tensor:
        """(batch, 3, S, S) in [-1, 1] → normalised latents: the posterior's mode, so that no noise comes in."""
        vae = self._pipeline.vae
        latents = vae.encode(pictures.to(vae.dtype)).latent_dist.mode().float()
        mean, std = self._statistics()
        return (latents - mean) * (vae.config.scaling_factor / std)

    def _decode(self, latents: Tensor) -> Tensor:
        """Normalised latents → (batch, 3, S, S) float32 in [0, 1]; NaN where they are not finite."""
        vae = self._pipeline.vae
        mean, std = self._statistics()
        plain = latents.float() * (std / vae.config.scaling_factor) + mean
        pictures = vae.decode(plain.to(vae.dtype)).sample.float()
        failed = ~_finite(pictures)
        if bool(failed.any()):
            self._say_not_finite("what the autoencoder makes of them")
            pictures[failed] = torch.nan
        return (pictures / 2 + 0.5).clamp(0, 1)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents, of checkpoints that state them; 0 and 1 of all others."""
        config = self._pipeline.vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            mean, std = [0.0], [1.0]
        return tuple(torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (mean, std))  # type: ignore[return-value]

    @property
    def _guided(self) -> bool:
        return self.settings.guidance_scale > 1 and self._pipeline.unet.config.time_cond_proj_dim is None

    def _encode_prompt(self) -> dict[str, Tensor]:
        """The prompt as the pipeline takes it, (1, …) each; the text encoders are let go, since nobody needs them."""
        pipeline, settings = self._pipeline, self.settings
        with torch.no_grad(), quiet():
            for text in (settings.prompt, settings.negative_prompt):
                _remark_length(pipeline.tokenizer, text)
            made = pipeline.encode_prompt(
                prompt=settings.prompt,
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=self._guided,
                negative_prompt=settings.negative_prompt,
            )
        names = (
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        )
        for name in ("text_encoder", "text_encoder_2"):
            if getattr(pipeline, name, None) is not None:
                setattr(pipeline, name, None)
        return {name: text for name, text in zip(names, made, strict=False) if text is not None}

    # ------------------------------------------------------------------ checks

    def _check(self, crops: Tensor, identity: Tensor) -> None:
        side = self.crop.size
        if identity.ndim == 2 and identity.shape[1] != self.dimension:
            raise ModelError(
                f"The FaceID adapter takes embeddings of {self.dimension} numbers, the recogniser in the loop gives "
                f"{identity.shape[1]}. Name the one that it was made for."
            )
        if tuple(crops.shape[1:]) != (3, side, side) or identity.ndim != 2 or len(identity) != len(crops):
            raise ValueError(
                f"crops {tuple(crops.shape)} and identity {tuple(identity.shape)}, where (N, 3, {side}, {side}) and "
                f"(N, {self.dimension}) are wanted"
            )


def device_errors(device: torch.device) -> AbstractContextManager[None]:
    """Turn what a device says when it is full, absent or lost into errors of ours."""
    return pretrained.device_errors(
        device, "The portrait diffusion", "Give a smaller checkpoint or precision."
    )


def face_mask(crop: CropSpec) -> Tensor:
    """(S, S) float32 in [0, 1]: an oval over brows, cheeks and chin of the template, fading inwards from its edge."""
    template = torch.tensor(crop.template, dtype=torch.float64)
    unit = float((template[1] - template[0]).norm())
    middle = template.mean(0) - torch.tensor([0.0, RAISED * unit], dtype=torch.float64)
    line = torch.arange(crop.size, dtype=torch.float64)
    across = (line - middle[0]) / (OVAL[0] * unit)
    down = (line - middle[1]) / (OVAL[1] * unit)
    inward = ((1 - torch.hypot(down[:, None], across[None])) / FEATHER).clamp(0, 1)
    return (inward * inward * (3 - 2 * inward)).float()


def _remark_length(tokenizer: Any, text: str) -> None:
    """Say so when a prompt is longer than its encoder reads."""
    tokens, most = len(tokenizer(text).input_ids), int(tokenizer.model_max_length)
    if tokens > most:
        logger.warning("the portrait's prompt has %d tokens; after %d it is cut: %.60s…", tokens, most, text)


def _finite(rows: Tensor) -> Tensor:
    """(N,) bool: rows without NaN and infinity."""
    return rows.isfinite().flatten(1).all(1)
