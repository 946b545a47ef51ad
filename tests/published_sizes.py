"""The published checkpoints of the Wan family by their configurations: how many weights they have, without any weights.

Configurations as in the ``config.json`` files of the repositories that models/public.toml names.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanVACETransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

GIB = 2**30
SMALL = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
LARGE = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
UMT5_XXL = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
TRANSFORMERS: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "skyreels-v2-1.3b": [(SkyReelsV2Transformer3DModel, SMALL)],
    "skyreels-v2-14b": [(SkyReelsV2Transformer3DModel, LARGE)],
    "wan2.1-vace-1.3b": [(WanVACETransformer3DModel, {**SMALL, "vace_layers": list(range(0, 30, 2))})],
    "wan2.1-vace-14b": [(WanVACETransformer3DModel, LARGE)],
    "wan2.2-vace-a14b": [(WanVACETransformer3DModel, LARGE)] * 2,
    "helios-14b": [(HeliosTransformer3DModel, LARGE)],
}
"""Checkpoint → its transformers."""


def weights(network: Any) -> int:
    """How many weights it has."""
    return sum(parameter.numel() for parameter in network.parameters())


def gib(name: str) -> float:
    """GiB of the checkpoint's text encoder and transformers in 16 bits and of its autoencoder in 32."""
    with torch.device("meta"):
        half = [UMT5EncoderModel(UMT5Config(**UMT5_XXL))]
        half += [kind(**config) for kind, config in TRANSFORMERS[name]]
        full = AutoencoderKLWan()
    return (2 * sum(map(weights, half)) + 4 * weights(full)) / GIB


if __name__ == "__main__":
    for each in TRANSFORMERS:
        print(f"{each:18} {gib(each):5.1f} GiB")  # noqa: T201
