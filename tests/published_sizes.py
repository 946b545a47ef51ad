"""The published checkpoints by their configurations: how many weights they have, without any weights.

Configurations as in the ``config.json`` files of the repositories that models/public.toml names.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLWan,
    ConsisIDTransformer3DModel,
    HeliosTransformer3DModel,
    LTX2VideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from facelock.recipe import Recipe, model_names
from facelock.tuning.footprint import Footprint
from facelock.weights import Catalog

GIB = 2**30
VAES = {
    "AutoencoderKLWan": ((4, 8), 256 * 256),
    "AutoencoderKLCogVideoX": ((4, 8), 240 * 360),
    "AutoencoderKLLTX2Video": ((8, 32), 512 * 512),
}
"""Autoencoder → its compression, and the pixels of its tiles."""
STABLE_DIFFUSION = 2 * (859_535_364 + 123_060_480 + 83_653_863)
"""Bytes of UNet (of 9 channels 14,400 more), text encoder and VAE in 16 bits."""
OTHER_PARTS = {
    "LTX2TextConnectors": "connectors",
    "AutoencoderKLLTX2Audio": "audio_vae",
    "LTX2Vocoder": "vocoder",
}
"""Class → folder."""
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
"""Checkpoint of the Wan family → its transformers."""
GEMMA3_12B = {
    "text_config": {
        "vocab_size": 262208, "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    },
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 896, "patch_size": 14,
    },
}  # fmt: skip
T5_XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
CONSISID = {
    "num_attention_heads": 48, "attention_head_dim": 64, "in_channels": 32, "out_channels": 16, "num_layers": 42,
    "sample_width": 90, "sample_height": 60, "sample_frames": 49, "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True, "is_train_face": True, "cross_attn_interval": 2,
}  # fmt: skip


def ltx2() -> tuple[list[Any], list[Any]]:
    """LTX-2's networks in 16 bits, and those in 32; their defaults are the published configuration."""
    text = Gemma3ForConditionalGeneration(Gemma3Config(**GEMMA3_12B))
    half = [text, LTX2TextConnectors(), LTX2VideoTransformer3DModel(), AutoencoderKLLTX2Video()]
    return half, [AutoencoderKLLTX2Audio(), LTX2Vocoder()]


def consisid() -> tuple[list[Any], list[Any]]:
    """ConsisID's networks, all in 16 bits."""
    text = T5EncoderModel(T5Config(**T5_XXL))
    return [text, ConsisIDTransformer3DModel(**CONSISID), AutoencoderKLCogVideoX()], []


OTHERS = {"ltx-2": ltx2, "consisid-5b": consisid}
"""Checkpoint of another family → what makes its networks, of 16 bits and of 32."""


def weights(network: Any) -> int:
    """How many weights it has."""
    return sum(parameter.numel() for parameter in network.parameters())


def networks(name: str) -> tuple[list[Any], list[Any]]:
    """The checkpoint's networks without their weights, of 16 bits and of 32: of the Wan family the VAE has 32."""
    with torch.device("meta"):
        if name in OTHERS:
            return OTHERS[name]()
        text = UMT5EncoderModel(UMT5Config(**UMT5_XXL))
        return [text, *(kind(**config) for kind, config in TRANSFORMERS[name])], [AutoencoderKLWan()]


def gib(name: str) -> float:
    """GiB of the checkpoint's networks."""
    half, full = networks(name)
    return (2 * sum(map(weights, half)) + 4 * sum(map(weights, full))) / GIB


def after(recipe: Recipe) -> int:
    """Bytes of the weights of a recipe's other stages: as the catalog gives them, and Stable Diffusion 1.5 as it is
    pulled, in 16 bits."""
    catalog = Catalog.load()
    names = {name for role, name in model_names(recipe).items() if not role.startswith("blueprint.")}
    return sum(STABLE_DIFFUSION if name == "sd15-inpaint" else catalog.find(name).bytes for name in names)


def footprint(name: str) -> Footprint:
    """What :func:`facelock.tuning.footprint.read_footprint` finds in the published folder."""
    half, full = networks(name)
    text, network = half[0], next(net for net in half if type(net).__name__.endswith("3DModel"))
    vae = next(net for net in [*half, *full] if type(net).__name__ in VAES)
    parts = {"text_encoder": text, "vae": vae}
    moved = [net for net in half if type(net) is type(network)]
    parts |= {f"transformer{'_2' * number}": net for number, net in enumerate(moved)}
    left = [net for net in [*half, *full] if not any(net is part for part in parts.values())]
    parts |= {OTHER_PARTS[type(net).__name__]: net for net in left}
    config, patch = network.config, network.config.patch_size
    texts = GEMMA3_12B["text_config"] if name == "ltx-2" else {}
    return Footprint(
        parameters={part: weights(net) for part, net in parts.items()},
        largest={"text_encoder": max(parameter.numel() for parameter in text.parameters())},
        blocks=config.num_layers,
        width=config.num_attention_heads * config.attention_head_dim,
        network=type(network).__name__,
        compression=VAES[type(vae).__name__][0],
        patch=(patch[0], patch[-1]) if isinstance(patch, tuple | list) else (1, patch),
        base=96,
        vae=type(vae).__name__,
        tile=VAES[type(vae).__name__][1],
        control=len(config.get("vace_layers") or ()),
        states=(texts["num_hidden_layers"] + 1) * texts["hidden_size"] if texts else 0,
    )


if __name__ == "__main__":
    for each in [*TRANSFORMERS, *OTHERS]:
        print(f"{each:18} {gib(each):5.1f} GiB")  # noqa: T201
