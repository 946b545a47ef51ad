"""The core of ``faceid`` on tiny random checkpoints of the real classes, loaded from the disk as published ones are."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_portrait as tiny
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from facelock.errors import ConfigError, DeviceError, ModelError
from facelock.portrait import BUFFALO_L, PortraitDiffusion, PortraitSettings, adapter, diffusion

ENCODER = f"buffalo@{BUFFALO_L}"
STEPS = 2
KINDS = [(False, 4, None), (False, 4, "face"), (False, 9, "face"), (True, 4, None), (True, 9, "face")]
"""SDXL or not, the UNet's channels, the mask."""


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Folder and adapter of a kind, made once."""
    root, made = tmp_path_factory.mktemp("portrait"), {}

    def get(large: bool = False, channels: int = 4) -> tuple[Path, Path]:
        if (large, channels) not in made:
            folder = tiny.checkpoint(root / f"sd-{large}-{channels}", large=large, channels=channels)
            file = root / f"faceid-{large}-{channels}.bin"
            made[large, channels] = folder, tiny.save_adapter(file, tiny.faceid(tiny.unet(large, channels)))
        return made[large, channels]

    return get


def opened(files: tuple[Path, Path], **changes) -> PortraitDiffusion:
    settings = {"prompt": "a face", "steps": STEPS, **changes}
    return PortraitDiffusion(
        files[0], adapter=files[1], encoder=ENCODER, batch=3, settings=PortraitSettings(**settings)
    )


@pytest.fixture(scope="module")
def core(shelf):
    return opened(shelf())


def faces(count: int = 4):
    draw = torch.Generator().manual_seed(4)
    crops = torch.rand(count, 3, tiny.SIDE, tiny.SIDE, generator=draw)
    return crops, normalize(torch.randn(count, 512, generator=draw), dim=1)


def distance(a, b):
    return float((a - b).abs().mean())


# ------------------------------------------------------------------ what it does


@pytest.mark.parametrize(("large", "channels", "mask"), KINDS)
def test_every_family_is_told_the_identity_and_each_face_stands_alone(shelf, large, channels, mask):
    core = opened(shelf(large, channels), mask=mask)
    assert core.crop.size == tiny.SIDE and core.dimension == 512 and set(core.modules) == {"unet", "vae"}
    crops, identity = faces()
    made = core.repaint(crops, identity, 0.6)
    assert made.shape == crops.shape and made.dtype == torch.float32
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    assert distance(core.repaint(crops, identity.flip(0), 0.6), made) > 1e-4
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(core.repaint(crops[order], identity[order], 0.6), made[order])
    assert torch.equal(core.repaint(crops[2:3], identity[2:3], 0.6)[0], made[2])


def with_lora(unet, state):
    """The LoRA as it is defined, beside the layers instead of in them."""

    def beside(down, up):
        return lambda _, given, out: out + given[0] @ down.T @ up.T

    for number, name in enumerate(unet.attn_processors):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("q", "k", "v", "out"):
            layer = attention.to_out[0] if part == "out" else getattr(attention, f"to_{part}")
            pair = (state["ip_adapter"][f"{number}.to_{part}_lora.{half}.weight"] for half in ("down", "up"))
            layer.register_forward_hook(beside(*pair))


def test_it_is_the_published_pipeline(shelf, core):
    """The same numbers as diffusers gives, which loads the file and encodes the prompt by itself."""
    folder, file = shelf()
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(1.0)
    if not getattr(pipe.unet, "peft_config", None):  # without peft diffusers leaves the LoRA out
        with_lora(pipe.unet, adapter.read_adapter(file))
    crops, identity = faces(1)
    ids = identity.view(1, 1, 1, 512)
    with torch.no_grad():
        latents = pipe.vae.encode(crops * 2 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    theirs = pipe(
        "a face", image=latents, strength=0.5, num_inference_steps=2 * STEPS, guidance_scale=3.0,
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(ids), ids])], output_type="pt",
        generator=torch.Generator().manual_seed(diffusion.NOISE),
    ).images  # fmt: skip
    assert torch.allclose(core.repaint(crops, identity, 0.5), theirs, atol=1e-5)


def test_strength_is_the_share_of_noise(core):
    crops, identity = faces(2)
    with torch.no_grad():
        plain = core._decode(core._encode(crops * 2 - 1))
    steps = [distance(core.repaint(crops, identity, s), plain) for s in (0.01, 0.2, 0.6, 1.0)]
    assert steps == sorted(steps) and steps[0] < 0.25 * steps[-1]
    assert torch.equal(core.repaint(crops, identity, 0.0), crops)
    assert core.repaint(crops[:0], identity[:0], 0.5).shape == (0, 3, tiny.SIDE, tiny.SIDE)
    for wrong in (-0.1, 1.2, float("nan")):
        with pytest.raises(ConfigError, match="strength"):
            core.repaint(crops, identity, wrong)
    with pytest.raises(ValueError, match="are wanted"):
        core.repaint(crops, identity[:1], 0.5)
    with pytest.raises(
        ModelError, match="takes embeddings of 512 numbers, the recogniser in the loop gives 128"
    ):
        core.repaint(crops, identity[:, :128], 0.5)


def test_every_rung_runs_the_same_number_of_steps(shelf):
    for sampler in ("ddim", "euler", "lcm"):
        core = opened(shelf(), sampler=sampler, steps=3)
        for strength in [*(k / 100 for k in range(10, 101)), 1 / 3, 0.29999999]:
            assert int(core.schedule(strength) * strength) == 3, (sampler, strength)
    assert opened(shelf(), steps=100).schedule(0.0005) == 0
    counted = []
    core._pipeline.unet.register_forward_hook(lambda *_: counted.append(1))
    core.repaint(*faces(1), 0.35)
    assert len(counted) == 3


@pytest.mark.parametrize("sampler", ["euler", "lcm"])
def test_noise_is_the_same_wherever_a_face_stands(shelf, sampler):
    core = opened(shelf(), sampler=sampler)
    crops, identity = (t[:1].expand(3, *t.shape[1:]).clone() for t in faces(1))
    made = core.repaint(crops, identity, 0.8)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert torch.equal(core.repaint(crops, identity, 0.8), made)


def test_batches_are_padded_to_one_size(shelf, core, monkeypatch):
    monkeypatch.setattr(diffusion, "CPU_ROWS", 3)
    several, rows = opened(shelf()), []
    assert (several.batch, core.batch) == (3, 1)
    several._pipeline.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    crops, identity = faces(4)
    made = several.repaint(crops, identity, 0.6)
    assert rows == [6] * (2 * STEPS)
    assert torch.allclose(made, core.repaint(crops, identity, 0.6), atol=1e-4)
    assert torch.equal(several.repaint(crops[3:], identity[3:], 0.6)[0], made[3])
    assert torch.equal(several.repaint(crops[:1], identity[:1], 0.6)[0], made[0])


@pytest.mark.parametrize("channels", [4, 9])
def test_a_mask_leaves_all_other_pixels_as_they_are(shelf, channels):
    core = opened(shelf(False, channels), mask="face")
    share = diffusion.face_mask(core.crop)
    assert float(share.max()) == 1 and 0.2 < float((share > 0).float().mean()) < 0.8
    assert float(share[:2].max()) == 0
    for x, y in core.crop.template:
        assert float(share[round(y), round(x)]) > 0.9
    crops, identity = faces(2)
    made = core.repaint(crops, identity, 0.9)
    outside = (share == 0).expand_as(made)
    assert torch.equal(made[outside], crops[outside])
    assert distance(made[~outside], crops[~outside]) > 0.02
    changed = crops.clone()
    changed[..., share > 0] = 0.5
    if channels == 9:  # what is under the mask is seen through the latents only, and at strength 1 not at all
        assert torch.allclose(
            core.repaint(changed, identity, 1.0)[..., share == 1],
            core.repaint(crops, identity, 1.0)[..., share == 1],
            atol=1e-4,
        )


def test_the_prompt_is_encoded_once_and_matters(shelf, core, caplog):
    crops, identity = faces(1)
    made = core.repaint(crops, identity, 0.8)
    assert core._pipeline.text_encoder is None  # let go: nothing can be encoded any more
    assert distance(opened(shelf(), prompt="a wall").repaint(crops, identity, 0.8), made) > 1e-5
    assert not torch.equal(opened(shelf(), guidance_scale=1.0).repaint(crops, identity, 0.8), made)
    with caplog.at_level(logging.WARNING):
        opened(shelf(), prompt="a face " * 20)
    assert caplog.text.count("it is cut") == 1


def test_both_formats_and_a_folder_of_them(shelf, core, tmp_path):
    folder, file = shelf()
    crops, identity = faces(2)
    made = core.repaint(crops, identity, 0.6)
    state = adapter.read_adapter(file)
    safe = tiny.save_adapter(tmp_path / "ip-adapter-faceid_sd15.safetensors", state)
    shutil.copy(file, tmp_path / "ip-adapter-faceid_sd15.bin")
    save_file({"x": torch.zeros(1)}, tmp_path / "ip-adapter-faceid_sd15_lora.safetensors")
    for given in (safe, tmp_path):
        assert torch.equal(opened((folder, given)).repaint(crops, identity, 0.6), made)


def test_the_adapters_lora_acts_and_its_scale_too(shelf, core, tmp_path):
    folder, file = shelf()
    crops, identity = faces(1)
    made = core.repaint(crops, identity, 0.8)
    none = opened(shelf(), adapter_scale=0.0).repaint(crops, identity, 0.8)
    assert distance(none, made) > 1e-5
    state = adapter.read_adapter(file)
    state["ip_adapter"] = {k: v for k, v in state["ip_adapter"].items() if "lora" not in k}
    bare = opened((folder, tiny.save_adapter(tmp_path / "bare.bin", state)), adapter_scale=0.0)
    assert distance(bare.repaint(crops, identity, 0.8), none) > 1e-5


def test_bfloat16(shelf, core):
    crops, identity = faces(1)
    made = opened(shelf(), precision="bfloat16").repaint(crops, identity, 0.6)
    assert made.dtype == torch.float32
    assert 0 < distance(made, core.repaint(crops, identity, 0.6)) < 0.02


def test_nothing_is_fetched(shelf, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    opened(shelf(), steps=1).repaint(*faces(1), 0.5)


# ------------------------------------------------------------------ what goes wrong while it runs


@pytest.mark.parametrize("rows", [1, 3])
def test_not_finite_is_tried_once_more_in_float32(shelf, caplog, monkeypatch, rows):
    """The face that failed, that is: those that shared its batch keep their bits."""
    monkeypatch.setattr(diffusion, "CPU_ROWS", rows)
    core = opened(shelf(), precision="bfloat16")
    sane, calls = core.repaint(*faces(3), 0.6), []

    def spoil(_, __, out):
        calls.append(1)
        if out[0].dtype == torch.bfloat16 and (rows == 3 or STEPS < len(calls) <= 2 * STEPS):
            out[0][1 % rows] *= float("nan")
        return out

    core._pipeline.unet.register_forward_hook(spoil)
    with caplog.at_level(logging.WARNING):
        made = core.repaint(*faces(3), 0.6)
    assert caplog.text.count("once more in float32") == 1
    assert torch.equal(made[0], sane[0]) and torch.equal(made[2], sane[2])
    assert 0 < distance(made[1], sane[1]) < 0.02
    assert next(core._pipeline.unet.parameters()).dtype == torch.bfloat16


def test_a_face_that_stays_not_finite_is_nan_and_the_step_is_said_once(shelf, caplog):
    core, calls = opened(shelf(), steps=4), []
    sane = core.repaint(*faces(2), 0.6)

    def spoil(_, __, out):
        calls.append(1)
        return (out[0] * float("inf"),) if len(calls) == 3 else out

    core._pipeline.unet.register_forward_hook(spoil)
    with caplog.at_level(logging.WARNING):
        made = core.repaint(*faces(2), 0.6)
        calls.clear()
        core.repaint(*faces(1), 0.6)
    assert bool(made[0].isnan().all()) and torch.equal(made[1], sane[1])
    assert caplog.text.count("its latents after denoising step 3 of 4, also in float32") == 1


def test_an_autoencoder_that_is_not_finite_repaints_nobody(shelf, caplog):
    core = opened(shelf())
    core._pipeline.vae.decoder.register_forward_hook(lambda *given: given[-1] * float("nan"))
    with caplog.at_level(logging.WARNING):
        assert bool(core.repaint(*faces(1), 0.6).isnan().all())
    assert "what the autoencoder makes of them" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch_once(shelf, monkeypatch, caplog, error):
    monkeypatch.setattr(diffusion, "CPU_ROWS", 4)
    core = PortraitDiffusion(
        shelf()[0], adapter=shelf()[1], encoder=ENCODER, batch=4, settings=PortraitSettings("a", steps=STEPS)
    )
    room = [4]

    def full(_, given):
        if len(given[0]) > room[0]:
            raise error

    core._pipeline.unet.register_forward_pre_hook(full)
    crops, identity = faces(4)
    with caplog.at_level(logging.WARNING):
        made = core.repaint(crops, identity, 0.6)
    assert core.batch == 2 and caplog.text.count("from now on 2 faces at once") == 1
    assert made.shape == crops.shape
    room[0] = 2
    with pytest.raises(DeviceError, match=r"ran out of memory on cpu with 2 faces.*lock\.batch"):
        core.repaint(crops, identity, 0.6)


def test_a_lost_device_is_one_sentence(shelf):
    core = opened(shelf())

    def lost(*_):
        raise RuntimeError("CUDA error: device-side assert triggered\nmore\nlines")

    core._pipeline.unet.register_forward_pre_hook(lost)
    with pytest.raises(DeviceError, match="device-side assert") as caught:
        core.repaint(*faces(1), 0.6)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ what is refused


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def plus(state):
    return {**state, "image_proj": {"perceiver_resampler.proj_in.weight": torch.zeros(2, 2)}}


def picture(state):
    return {**state, "image_proj": {"proj.weight": torch.zeros(2, 2), "norm.weight": torch.zeros(2)}}


def poisoned(state):
    own = dict(state["ip_adapter"])
    own["1.to_k_ip.weight"] = own["1.to_k_ip.weight"] * float("nan")
    return {**state, "ip_adapter": own}


def wrong_shape(state):
    own = dict(state["ip_adapter"])
    own["1.to_k_ip.weight"] = torch.zeros(3, 3)
    return {**state, "ip_adapter": own}


def half_lora(state):
    own = {k: v for k, v in state["ip_adapter"].items() if k != "1.to_v_lora.up.weight"}
    return {**state, "ip_adapter": own}


STATES = {
    "plus": (plus, "FaceID Plus"),
    "picture": (picture, "another kind, not FaceID"),
    "tokens": (lambda _: tiny.faceid(tiny.unet(), tokens=16), "makes 16 tokens"),
    "sdxl": (lambda _: tiny.faceid(tiny.unet(large=True)), "SD 1.5 or SDXL"),
    "nan": (poisoned, "not finite"),
    "shape": (wrong_shape, "does not fit the UNet"),
    "half lora": (half_lora, "does not fit the UNet"),
    "empty": (lambda _: {"image_proj": {}, "ip_adapter": {}}, "no IP-Adapter"),
    "list": (lambda _: [1, 2], "no IP-Adapter"),
    "other": (lambda _: {"weight": torch.zeros(2)}, "no IP-Adapter"),
}


@pytest.mark.parametrize("kind", STATES)
def test_adapters_that_cannot_be_used(shelf, tmp_path, kind):
    change, reason = STATES[kind]
    folder, file = shelf()
    bad = tmp_path / "bad.bin"
    torch.save(change(adapter.read_adapter(file)), bad)
    with pytest.raises(ModelError, match=reason) as caught:
        opened((folder, bad))
    assert "bad.bin" in str(caught.value) and "\n" not in str(caught.value)


def test_adapter_files_that_are_damaged_run_no_code(shelf, tmp_path):
    folder, file = shelf()
    cases = {
        "none.bin": None,
        "junk.bin": b"junk" * 100,
        "empty.bin": b"",
        "cut.bin": file.read_bytes()[:-2000],
        "canary.bin": pickle.dumps(Canary(tmp_path / "ran"), protocol=2),
        "junk.safetensors": b"junk" * 100,
        "huge.safetensors": (2**60).to_bytes(8, "little") + b"{}",
    }
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError) as caught:
            opened((folder, tmp_path / name))
        assert name in str(caught.value)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "bare").mkdir()
    with pytest.raises(ModelError, match="holds no"):
        opened((folder, tmp_path / "bare"))
    with pytest.raises(ModelError, match="Name one"):
        opened((folder, tmp_path))


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def nan_weights(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.weight"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


FOLDERS = {
    "nothing": (lambda f: shutil.rmtree(f), "is not a folder"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    "junk index": (lambda f: (f / "model_index.json").write_text("{"), "is damaged"),
    "other kind": (
        lambda f: edit(f / "model_index.json", lambda v: v.update(_class_name="FluxPipeline")),
        "FluxPipeline, not Stable Diffusion",
    ),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "lacks its unet/ folder"),
    "no vae weights": (
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "vae holds no .safetensors file",
    ),
    "cut text encoder": (
        lambda f: (f / "text_encoder" / "model.safetensors").write_bytes(b"x" * 40),
        "text_encoder.*model.safetensors is damaged",
    ),
    "wrong shapes": (
        lambda f: edit(f / "unet" / "config.json", lambda v: v.update(block_out_channels=[16, 48])),
        "unet",
    ),
    "missing weights": (
        lambda f: edit(f / "text_encoder" / "config.json", lambda v: v.update(num_hidden_layers=3)),
        "lacks [0-9]+ weights",
    ),
    "nan": (nan_weights, "conv_in.weight holds values that are not finite"),
    "channels": (
        lambda f: tiny.unet(channels=7).save_pretrained(f / "unet"),
        "takes 7 channels",
    ),
    "says XL": (
        lambda f: edit(f / "model_index.json", lambda v: v.update(_class_name="StableDiffusionXLPipeline")),
        "lacks its tokenizer_2",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_checkpoints_that_cannot_be_used(shelf, tmp_path, kind):
    spoil, reason = FOLDERS[kind]
    folder, file = shelf()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spoil(copy)
    with pytest.raises(ModelError, match=reason) as caught:
        opened((copy, file))
    assert "copy" in str(caught.value) and "\n" not in str(caught.value)


def test_only_the_classes_named_here_are_made_whatever_the_index_says(shelf, core, tmp_path):
    folder, file = shelf()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit(copy / "model_index.json", lambda v: v.update(unet=["os", "system"], safety_checker=["x", "Y"]))
    assert torch.equal(opened((copy, file)).repaint(*faces(1), 0.5), core.repaint(*faces(1), 0.5))


def test_weights_that_come_as_fp16_only(shelf, core, tmp_path):
    folder, file = shelf()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for name in ("unet", "vae", "text_encoder"):
        (weights,) = (copy / name).glob("*.safetensors")
        weights.rename(weights.with_name(f"{weights.stem}.fp16.safetensors"))
    assert torch.equal(opened((copy, file)).repaint(*faces(1), 0.5), core.repaint(*faces(1), 0.5))


def test_settings_that_cannot_be(shelf):
    for changes, reason in [
        ({"precision": "float16"}, "float16 takes hours on a CPU"),
        ({"precision": "int8"}, "No precision"),
        ({"sampler": "magic"}, "No sampler"),
        ({"size": 30}, r"Give lock\.faceid\.size as n \* 4"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            opened(shelf(), **changes)
    with pytest.raises(ConfigError, match='Give mask = "face"'):
        opened(shelf(False, 9))
    assert opened(shelf(), size=48).crop.size == 48


def test_embeddings_of_another_recogniser_are_refused(shelf):
    folder, file = shelf()
    with pytest.raises(ConfigError, match="buffalo_l, but the recogniser in the loop is other@123"):
        PortraitDiffusion(folder, adapter=file, encoder="other@123456789abc")
    with pytest.raises(ConfigError, match="digest 123456789abc"):
        PortraitDiffusion(folder, adapter=file, encoder=ENCODER, trained_with="123456789abc")
