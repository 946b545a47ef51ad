"""The blueprint's networks of ``facelock bench gpu``: production classes at published sizes, made on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from facelock.bench.gpu_bench import Bench
from facelock.blueprint.checkpoint import Checkpoint, Place
from facelock.blueprint.fits import Asked
from facelock.blueprint.skyreels_v2 import SkyReelsV2
from facelock.nets.taehv import TinyDecoder


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Parameters are made on ``device`` in ``dtype`` at once: a second copy of 14 billion would not fit."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def kept(bench: Bench, name: str, make: Any) -> Any:
    """A model that several parts use, made once."""
    if name not in bench.kept:
        bench.kept[name] = make()
    return bench.kept[name]


# ---------------------------------------------------------------------- blueprint


def transformer(bench: Bench, large: bool = False) -> Any:
    """The diffusion-forcing transformer."""
    from diffusers import SkyReelsV2Transformer3DModel

    sizes = bench.sizes
    with made_on(bench.device, sizes.dtype):
        network: Any = SkyReelsV2Transformer3DModel(
            in_channels=16, out_channels=16, **(sizes.large if large else sizes.network)
        )
    for name, parameter in network.named_parameters():
        if any(part in name for part in network._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    return network.eval().requires_grad_(False)


def forward(bench: Bench, network: Any, size: tuple[int, int], batch: int = 1) -> object:
    """One pass over a window of ``size`` whose first two latents are the clean past."""
    latents = latents_of(bench, size, bench.sizes.dtype).expand(batch, -1, -1, -1, -1)
    levels = torch.full((batch, latents.shape[2]), 500, device=bench.device)
    levels[:, :2] = 0
    return network(
        hidden_states=latents, timestep=levels, encoder_hidden_states=words(bench).expand(batch, -1, -1),
        enable_diffusion_forcing=True, fps=[1] * batch, return_dict=False,
    )  # fmt: skip


def words(bench: Bench) -> Tensor:
    """(1, L, D) text states."""
    sizes = bench.sizes
    shape = (1, sizes.tokens, sizes.network["text_dim"])
    return torch.randn(shape, device=bench.device, dtype=sizes.dtype)


def latents_of(bench: Bench, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(1, 16, F, h, w) noise of a window."""
    frames = (bench.sizes.window - 1) // 4 + 1
    return torch.randn(1, 16, frames, size[0] // 8, size[1] // 8, device=bench.device, dtype=dtype)


def autoencoder(bench: Bench) -> Any:
    """Wan's video VAE in float32."""
    from diffusers import AutoencoderKLWan

    with torch.device(bench.device):
        vae: Any = AutoencoderKLWan(**bench.sizes.vae)
    return vae.eval().requires_grad_(False)


def tiny_decoder(bench: Bench, dtype: torch.dtype = torch.float32) -> TinyDecoder:
    """A TAEHV-format decoder for the same latents."""
    width = bench.sizes.tiny
    with torch.device(bench.device):
        decoder = TinyDecoder(16, (4 * width, 2 * width, width, width))
    return decoder.to(dtype).eval().requires_grad_(False)


def solver() -> Any:
    """The scheduler of the published checkpoints."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )


class Built(SkyReelsV2):
    """The backbone over networks that are in memory already; prompts are text states already."""

    def __init__(self, bench: Bench, *, window: int, context: int, **options: Any) -> None:
        self._parts = Checkpoint(
            {
                "transformer": kept(bench, "transformer", lambda: transformer(bench)),
                "vae": kept(bench, "vae", lambda: autoencoder(bench)),
                "text_encoder": nn.Identity(),
            },
            None,
            solver(),
            {},
        )
        super().__init__(
            "", size=bench.sizes.blueprint, fps=24, window=window, context=context, device=bench.device, **options
        )  # fmt: skip
        self._prompts = {text: words(bench) for text in ("", "a prompt")}

    def _load(self, dtype: torch.dtype, asked: Asked, place: Place | None) -> Checkpoint:
        return self._parts


def published(bench: Bench, backbone: Built, steps: int) -> Any:
    """A call of diffusers' own pipeline that makes the first window of ``backbone``, from the same networks."""
    from diffusers import SkyReelsV2DiffusionForcingPipeline

    pipe: Any = SkyReelsV2DiffusionForcingPipeline(
        tokenizer=None, text_encoder=None, transformer=backbone.modules["transformer"],
        vae=backbone.modules["vae"], scheduler=solver(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    height, width = bench.sizes.blueprint

    def call() -> object:
        return pipe(
            None, prompt_embeds=backbone._prompts["a prompt"], negative_prompt_embeds=backbone._prompts[""],
            height=height, width=width, num_frames=backbone.window, base_num_frames=backbone.window,
            num_inference_steps=steps, guidance_scale=backbone.guidance_scale, fps=24,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip

    return call
