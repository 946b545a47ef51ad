"""The accelerated VAE computes what diffusers' own does: values, gradients, cache path, bfloat16."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from diffusers import AutoencoderKLWan

from facelock.blueprint import wan_vae_cpu
from facelock.blueprint.wan_vae_cpu import accelerate_vae

TOLERANCE = 1e-5


def small_vae(**options) -> AutoencoderKLWan:
    torch.manual_seed(0)
    settings = {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, "z_dim": 4}
    settings |= {
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
        "temperal_downsample": [False, True, True],
    }
    return AutoencoderKLWan(**(settings | options)).eval()


def pair(**options) -> tuple[AutoencoderKLWan, AutoencoderKLWan]:
    plain = small_vae(**options)
    fast = copy.deepcopy(plain)
    accelerate_vae(fast)
    return plain, fast


def clip(frames: int, size: int = 32, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latents_and_frames(vae: AutoencoderKLWan, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode()
        return z, vae.decode(z).sample


@pytest.mark.parametrize("frames", [1, 5, 17, 18])
@pytest.mark.parametrize("batch", [1, 2])
def test_equal_to_diffusers(frames: int, batch: int) -> None:
    plain, fast = pair()
    for expected, found in zip(
        latents_and_frames(plain, clip(frames, batch=batch)),
        latents_and_frames(fast, clip(frames, batch=batch)),
        strict=True,
    ):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"temperal_downsample": [False, False, False]},
        {"temperal_downsample": [True, False, True]},
        {"num_res_blocks": 2, "decoder_base_dim": 12},
        {
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "dim_mult": [1, 2],
            "temperal_downsample": [True],
        },
        {"is_residual": True},
    ],
    ids=["no time", "other order", "two blocks", "patched", "wan 2.2"],
)
def test_equal_for_other_layouts(options: dict) -> None:
    plain, fast = pair(**options)
    for expected, found in zip(
        latents_and_frames(plain, clip(9)), latents_and_frames(fast, clip(9)), strict=True
    ):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < TOLERANCE


def test_equal_through_the_feature_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = pair()
    whole = latents_and_frames(fast, clip(17))
    monkeypatch.setattr(wan_vae_cpu, "WHOLE_CLIP_VALUES", 0)
    calls = []
    for module in fast.modules():
        if isinstance(module, wan_vae_cpu._FoldedCausalConv):
            module.register_forward_hook(lambda *_: calls.append(1))
    cached = latents_and_frames(fast, clip(17))
    assert len(calls) > 5 * 20  # five chunks, so it did go through the cache
    for expected, once, often in zip(latents_and_frames(plain, clip(17)), whole, cached, strict=True):
        assert (once - expected).abs().max() < TOLERANCE
        assert (often - expected).abs().max() < TOLERANCE


def test_equal_when_tiled() -> None:
    plain, fast = pair()
    for vae in (plain, fast):
        vae.enable_tiling(32, 32, 24, 24)
    for expected, found in zip(
        latents_and_frames(plain, clip(5, 48)), latents_and_frames(fast, clip(5, 48)), strict=True
    ):
        assert (found - expected).abs().max() < TOLERANCE


def gradients(vae: AutoencoderKLWan, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    z = vae.encode(x).latent_dist.mode()
    (vae.decode(z).sample.square().mean() + z.square().mean()).backward()
    return [x.grad, *(parameter.grad for parameter in vae.parameters())]


def test_equal_gradients() -> None:
    plain, fast = pair()
    for expected, found in zip(gradients(plain, clip(5)), gradients(fast, clip(5)), strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_bfloat16_autocast_stays_close_and_differentiable() -> None:
    _, fast = pair()
    z, frames = latents_and_frames(fast, clip(5))
    with torch.autocast("cpu", torch.bfloat16):
        found = fast.decode(z).sample
    assert found.dtype == torch.bfloat16
    assert (found.float() - frames).abs().max() < 0.05
    found.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in fast.decoder.parameters())


def test_files_and_class_stay_diffusers_own(tmp_path) -> None:
    plain, fast = pair()
    accelerate_vae(fast)  # twice is once
    fast.save_pretrained(tmp_path)
    again = AutoencoderKLWan.from_pretrained(tmp_path)
    assert type(fast) is AutoencoderKLWan
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    assert type(again.encoder.conv_in) is not type(fast.encoder.conv_in)  # other instances are untouched
    _, frames = latents_and_frames(copy.deepcopy(fast), clip(5))
    assert torch.equal(frames, latents_and_frames(fast, clip(5))[1])


def test_is_faster() -> None:
    plain, fast = pair(base_dim=16, dim_mult=[1, 2, 4, 4])

    def seconds(vae: AutoencoderKLWan) -> float:
        began = time.process_time()
        latents_and_frames(vae, clip(17, 64))
        return time.process_time() - began

    latents_and_frames(fast, clip(17, 64))  # measured: a quarter of the time
    assert min(seconds(fast) for _ in range(3)) < 0.7 * min(seconds(plain) for _ in range(3))
