"""Tiny random checkpoints of Stable Diffusion 1.5 and XL in their real layout, and FaceID adapters in both formats."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 32
"""Numbers of a text token in SD 1.5; SDXL has two text encoders side by side."""
SIDE = 32
"""Pixels of the crops: 16 latents, two pixels each."""
State = dict[str, dict[str, Tensor]]


def tokenizer() -> CLIPTokenizer:
    chars = [chr(code) for code in range(33, 127)]
    words = [*chars, *(f"{char}</w>" for char in chars), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: k for k, word in enumerate(words)}, merges=[], model_max_length=16)


def text_config(words: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        hidden_size=WIDTH, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        vocab_size=len(words), max_position_embeddings=16, projection_dim=WIDTH,
    )  # fmt: skip


def unet(large: bool = False, channels: int = 4) -> UNet2DConditionModel:
    more = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True, "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    }  # fmt: skip
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=SIDE // 2, in_channels=channels,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, norm_num_groups=8,
        cross_attention_dim=WIDTH * (2 if large else 1), **(more if large else {}),
    )  # fmt: skip


def vae() -> AutoencoderKL:
    """Its latents have a deviation of one, as those of trained ones have, so that noise means the same."""
    made = AutoencoderKL(
        block_out_channels=[16, 32], in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
    noise = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        spread = float(made.encode(noise * 2 - 1).latent_dist.mode().std())
    made.register_to_config(scaling_factor=1 / spread)
    return made


def checkpoint(path: Path, *, large: bool = False, channels: int = 4) -> Path:
    """A folder as the hub has it."""
    torch.manual_seed(0)
    words = tokenizer()
    parts = {
        "unet": unet(large, channels).eval(), "vae": vae().eval(), "tokenizer": words,
        "text_encoder": CLIPTextModel(text_config(words)).eval(),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
    }  # fmt: skip
    if large:
        second = {
            "text_encoder_2": CLIPTextModelWithProjection(text_config(words)).eval(),
            "tokenizer_2": words,
        }
        StableDiffusionXLImg2ImgPipeline(**parts, **second, add_watermarker=False).save_pretrained(path)
        return path
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionImg2ImgPipeline(**parts, **none).save_pretrained(path)
    return path


def faceid(network: UNet2DConditionModel, *, size: int = 512, tokens: int = 4, seed: int = 0) -> State:
    """A FaceID state dictionary, LoRA included, that fits ``network`` and embeddings of ``size`` numbers."""
    draw, wide, rank = torch.Generator().manual_seed(seed), network.config.cross_attention_dim, 4

    def random(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=draw) * scale

    state: State = {
        "image_proj": {
            "proj.0.weight": random(2 * size, size), "proj.0.bias": random(2 * size),
            "proj.2.weight": random(wide * tokens, 2 * size), "proj.2.bias": random(wide * tokens),
            "norm.weight": torch.ones(wide), "norm.bias": torch.zeros(wide),
        },
        "ip_adapter": {},
    }  # fmt: skip
    own, number = state["ip_adapter"], 1
    for index, name in enumerate(network.attn_processors):
        attention = network.get_submodule(name.rsplit(".processor", 1)[0])
        inner, keys = attention.to_q.in_features, attention.to_k.in_features
        if name.endswith("attn2.processor"):
            own |= {f"{number}.to_{part}_ip.weight": random(inner, wide) for part in "kv"}
            number += 2
        for part, width in (("q", inner), ("k", keys), ("v", keys), ("out", inner)):
            own[f"{index}.to_{part}_lora.down.weight"] = random(rank, width, scale=0.02)
            own[f"{index}.to_{part}_lora.up.weight"] = random(inner, rank, scale=0.02)
    return state


def save_adapter(path: Path, state: State) -> Path:
    """As the file's ending says: ``.bin`` as published, or ``.safetensors``."""
    if path.suffix == ".safetensors":
        save_file({f"{part}.{k}": v.contiguous() for part, d in state.items() for k, v in d.items()}, path)
    else:
        torch.save(state, path)
    return path
