"""Stage 1 on a tiny random checkpoint of the real classes: it is the published pipeline, chunk by chunk."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from facelock.blueprint import backbone_class
from facelock.blueprint.skyreels_v2 import SkyReelsV2
from facelock.errors import ConfigError, DeviceError, FaceLockError, InputError, ModelError
from facelock.protocols import Backbone

PROMPT = "a woman walks &amp; talks in the   rain"
SETTINGS = {"size": (32, 48), "fps": 12, "window": 17, "context": 5, "steps": 4, "guidance_scale": 3.0}
TEXT_TOKENS = 24


def tokenizer() -> T5Tokenizer:
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    words += [(f"▁{word}", -2.0) for word in ("a", "woman", "walks", "talks", "in", "the", "rain")]
    words += [(chr(code), -6.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=words, extra_ids=0, model_max_length=TEXT_TOKENS)


def pipeline(**transformer_options) -> SkyReelsV2DiffusionForcingPipeline:
    torch.manual_seed(0)
    words = tokenizer()
    text = UMT5Config(
        vocab_size=len(words),
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
    )
    network = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16}
    network |= {"text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}
    vae = AutoencoderKLWan(
        base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1, z_dim=16, temperal_downsample=[False, True, True]
    )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return SkyReelsV2DiffusionForcingPipeline(
        tokenizer=words,
        text_encoder=UMT5EncoderModel(text).eval(),
        transformer=SkyReelsV2Transformer3DModel(**(network | transformer_options)).eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(num_train_timesteps=1000, **flow),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blueprint")
    pipeline().save_pretrained(path)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> SkyReelsV2:
    return SkyReelsV2(folder, **SETTINGS)


def frames(count: int = 5, size: tuple[int, int] = (32, 48)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(7))


def reference(folder: Path, seed: int, *, num_frames: int = 17, output: str = "pt", **options) -> Tensor:
    """What the published pipeline makes: (T, 3, H, W) frames or (1, z, F, h, w) latents."""
    pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    height, width = SETTINGS["size"]
    settings = {
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "fps": 12,
        "max_sequence_length": TEXT_TOKENS,
    }
    settings |= {"height": height, "width": width, "base_num_frames": 17, "num_frames": num_frames}
    generator = torch.Generator().manual_seed(seed)
    made = pipe(PROMPT, output_type=output, generator=generator, **(settings | options)).frames
    return made if output == "latent" else made[0]


# ---------------------------------------------------------------------- the same mathematics


def test_is_a_backbone_found_by_name(backbone: SkyReelsV2) -> None:
    assert backbone_class("skyreels_v2") is SkyReelsV2
    assert isinstance(backbone, Backbone)
    assert (backbone.chunk, backbone.first_chunk, backbone.context) == (12, 17, 5)
    with pytest.raises(ConfigError, match="skyreels_v2"):
        backbone_class("skyreel")


def test_new_clip_equals_the_published_pipeline(folder: Path, backbone: SkyReelsV2) -> None:
    expected = reference(folder, seed=3)
    found = backbone.extend(PROMPT, None, seed=3)
    assert found.shape == expected.shape == (17, 3, 32, 48)
    assert (found - expected).abs().max() < 1e-4
    assert (found - backbone.extend(PROMPT, None, seed=4)).abs().max() > 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": (1, 1, 1)},
        {"inject_sample_info": True},
        {"num_frame_per_block": 5},
    ],
    ids=["patch 1", "frame rate embedded", "block-causal"],
)
def test_other_variants_equal_the_published_pipeline(tmp_path: Path, options: dict) -> None:
    pipeline(**options).save_pretrained(tmp_path)
    settings = SETTINGS | ({"window": 37, "context": 17} if "num_frame_per_block" in options else {})
    found = SkyReelsV2(tmp_path, **settings).extend(PROMPT, None, seed=1)
    expected = reference(tmp_path, 1, num_frames=settings["window"], base_num_frames=settings["window"])
    assert (found - expected).abs().max() < 1e-4


@pytest.fixture(scope="module")
def clean_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint, whose scheduler says that the transformer predicts the clean latents."""
    path = Path(shutil.copytree(folder, tmp_path_factory.mktemp("clean") / "blueprint"))
    config = path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    return path


def test_a_transformer_of_clean_latents_equals_the_published_pipeline(
    folder: Path, clean_folder: Path, backbone: SkyReelsV2
) -> None:
    expected = reference(clean_folder, 3)
    found = SkyReelsV2(clean_folder, **SETTINGS).extend(PROMPT, None, seed=3)
    assert (found - expected).abs().max() < 1e-4
    assert (found - backbone.extend(PROMPT, None, seed=3)).abs().max() > 0.05


