"""The two sets of shapes of ``facelock bench gpu``: production's, and tiny ones of the same classes for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class PortraitSizes:
    """Image diffusion on portrait crops: UNet and autoencoder of Stable Diffusion 1.5, and the crops it is given."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    crops: tuple[int, int]
    """Sides of the crops: of the recipes' settings, and of few steps."""
    batch: int
    frames: int
    """Frames of the window that are measured; time is proportional to faces."""


@dataclass(frozen=True)
class FaceSizes:
    """Networks that look at and change faces."""

    detector: int
    """Width of the detector; 36: the FLOPs of SCRFD-10G."""
    look: int
    """Side of the picture that the detector sees."""
    recogniser: tuple[tuple[int, ...], tuple[int, ...]]
    """Widths and blocks of the recogniser's stages; IResNet-50 as in buffalo_l."""
    swap: tuple[int, int]
    """Width after the first convolution and number of styled blocks of the inswapper-shaped aligner."""
    upscaler: tuple[int, int, int]
    """Width, depth and scale of the compact upscaler; realesr-general-x4v3."""
    cpu_frames: int
    """Frames of a restored window that are measured where frames lie in the host's memory."""


@dataclass(frozen=True)
class Sizes:
    """One set of shapes."""

    name: str
    network: dict[str, Any]
    large: dict[str, Any]
    """Of the larger denoiser."""
    large_name: str
    vae: dict[str, Any]
    tiny: int
    """Channels of the tiny decoder."""
    matrix: int
    """Side of the square matrices whose product gives the device's rate."""
    copied: int
    """MiB of the copies that give its bandwidth."""
    window: int
    """Frames of a window."""
    short: int
    """Frames of the window with which the lock switched off is compared."""
    chunk: tuple[int, int, int]
    """Window, context and number of the chunks of a long clip."""
    blueprint: tuple[int, int]
    direct: tuple[tuple[int, int], ...]
    """Sizes at which a clip could be made directly instead of enlarged."""
    tokens: int
    """Of a prompt."""
    dtype: torch.dtype
    faces: FaceSizes
    portrait: PortraitSizes
    backends: tuple[str, ...] = ("native_flash", "native_cudnn")
    """Attention backends of a recipe's [speed] that are compared with torch's own choice."""
    face: tuple[float, float] = field(default=(0.22, 0.45))
    """Width and height of a face's box, as shares of the frame's height."""


_DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")

FULL = Sizes(
    name="Wan 2.1 / SkyReels-V2 1.3B",
    network={"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30,
             "text_dim": 4096, "freq_dim": 256, "rope_max_seq_len": 1024},
    large={"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40,
           "text_dim": 4096, "freq_dim": 256, "rope_max_seq_len": 1024},
    large_name="14B", vae={}, tiny=64, matrix=8192, copied=1024, window=81, short=33, chunk=(17, 5, 8),
    blueprint=(480, 832), direct=((720, 1280), (1088, 1920)), tokens=512, dtype=torch.bfloat16,
    faces=FaceSizes(36, 640, ((64, 128, 256, 512), (3, 4, 14, 3)), (128, 6), (64, 32, 4), 17),
    portrait=PortraitSizes(
        {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
         "cross_attention_dim": 768, "attention_head_dim": 8, "norm_num_groups": 32,
         "down_block_types": _DOWN, "up_block_types": _UP},
        {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32},
        (512, 256), 8, 27,
    ),
)  # fmt: skip
TINY = Sizes(
    name="tiny",
    network={"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 64, "num_layers": 2, "text_dim": 32,
             "freq_dim": 32, "rope_max_seq_len": 64},
    large={"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 128, "num_layers": 2, "text_dim": 32,
           "freq_dim": 32, "rope_max_seq_len": 64},
    large_name="larger", vae={"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}, tiny=8, matrix=256,
    copied=1, window=9, short=5, chunk=(9, 5, 4), blueprint=(64, 64), direct=((96, 96), (144, 144)), tokens=16,
    dtype=torch.float32,
    faces=FaceSizes(4, 64, ((4, 8, 8, 8), (1, 1, 1, 1)), (4, 1), (8, 2, 2), 5),
    portrait=PortraitSizes(
        {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 32,
         "attention_head_dim": 8, "norm_num_groups": 8, "down_block_types": _DOWN[2:], "up_block_types": _UP[:2]},
        {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 8},
        (64, 32), 2, 2,
    ),
    backends=("native", "native_math"),
)  # fmt: skip
