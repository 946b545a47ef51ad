"""A tiny random SkyReels-V2 checkpoint in the real layout, and folders of real sizes without their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

SETTINGS: dict[str, Any] = {
    "size": (32, 48), "fps": 12, "window": 17, "context": 5, "steps": 6, "guidance_scale": 3.0
}  # fmt: skip
PROMPT = "a woman walks in the rain"


def save_checkpoint(path: Path) -> Path:
    """Write one to ``path``: three blocks, so that first, middle and last differ."""
    from diffusers import (
        AutoencoderKLWan,
        SkyReelsV2DiffusionForcingPipeline,
        SkyReelsV2Transformer3DModel,
        UniPCMultistepScheduler,
    )
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    words += [(chr(code), -6.0) for code in range(33, 127)]
    tokenizer = T5Tokenizer(vocab=words, extra_ids=0, model_max_length=24)
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    network = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "text_dim": 32}
    network |= {"freq_dim": 32, "ffn_dim": 32, "num_layers": 3, "rope_max_seq_len": 32}
    vae = AutoencoderKLWan(
        base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1, z_dim=16, temperal_downsample=[False, True, True]
    )
    SkyReelsV2DiffusionForcingPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        transformer=SkyReelsV2Transformer3DModel(**network).eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ).save_pretrained(path)
    return path


def write_sparse(
    path: Path, shapes: Mapping[str, tuple[int, ...]], kind: str = "BF16", size: int = 2
) -> None:
    """A safetensors file with a true header and a hole where the weights would be."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + prod(shape) * size
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def real_size(folder: Path, which: str) -> Path:
    """A SkyReels-V2 folder with the sizes of the published ``1.3B`` or ``14B`` checkpoint, and no weights.

    Widths, layers and the text encoder's sizes are those of the published configs (Wan 2.1 technical report,
    arXiv:2503.20314, table 2; google/umt5-xxl).
    """
    heads, ffn, layers = {"1.3B": (12, 8960, 30), "14B": (40, 13824, 40)}[which]
    width = heads * 128
    config = {
        "_class_name": "SkyReelsV2Transformer3DModel", "num_attention_heads": heads, "attention_head_dim": 128,
        "num_layers": layers, "ffn_dim": ffn, "patch_size": [1, 2, 2],
    }  # fmt: skip
    block = {f"attn{i}.to_{x}.weight": (width, width) for i in (1, 2) for x in ("q", "k", "v", "out.0")}
    block |= {"ffn.net.0.proj.weight": (ffn, width), "ffn.net.2.weight": (width, ffn)}
    shapes = {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    write_sparse(folder / "transformer" / "diffusion_pytorch_model.safetensors", shapes)
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    layer = {f"{x}.weight": (4096, 4096) for x in "qkvo"} | {f"w{i}.weight": (10240, 4096) for i in range(3)}
    text: dict[str, tuple[int, ...]] = {
        f"block.{i}.{name}": s for i in range(24) for name, s in layer.items()
    }
    write_sparse(folder / "text_encoder" / "model.safetensors", {"shared.weight": (256384, 4096), **text})
    write_sparse(folder / "vae" / "diffusion_pytorch_model.safetensors", {"all": (127_000_000,)}, "F32", 4)
    (folder / "vae" / "config.json").write_text(
        json.dumps(
            {"_class_name": "AutoencoderKLWan", "base_dim": 96, "temperal_downsample": [False, True, True]}
        )
    )
    (folder / "model_index.json").write_text('{"_class_name": "SkyReelsV2DiffusionForcingPipeline"}')
    return folder