def test_a_transformer_of_clean_latents_takes_another_shift(clean_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(clean_folder, tmp_path / "copy"))
    config = copied / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"flow_shift": 5.0}))
    found = SkyReelsV2(clean_folder, **(SETTINGS | {"flow_shift": 5.0})).extend(PROMPT, None, seed=2)
    assert (found - reference(copied, 2)).abs().max() < 1e-4


def test_a_guide_is_shown_the_clean_latents_that_are_predicted(clean_folder: Path) -> None:
    """In the last step what it makes of them is the result, whichever the transformer predicts."""

    class Guide:
        def begin(self, references: object) -> None: ...

        def __call__(self, x0: Tensor, sigma: float, step: int, known: int) -> Tensor:
            return torch.full_like(x0, 0.25) if step == SETTINGS["steps"] - 1 else x0

    backbone = SkyReelsV2(clean_folder, **SETTINGS)
    backbone.guide = Guide()
    with torch.no_grad():
        latents = backbone._denoise([backbone._embed(PROMPT)], None, seed=1)
    torch.testing.assert_close(latents, torch.full_like(latents, 0.25), atol=1e-5, rtol=0)


def test_without_guidance_and_with_another_shift(folder: Path, copied: Path) -> None:
    config = copied / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"flow_shift": 5.0}))
    expected = reference(copied, 2, guidance_scale=1.0)
    found = SkyReelsV2(folder, **(SETTINGS | {"guidance_scale": 1.0, "flow_shift": 5.0})).extend(
        PROMPT, None, seed=2
    )
    assert (found - expected).abs().max() < 1e-4


def test_continuation_equals_the_published_long_video(folder: Path, backbone: SkyReelsV2) -> None:
    """Two windows: the second continues from the first one's last two latents, kept clean at level 0."""
    expected = reference(folder, 5, num_frames=29, overlap_history=5, output="latent")
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(1, 16, 5, 4, 6, generator=generator) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(backbone, "_noise", lambda *_: drawn.pop(0).clone())
        texts = [backbone._embed(PROMPT)]
        first = backbone._denoise(texts, None, seed=0)
        second = backbone._denoise(texts, first[:, :, -2:], seed=0)
    found = torch.cat([first, second[:, :, 2:]], dim=2)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


