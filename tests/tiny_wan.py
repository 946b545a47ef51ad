"""Tiny checkpoints of the Wan family with random weights, saved in the layout of the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    UniPCMultistepScheduler,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

TEXT_TOKENS = 24
PROMPT = "a woman walks &amp; talks in the   rain"


def tokenizer() -> T5Tokenizer:
    """A few words, then single characters, so that nothing is unknown."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    words += [(f"▁{word}", -2.0) for word in ("a", "woman", "walks", "talks", "in", "the", "rain")]
    words += [(chr(code), -6.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=words, extra_ids=0, model_max_length=TEXT_TOKENS)


def text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """UMT5 with 32 features."""
    config = UMT5Config(
        vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, pad_token_id=0, eos_token_id=1
    )  # fmt: skip
    return UMT5EncoderModel(config).eval()


def vae() -> AutoencoderKLWan:
    """The Wan 2.1 autoencoder: 4 frames and 8 x 8 pixels to a latent of 16 channels."""
    return AutoencoderKLWan(
        base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, z_dim=16, temperal_downsample=[False, True, True]
    ).eval()


def vace_transformer(**options: Any) -> WanVACETransformer3DModel:
    """Two layers, a control branch into the first."""
    settings = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16}
    settings |= {"text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}
    settings |= {"vace_layers": [0, 1], "vace_in_channels": 96}
    return WanVACETransformer3DModel(**(settings | options)).eval()


def vace(folder: Path, *, experts: bool = False, **options: Any) -> Path:
    """Save a Wan VACE checkpoint: 2.1 with one transformer, 2.2 with two ``experts`` and a boundary."""
    torch.manual_seed(0)
    words = tokenizer()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    WanVACEPipeline(
        tokenizer=words,
        text_encoder=text_encoder(len(words)),
        vae=vae(),
        scheduler=UniPCMultistepScheduler(num_train_timesteps=1000, **flow),
        transformer=vace_transformer(**options),
        transformer_2=vace_transformer(**options) if experts else None,
        boundary_ratio=0.875 if experts else None,
    ).save_pretrained(folder)
    return folder


def helios(folder: Path, **scheduler: Any) -> Path:
    """Save a Helios base checkpoint."""
    torch.manual_seed(0)
    words = tokenizer()
    network = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16}
    network |= {"text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_dim": (4, 4, 4)}
    schedule = {"stages": 1, "stage_range": [0, 1], "use_dynamic_shifting": True, "time_shift_type": "linear"}
    HeliosPipeline(
        tokenizer=words,
        text_encoder=text_encoder(len(words)),
        vae=vae(),
        scheduler=HeliosScheduler(**(schedule | scheduler)),
        transformer=HeliosTransformer3DModel(**network).eval(),
    ).save_pretrained(folder)
    return folder
