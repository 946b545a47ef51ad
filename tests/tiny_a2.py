"""Tiny random checkpoints of LTX-2 and ConsisID: diffusers' own classes, saved in the published folders' layout."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    CogVideoXDPMScheduler,
    ConsisIDPipeline,
    ConsisIDTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

RATE = 24_000
"""Samples per second of the tiny vocoder, as of the published one."""


def gemma_tokenizer() -> GemmaTokenizer:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(chr(code) for code in range(33, 127))]
    return GemmaTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def gemma(vocabulary: int) -> Gemma3ForConditionalGeneration:
    text = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2048,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)).eval()


def ltx2_transformer(**options) -> LTX2VideoTransformer3DModel:
    network = {
        "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 16,
        "cross_attention_dim": 32, "audio_in_channels": 8, "audio_out_channels": 8,
        "audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16,
        "num_layers": 2, "caption_channels": 16, "rope_type": "split",
    }  # fmt: skip
    return LTX2VideoTransformer3DModel(**(network | options)).eval()


def vocoder() -> LTX2Vocoder:
    """24 kHz stereo."""
    return LTX2Vocoder(
        in_channels=32, hidden_channels=16, upsample_kernel_sizes=[16, 15, 8, 4], upsample_factors=[6, 5, 4, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1]], output_sampling_rate=RATE,
    )  # fmt: skip


def wide_vocoder() -> LTX2VocoderWithBWE:
    """The later checkpoints': 16 kHz, widened to 48 kHz."""
    small = {"resnet_kernel_sizes": [3], "resnet_dilations": [[1]]}
    small |= {f"bwe_{name}": value for name, value in small.items()}
    return LTX2VocoderWithBWE(
        in_channels=32, hidden_channels=64, bwe_in_channels=32, bwe_hidden_channels=32, num_mel_channels=16, **small
    )  # fmt: skip


def ltx2_pipeline(*, wide: bool = False, **transformer_options) -> LTX2Pipeline:
    """LTX-2 with 32 pixels and 8 frames per latent, 25 sound latents a second, 24 kHz stereo, or 48 if ``wide``."""
    torch.manual_seed(0)
    words = gemma_tokenizer()
    vae = AutoencoderKLLTX2Video(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1), decoder_causal=False,
        spatial_compression_ratio=32, temporal_compression_ratio=8,
    )  # fmt: skip
    sound = AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1, 2, 4), num_res_blocks=1, latent_channels=2, mel_bins=16
    )
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=3, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8, video_connector_num_layers=1, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1, rope_type="split",
    )  # fmt: skip
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=vae.eval(),
        audio_vae=sound.eval(),
        text_encoder=gemma(len(words)),
        tokenizer=words,
        connectors=connectors.eval(),
        transformer=ltx2_transformer(**transformer_options),
        vocoder=(wide_vocoder() if wide else vocoder()).eval(),
    )


def save_ltx2(folder: Path, **options) -> Path:
    ltx2_pipeline(**options).save_pretrained(folder)
    return folder


def t5_tokenizer() -> T5Tokenizer:
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    words += [(chr(code), -6.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=words, extra_ids=0, model_max_length=16)


def consisid_pipeline(**transformer_options) -> ConsisIDPipeline:
    """ConsisID with 8 pixels and 4 frames per latent, 17 frames of 32 x 48, 5 layers of features."""
    torch.manual_seed(0)
    words = t5_tokenizer()
    text = T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    network = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4, "time_embed_dim": 2,
        "text_embed_dim": 32, "num_layers": 2, "sample_width": 6, "sample_height": 4, "sample_frames": 17,
        "patch_size": 2, "temporal_compression_ratio": 4, "max_text_seq_length": 16,
        "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True, "cross_attn_interval": 1,
        "is_train_face": True, "cross_attn_dim_head": 8, "cross_attn_num_heads": 2, "LFE_id_dim": 24,
        "LFE_vit_dim": 16, "LFE_depth": 5, "LFE_dim_head": 8, "LFE_num_heads": 2, "LFE_num_id_token": 1,
        "LFE_num_querie": 2, "LFE_output_dim": 21, "LFE_ff_mult": 1, "LFE_num_scale": 5,
    }  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    return ConsisIDPipeline(
        tokenizer=words,
        text_encoder=T5EncoderModel(text).eval(),
        vae=vae.eval(),
        transformer=ConsisIDTransformer3DModel(**(network | transformer_options)).eval(),
        scheduler=CogVideoXDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )


def consisid_features(seed: int = 1) -> dict[str, torch.Tensor]:
    """What a features file of the tiny ConsisID holds."""
    draw = torch.Generator().manual_seed(seed)
    hidden = {f"id_vit_hidden.{index}": torch.randn(1, 5, 16, generator=draw) for index in range(5)}
    picture = torch.randint(0, 256, (3, 40, 40), generator=draw, dtype=torch.uint8)
    return {"id_cond": torch.randn(1, 24, generator=draw), "picture": picture, **hidden}


def poisoned(backbone: Any, monkeypatch: pytest.MonkeyPatch, bad: Collection[int]) -> list[torch.dtype]:
    """The transformer gives NaN in its calls numbered ``bad``; returns the type of weights at every call."""
    transformer, seen = backbone.modules["transformer"], []
    forward = transformer.forward

    def broken(**inputs: Any) -> Any:
        seen.append(next(transformer.parameters()).dtype)
        assert all(p.dtype == seen[-1] for p in transformer.parameters())
        found = forward(**inputs)
        first = found[0] * (math.nan if len(seen) - 1 in bad else 1)
        return (first, *found[1:])

    monkeypatch.setattr(transformer, "forward", broken)
    return seen
