"""Reads a Stable Diffusion 1.5 or XL folder in diffusers' layout, and a FaceID adapter into its UNet.

Only local files, only safetensors, only the classes named here whatever ``model_index.json`` says; weights must be
complete, of the right shapes, and finite. There is no safety checker and no CLIP image encoder: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from facelock.errors import ConfigError, ModelError, first_line
from facelock.portrait.adapter import State, check_fit, merge_lora, without_lora
from facelock.portrait.fits import REMEDY, is_large, misfits
from facelock.weights.pretrained import load_network, load_part, quiet

SAMPLERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "lcm": LCMScheduler}
"""Name in a recipe → class. LCM needs a UNet distilled for it; its steps draw noise, the same for every face."""


def load_pipeline(
    folder: Path,
    adapter: State,
    *,
    where: str,
    mask: str | None,
    sampler: str,
    dtype: torch.dtype,
    size: int | None = None,
) -> Any:
    """The diffusers pipeline of ``folder`` with the FaceID ``adapter`` of the file ``where``, on the CPU.

    UNet and text encoders in ``dtype``; the autoencoder in float32, or in float16 where it is asked for and the
    checkpoint's allows it. With a ``mask`` only that is denoised; ``size`` is the crop's side. Raises ``ModelError``
    for a folder or adapter that is missing, incomplete, damaged or of another kind, ``ConfigError`` for sampler, mask
    and size that cannot be.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"No sampler is called {sampler!r}. Give one of {', '.join(SAMPLERS)}.")
    large = is_large(folder)
    parts = _parts(folder, large, sampler, dtype)
    for error in misfits(folder, parts["unet"].config, parts["vae"].config, mask=mask, size=size):
        raise error
    return assemble(parts, adapter, where=where, large=large, inpaint=mask is not None, dtype=dtype)


def assemble(
    parts: Mapping[str, Any], adapter: State, *, where: str, large: bool, inpaint: bool, dtype: torch.dtype
) -> Any:
    """The pipeline of loaded ``parts`` (its constructor's arguments) with the ``adapter`` of the file ``where``.

    Raises ``ModelError`` for an adapter that does not fit.
    """
    check_fit(where, adapter, parts["unet"])
    pipeline = _pipeline_class(large, inpaint)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()  # row by row: one crop fills a GPU, and a batch of them its memory
    try:
        with quiet():
            own = without_lora(adapter)
            pipeline.load_ip_adapter(own, subfolder="", weight_name="", image_encoder_folder=None)
            merge_lora(pipeline.unet, adapter)
            pipeline.unet.to(dtype).eval().requires_grad_(False)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"{where}: does not fit the UNet ({first_line(error)}). Fetch it again.") from error
    return pipeline


def _parts(folder: Path, large: bool, sampler: str, dtype: torch.dtype) -> dict[str, Any]:
    """Constructor arguments of the pipeline."""
    parts: dict[str, Any] = {
        "tokenizer": load_part(folder, "tokenizer", CLIPTokenizer.from_pretrained, REMEDY),
        "text_encoder": load_network(folder, "text_encoder", CLIPTextModel, dtype, REMEDY),
        "unet": load_network(folder, "unet", UNet2DConditionModel, dtype, REMEDY),
        "vae": load_network(folder, "vae", AutoencoderKL, torch.float32, REMEDY),
        "scheduler": SAMPLERS[sampler].from_config(
            load_part(folder, "scheduler", DDIMScheduler.load_config, REMEDY)
        ),
    }
    if dtype == torch.float16 and not parts["vae"].config.force_upcast:
        parts["vae"].to(dtype)
    if not large:
        return parts | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return parts | {
        "tokenizer_2": load_part(folder, "tokenizer_2", CLIPTokenizer.from_pretrained, REMEDY),
        "text_encoder_2": load_network(folder, "text_encoder_2", CLIPTextModelWithProjection, dtype, REMEDY),
        "add_watermarker": False,
    }


class _PerFace:
    """A pipeline whose faces have an identity each.

    diffusers 0.42 repeats the embeddings it is given once per row of the batch: with one per row already, N × N come
    out, and the attention silently mixes them, the empty ones of the guidance included.
    """

    def prepare_ip_adapter_image_embeds(self, _: Any, embeds: list[Any], device: Any, *__: Any) -> list[Any]:
        """``embeds`` as they are: (N, 1, 1, E), or (2 N, 1, 1, E) with the empty ones first."""
        return [embed.to(device) for embed in embeds]


def _pipeline_class(large: bool, inpaint: bool) -> Any:
    name = f"StableDiffusion{'XL' if large else ''}{'Inpaint' if inpaint else 'Img2Img'}Pipeline"
    with quiet():  # their modules import picture processors of transformers, which ask for torchvision
        plain: Any = getattr(diffusers, name)
    return type(f"PerFace{plain.__name__}", (_PerFace, plain), {})