def test_context_enters_as_the_published_video_to_video_does(backbone: SkyReelsV2) -> None:
    """Encoded by the posterior's mode and normalised; decoding gives the VAE's own reconstruction."""
    vae, past = backbone._vae, frames()
    with torch.no_grad():
        latents = backbone._encode(past)
        raw = vae.encode(past.transpose(0, 1)[None] * 2 - 1).latent_dist.mode()
        mean, std = (
            torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std)
        )
        torch.testing.assert_close(latents, (raw - mean) / std)
        decoded = vae.decode(raw).sample[0].transpose(0, 1) / 2 + 0.5
        torch.testing.assert_close(backbone._decode(latents), decoded.clamp(0, 1), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- chunk by chunk


def test_three_chunks_have_exact_counts_and_are_deterministic(backbone: SkyReelsV2) -> None:
    def clip() -> list[Tensor]:
        chunks = [backbone.extend(PROMPT, None, seed=10)]
        for seed in (11, 12, 13):
            chunks.append(backbone.extend(PROMPT, chunks[-1][-5:], seed=seed))
        return chunks

    once, again = clip(), clip()
    assert [len(chunk) for chunk in once] == [17, 12, 12, 12]
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == torch.float32
        assert a.is_contiguous()
        assert a.min() >= 0
        assert a.max() <= 1
        assert not a.is_inference()


def test_the_next_frames_depend_on_context_prompt_and_seed(backbone: SkyReelsV2) -> None:
    past = frames()
    kept = past.clone()
    base = backbone.extend(PROMPT, past, seed=0)
    assert torch.equal(past, kept)
    assert not torch.equal(base, backbone.extend(PROMPT, past.flip(0), seed=0))
    assert not torch.equal(base, backbone.extend("the rain", past, seed=0))
    assert not torch.equal(base, backbone.extend(PROMPT, past, seed=1))
    assert torch.equal(base, backbone.extend(PROMPT, past, seed=0))


def test_a_chunk_does_not_depend_on_what_was_made_before(folder: Path, backbone: SkyReelsV2) -> None:
    backbone.extend("the rain", frames(), seed=99)
    fresh = SkyReelsV2(folder, **SETTINGS)
    assert torch.equal(fresh.extend(PROMPT, frames(), seed=0), backbone.extend(PROMPT, frames(), seed=0))


def test_context_noise_is_seeded_and_tells_the_transformer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = SkyReelsV2(folder, **SETTINGS, context_noise=0.02)
    seen = []
    forward = noisy._forward
    monkeypatch.setattr(
        noisy, "_forward", lambda x, levels, t: (seen.append((x, levels)), forward(x, levels, t))[1]
    )
    found = noisy.extend(PROMPT, frames(), seed=0)
    assert torch.equal(found, noisy.extend(PROMPT, frames(), seed=0))
    (first, levels), (second, _) = seen[:2]
    assert levels[0, :3].tolist() == [20, 20, 999]
    assert 0 < (first[:, :, :2] - second[:, :, :2]).std() < 0.05  # drawn anew for every step


def test_every_setting_changes_something(folder: Path, backbone: SkyReelsV2) -> None:
    base = backbone.extend(PROMPT, None, seed=0)
    for changed in ({"steps": 5}, {"guidance_scale": 2.0}, {"flow_shift": 1.0}, {"negative_prompt": "rain"}):
        other = SkyReelsV2(folder, **(SETTINGS | changed))
        assert not torch.equal(base, other.extend(PROMPT, None, seed=0)), changed


def test_text_is_encoded_once_per_prompt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = SkyReelsV2(folder, **SETTINGS)
    texts = []
    encode = backbone._encode_text
    monkeypatch.setattr(backbone, "_encode_text", lambda text: (texts.append(text), encode(text))[1])
    for seed in range(3):
        backbone.extend(PROMPT, frames(), seed=seed)
    assert texts == ["", PROMPT]


def test_steps_are_reported_and_may_stop_the_run(folder: Path) -> None:
    steps = []
    backbone = SkyReelsV2(folder, **SETTINGS, on_step=lambda done, total: steps.append((done, total)))
    backbone.extend(PROMPT, None, seed=0)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    backbone.on_step = stop
    with pytest.raises(KeyboardInterrupt):
        backbone.extend(PROMPT, None, seed=0)


def test_bfloat16_loads_like_a_full_size_checkpoint(folder: Path, backbone: SkyReelsV2) -> None:
    half = SkyReelsV2(folder, **SETTINGS, precision="bfloat16")
    assert half._transformer.patch_embedding.weight.dtype == torch.bfloat16
    assert half._vae.decoder.conv_in.weight.dtype == torch.float32
    found = half.extend(PROMPT, frames(), seed=0)
    assert found.dtype == torch.float32
    assert (found - backbone.extend(PROMPT, frames(), seed=0)).abs().mean() < 0.05


# ---------------------------------------------------------------------- faults


def poison(backbone: SkyReelsV2, monkeypatch: pytest.MonkeyPatch, *, calls: range) -> list[torch.dtype]:
    """Make the transformer return NaN in the given calls; returns the precision of every call."""
    seen: list[torch.dtype] = []
    forward = backbone._forward

    def broken(*args: Tensor) -> Tensor:
        seen.append(backbone._transformer.patch_embedding.weight.dtype)
        result = forward(*args)
        return result * float("nan") if len(seen) - 1 in calls else result

    monkeypatch.setattr(backbone, "_forward", broken)
    return seen


def test_latents_that_are_not_finite_are_tried_once_more_in_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = SkyReelsV2(folder, **SETTINGS, precision="bfloat16")
    before = {name: p.dtype for name, p in backbone._transformer.named_parameters()}
    weights = {name: p.clone() for name, p in backbone._transformer.named_parameters()}
    seen = poison(backbone, monkeypatch, calls=range(2, 3))
    with caplog.at_level(logging.WARNING):
        found = backbone.extend(PROMPT, None, seed=0)
    assert seen == [torch.bfloat16] * 3 + [torch.float32] * 4
    assert "step 3 of 4" in caplog.text
    assert torch.isfinite(found).all()
    assert {name: p.dtype for name, p in backbone._transformer.named_parameters()} == before
    assert all(torch.equal(p, weights[name]) for name, p in backbone._transformer.named_parameters())


def test_latents_that_stay_not_finite_are_an_error_naming_the_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = SkyReelsV2(folder, **SETTINGS)
    seen = poison(backbone, monkeypatch, calls=range(1, 100))
    with pytest.raises(FaceLockError, match="step 2 of 4") as caught:
        backbone.extend(PROMPT, None, seed=0)
    assert caught.value.exit_code == 1
    assert len(seen) == 2  # in float32 already: another try would give the same


def test_out_of_memory_falls_back_to_two_passes_then_says_so(
    folder: Path, backbone: SkyReelsV2, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = backbone.extend(PROMPT, None, seed=0)
    tight = SkyReelsV2(folder, **SETTINGS)
    forward = tight._forward

    def no_room_for_two(latents: Tensor, levels: Tensor, texts: Tensor) -> Tensor:
        if len(texts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(latents, levels, texts)

    monkeypatch.setattr(tight, "_forward", no_room_for_two)
    assert (tight.extend(PROMPT, None, seed=0) - expected).abs().max() < 1e-4

    def no_room(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tight, "_forward", no_room)
    with pytest.raises(DeviceError, match="memory"):
        tight.extend(PROMPT, None, seed=0)


def test_a_device_that_is_absent_is_a_device_error(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is present")
    with pytest.raises(DeviceError, match="cuda"):
        SkyReelsV2(folder, **SETTINGS, device="cuda")


@pytest.mark.parametrize("shape", [(4, 3, 32, 48), (5, 3, 48, 32), (5, 1, 32, 48)])
def test_a_context_of_another_shape_is_refused(backbone: SkyReelsV2, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\(5, 3, 32, 48\)"):
        backbone.extend(PROMPT, torch.zeros(shape), seed=0)


def test_a_context_with_nan_is_refused(backbone: SkyReelsV2) -> None:
    with pytest.raises(InputError, match="finite"):
        backbone.extend(PROMPT, frames() * float("nan"), seed=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": (32, 40)}, r"size = \(32, 40\).*16"),
        ({"size": (0, 32)}, "size"),
        ({"window": 18}, r"window = 18.*4 \+ 1"),
        ({"context": 4}, "context = 4"),
        ({"context": 17}, "less than the window"),
        ({"window": 161}, "at most 32"),
        ({"steps": 0}, "steps"),
        ({"context_noise": 0.5}, "context_noise"),
        ({"precision": "float8"}, "float8"),
        ({"precision": "float16"}, "CPU"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder: Path, changed: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SkyReelsV2(folder, **(SETTINGS | changed))


# ---------------------------------------------------------------------- damaged checkpoints


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def drop_weight(folder: Path) -> None:
    path = weights(folder, "transformer")
    tensors = load_file(path)
    del tensors["blocks.1.attn1.to_q.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def poison_weight(folder: Path) -> None:
    path = weights(folder, "vae")
    tensors = load_file(path)
    tensors["decoder.conv_in.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = weights(folder, "transformer")
    path.write_bytes(path.read_bytes()[:-4000])


def only_a_pickle(folder: Path) -> None:
    path = weights(folder, "vae")
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


DAMAGES = {
    "no index": lambda f: (f / "model_index.json").unlink(),
    "index not json": lambda f: (f / "model_index.json").write_text("{"),
    "index a list": lambda f: (f / "model_index.json").write_text("[]"),
    "another pipeline": lambda f: rewrite(f / "model_index.json", _class_name="WanPipeline"),
    "another scheduler": lambda f: rewrite(f / "model_index.json", scheduler=["os", "system"]),
    "scheduler not named": lambda f: rewrite(f / "model_index.json", scheduler=None),
    "no vae": lambda f: shutil.rmtree(f / "vae"),
    "no tokenizer file": lambda f: [p.unlink() for p in (f / "tokenizer").iterdir()],
    "no weights": lambda f: weights(f, "text_encoder").unlink(),
    "only a pickle": only_a_pickle,
    "truncated": truncate,
    "not safetensors": lambda f: weights(f, "text_encoder").write_bytes(b"<html>not found</html>"),
    "a weight lacking": drop_weight,
    "a weight with NaN": poison_weight,
    "other shapes": lambda f: rewrite(f / "transformer" / "config.json", ffn_dim=64),
    "config not json": lambda f: (f / "vae" / "config.json").write_text("{"),
    "image-to-video channels": lambda f: pipeline(in_channels=36).save_pretrained(f),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_a_model_error(copied: Path, damage) -> None:
    damage(copied)
    with pytest.raises(ModelError) as caught:
        SkyReelsV2(copied, **SETTINGS)
    message = str(caught.value)
    assert str(copied) in message
    assert len(message.splitlines()) == 1


def test_a_folder_that_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        SkyReelsV2(tmp_path / "absent", **SETTINGS)


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    SkyReelsV2(folder, **SETTINGS)
    assert capfd.readouterr() == ("", "")
