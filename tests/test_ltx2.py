"""LTX-2 on a tiny random checkpoint of the real classes: the published pipeline, chunk by chunk, with its sound."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tomllib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
import tiny_a2
import torch
import toys
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2ConditionPipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from facelock.assets import asset_dir
from facelock.blueprint import backbone_class
from facelock.blueprint.checkpoint import Checkpoint
from facelock.blueprint.ltx2 import LTX2, framed
from facelock.errors import (
    ConfigError,
    DeviceError,
    FaceLockError,
    InputError,
    InterruptedRunError,
    ModelError,
    NotFiniteError,
)
from facelock.pipeline import Pipeline
from facelock.protocols import Guide, SpeakingBackbone
from facelock.recipe import Recipe, load_recipe
from facelock.tuning import Speed
from facelock.tuning.placement import Placement
from facelock.tuning.plan import Plan
from facelock.video.writing import count_frames, probe

PROMPT = "a woman talks"
SIZE = (64, 96)
SETTINGS = {"size": SIZE, "fps": 24, "window": 17, "context": 9, "steps": 2, "audio_guidance_scale": 3.0}
PLAIN = {
    "stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0,
    "guidance_rescale": 0.0, "audio_guidance_rescale": 0.0, "audio_guidance_scale": 3.0, "use_cross_timestep": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_a2.save_ltx2(tmp_path_factory.mktemp("ltx2"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> LTX2:
    return LTX2(folder, **SETTINGS)


def past(count: int = 9) -> Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def person(name: str = "maria", seed: int = 1):
    crops = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    return replace(toys.identity(name), crops=crops)


def published(kind, folder: Path, seed: int, **options) -> tuple[Tensor, Tensor]:
    """What the published pipeline makes: (T, 3, H, W) frames and (C, n) sound."""
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        prompt=PROMPT, negative_prompt="", height=SIZE[0], width=SIZE[1], num_frames=17, frame_rate=24.0,
        num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(seed), output_type="pt",
        **(PLAIN | options),
    )  # fmt: skip
    return made.frames[0], made.audio[0]


# ---------------------------------------------------------------------- the same mathematics


def test_is_a_speaking_backbone_found_by_name(backbone: LTX2) -> None:
    assert backbone_class("ltx2") is LTX2
    assert isinstance(backbone, SpeakingBackbone)
    assert (backbone.chunk, backbone.first_chunk, backbone.context) == (8, 17, 9)
    assert backbone.sample_rate == tiny_a2.RATE
    assert set(backbone.modules) == {
        "text_encoder",
        "connectors",
        "transformer",
        "vae",
        "audio_vae",
        "vocoder",
    }
    with pytest.raises(ConfigError, match="ltx2"):
        backbone_class("ltx3")


@pytest.fixture
def short(backbone: LTX2, monkeypatch: pytest.MonkeyPatch) -> LTX2:
    """The backbone with as few sound latents as the published pipeline asks for."""
    length = round(17 / 24 * 25)
    monkeypatch.setattr(backbone, "_silence", lambda: torch.zeros(1, 2, length, 4))
    return backbone


def test_new_clip_equals_the_published_pipeline(folder: Path, short: LTX2) -> None:
    frames, heard = published(LTX2ConditionPipeline, folder, seed=3)
    found, sound = short.extend_with_sound(PROMPT, None, seed=3)
    assert found.shape == frames.shape == (17, 3, *SIZE)
    assert (found - frames).abs().max() < 1e-4
    assert sound.lead == 0
    assert (sound.samples - heard).abs().max() < 1e-4
    assert float(heard.std()) > 0.01
    other, _ = short.extend_with_sound(PROMPT, None, seed=4)
    assert (other - found).abs().max() > 0.05


def test_continuation_equals_the_published_pipeline(folder: Path, short: LTX2) -> None:
    condition = LTX2VideoCondition(past() * 255, index=0, strength=1.0)
    frames, heard = published(LTX2ConditionPipeline, folder, seed=5, conditions=[condition])
    found, sound = short.extend_with_sound(PROMPT, past(), seed=5)
    assert found.shape == (8, 3, *SIZE)
    assert (found - frames[9:]).abs().max() < 1e-4
    begin = 9 * 1000 - sound.lead
    assert sound.lead == 1200
    assert (sound.samples - heard[:, begin:]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("variant", "options", "theirs"),
    [
        ({"perturbed_attn": True}, {"stg_scale": 1.0, "stg_block": 1}, {"stg_scale": 1.0, "audio_stg_scale": 1.0}),
        (
            {"cross_attn_mod": True, "audio_cross_attn_mod": True},
            {"modality_scale": 3.0, "guidance_rescale": 0.7},
            {"modality_scale": 3.0, "audio_modality_scale": 3.0, "guidance_rescale": 0.7,
             "audio_guidance_rescale": 0.7, "use_cross_timestep": True},
        ),
    ],
    ids=["skipped attention", "as LTX-2.3"],
)  # fmt: skip
def test_variants_equal_the_published_pipeline(
    tmp_path: Path, variant: dict, options: dict, theirs: dict
) -> None:
    tiny_a2.save_ltx2(tmp_path, **variant)
    blocks = {"spatio_temporal_guidance_blocks": [1] if "stg_scale" in options else None}
    condition = LTX2VideoCondition(past() * 255, index=0, strength=1.0)
    frames, _ = published(LTX2ConditionPipeline, tmp_path, 1, conditions=[condition], **theirs, **blocks)
    mine, plain = LTX2(tmp_path, **SETTINGS, **options), LTX2(tmp_path, **SETTINGS)
    mine._silence = plain._silence = lambda: torch.zeros(1, 2, 18, 4)
    found = mine.extend(PROMPT, past(), seed=1)
    assert (found - frames[9:]).abs().max() < 1e-4
    assert (found - plain.extend(PROMPT, past(), seed=1)).abs().max() > 1e-3


# ---------------------------------------------------------------------- lengths


@pytest.mark.parametrize(("window", "fps"), [(20, 24), (17, 30), (33, 8)])
def test_frames_and_sound_are_exactly_as_long_as_asked(folder: Path, window: int, fps: float) -> None:
    backbone = LTX2(folder, **(SETTINGS | {"window": window, "fps": fps, "steps": 1}))
    frames, sound = backbone.extend_with_sound(PROMPT, None, seed=1)
    assert len(frames) == window
    assert sound.samples.shape[1] >= math.ceil(window / fps * sound.rate)
    frames, sound = backbone.extend_with_sound(PROMPT, past(), seed=1)
    assert len(frames) == window - 9 == backbone.chunk
    assert sound.samples.shape[1] - sound.lead >= math.ceil((window - 9) / fps * sound.rate)


def test_the_later_vocoder_speaks_at_48_khz(tmp_path: Path) -> None:
    backbone = LTX2(tiny_a2.save_ltx2(tmp_path, wide=True), **SETTINGS)
    _, sound = backbone.extend_with_sound(PROMPT, past(), seed=1)
    assert sound.rate == backbone.sample_rate == 48_000
    assert sound.lead == 2400
    assert sound.samples.shape[1] - sound.lead >= 8 * 2000


def test_the_context_matters_and_so_does_its_noise(folder: Path, backbone: LTX2) -> None:
    made = backbone.extend(PROMPT, past(), seed=1)
    assert torch.equal(made, backbone.extend(PROMPT, past(), seed=1))
    changed = past()
    changed[-1] = 1 - changed[-1]
    for other in (changed, past().flip(0), past() * 0.5):
        assert (made - backbone.extend(PROMPT, other, seed=1)).abs().max() > 1e-3
    noisy = LTX2(folder, **SETTINGS, context_noise=0.3).extend(PROMPT, past(), seed=1)
    assert (made - noisy).abs().max() > 1e-3


def test_the_past_stays_clean_while_the_rest_is_denoised(backbone: LTX2, monkeypatch) -> None:
    seen, transformer = [], backbone.modules["transformer"]
    forward = transformer.forward

    def noted(**inputs):
        seen.append((inputs["hidden_states"][0, :12].clone(), inputs["timestep"][0]))
        return forward(**inputs)

    monkeypatch.setattr(transformer, "forward", noted)
    backbone.extend(PROMPT, past(), seed=1)
    assert len(seen) == 2
    assert torch.equal(seen[0][0], seen[1][0])  # 2 latents of 2 x 3 tokens
    assert (seen[0][1][:12] == 0).all() and (seen[0][1][12:] > 0).all()


# ---------------------------------------------------------------------- references, guide, place


def test_pictures_of_two_characters_are_references_in_context(folder: Path, backbone: LTX2, caplog) -> None:
    two = [person("maria", 1), person("tom", 2)]
    asked = LTX2(folder, **SETTINGS, reference_strength=1.0)
    none = backbone.extend(PROMPT, past(), seed=1)
    assert torch.equal(none, backbone.extend(PROMPT, past(), seed=1, references=two))  # not asked for
    both = asked.extend(PROMPT, past(), seed=1, references=two)
    assert both.shape == none.shape
    first = asked.extend(PROMPT, past(), seed=1, references=two[:1])
    found = [both, first, asked.extend(PROMPT, past(), seed=1, references=[two[0], person("tom", 3)])]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (found[one] - found[other]).abs().max() > 1e-3
    with caplog.at_level(logging.WARNING):
        bare = asked.extend(PROMPT, past(), seed=1, references=[toys.identity("ann")])
        asked.extend(PROMPT, past(), seed=1, references=[toys.identity("ann")])
    assert torch.equal(bare, none)
    assert [record.getMessage() for record in caplog.records].count(
        "No picture is kept of ann: the blueprint goes by the prompt."
    ) == 1


def test_a_reference_is_shown_whole_in_the_middle() -> None:
    picture = framed(torch.ones(3, 40, 40), SIZE)
    assert picture.shape == (3, *SIZE)
    assert (picture[:, :, 16:80] > 0.999).all()
    assert (picture[:, :, :16] == 0.5).all() and (picture[:, :, 80:] == 0.5).all()


def test_the_guide_sees_and_edits_clean_latents(folder: Path, backbone: LTX2) -> None:
    seen, begun = [], []

    class Look:
        def begin(self, references) -> None:
            begun.append([identity.name for identity in references])

        def __call__(self, x0: Tensor, sigma: float, step: int, known: int) -> Tensor:
            seen.append((x0.shape, sigma, step, known))
            return x0

    class Erase(Look):
        def __call__(self, x0: Tensor, *_: float) -> Tensor:
            return torch.zeros_like(x0)

    assert isinstance(Look(), Guide)
    looking = LTX2(folder, **SETTINGS, guide=Look())
    kept = looking.extend(PROMPT, past(), seed=1, references=[person()])
    assert begun == [["maria"]]
    assert (kept - backbone.extend(PROMPT, past(), seed=1)).abs().max() == 0
    assert [call[0] for call in seen] == [(1, 8, 3, 2, 3)] * 2
    assert [call[2:] for call in seen] == [(0, 2), (1, 2)]
    assert seen[0][1] == pytest.approx(1.0)
    assert 0 < seen[1][1] < 1
    backbone = LTX2(folder, **SETTINGS, guide=Erase())
    latents, _ = backbone._denoise(backbone._texts(PROMPT), None, 1, [])
    assert latents.shape == (1, 8, 3, 2, 3)
    assert latents.abs().max() < 1e-5


def test_place_gets_every_network_and_steps_are_told(folder: Path) -> None:
    placed, steps = {}, []
    backbone = LTX2(folder, **SETTINGS, place=placed.update, on_step=lambda *step: steps.append(step))
    assert set(placed) == set(backbone.modules)
    backbone.extend(PROMPT, None, seed=1)
    assert steps == [(1, 2), (2, 2)]


def test_prompts_are_read_once(folder: Path, monkeypatch) -> None:
    backbone = LTX2(folder, **(SETTINGS | {"steps": 1}))
    read, encoder = [], backbone.modules["text_encoder"]
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda **inputs: read.append(1) or forward(**inputs))
    for seed in range(3):
        backbone.extend(PROMPT, None, seed=seed)
    assert len(read) == 2  # the prompt and the negative one


def test_bfloat16_runs_and_its_sound_stays_float32(folder: Path) -> None:
    backbone = LTX2(folder, **SETTINGS, precision="bfloat16")
    frames, sound = backbone.extend_with_sound(PROMPT, past(), seed=1)
    assert frames.dtype == sound.samples.dtype == torch.float32
    assert next(backbone.modules["transformer"].parameters()).dtype == torch.bfloat16
    assert next(backbone.modules["vocoder"].parameters()).dtype == torch.float32


# ---------------------------------------------------------------------- a clip


def spine(backbone: LTX2, **parts):
    values = {"model": "tiny", "size": list(SIZE), "fps": 24, "window": 17, "context": 9, "steps": 2}
    blueprint = {**values, "guidance_scale": 3.0}
    pipeline = toys.pipeline(toys.Parts(backbone=backbone, **parts), blueprint=blueprint)
    cast = [person("maria", 1), person("tom", 2)]
    return pipeline.generate(PROMPT, cast, seconds=Fraction(41, 24), seed=3)  # 17 + 8 + 8 + 8 frames


@pytest.fixture(scope="module")
def whole(backbone: LTX2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    spine(backbone).save(path)
    return path


def test_four_chunks_of_two_characters_become_a_clip_with_sound(whole: Path) -> None:
    assert count_frames(whole) == 41
    assert probe(whole).audio == ("aac",)
    with av.open(str(whole)) as file:
        track = file.streams.audio[0]
        assert abs(float(track.duration * track.time_base) - 41 / 24) <= 1024 / 48_000
        levels = [float(abs(frame.to_ndarray()).max()) for frame in file.decode(audio=0)]
    assert min(levels[:-2]) > 0.01  # no gap anywhere


def test_resumed_equals_uninterrupted(backbone: LTX2, whole: Path, tmp_path: Path) -> None:
    class Dying:
        """Stops in the third chunk."""

        def __init__(self) -> None:
            self.calls = 0

        def __getattr__(self, name: str):
            return getattr(backbone, name)

        def extend(self, *args, **options):
            return self.extend_with_sound(*args, **options)[0]

        def extend_with_sound(self, *args, **options):
            self.calls += 1
            if self.calls == 3:
                raise InterruptedRunError("Stopped. Give the same command again.")
            return backbone.extend_with_sound(*args, **options)

    path = tmp_path / "clip.mp4"
    with pytest.raises(InterruptedRunError):
        spine(Dying()).save(path)
    spine(backbone).save(path)
    assert path.read_bytes() == whole.read_bytes()


def test_not_finite_latents_are_one_sentence_and_keep_what_is_made(
    backbone: LTX2, tmp_path: Path, monkeypatch
) -> None:
    transformer, calls = backbone.modules["transformer"], []
    forward = transformer.forward

    def broken(**inputs):
        calls.append(1)
        video, sound = forward(**inputs)
        return video * (math.nan if len(calls) == 4 else 1), sound  # step 2 of chunk 1

    monkeypatch.setattr(transformer, "forward", broken)
    with pytest.raises(
        FaceLockError, match=r"not finite after denoising step 2 of 2. Try another seed"
    ) as caught:
        spine(backbone).save(tmp_path / "clip.mp4")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "clip.mp4.partial" / "00000.json").exists()


def test_not_finite_latents_are_tried_once_more_in_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = LTX2(folder, **SETTINGS, precision="bfloat16")
    before = {name: p.dtype for name, p in backbone.modules["transformer"].named_parameters()}
    seen = tiny_a2.poisoned(backbone, monkeypatch, {1})
    with caplog.at_level(logging.WARNING):
        frames = backbone.extend(PROMPT, past(), seed=1)
    steps = backbone.steps
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * steps
    assert f"step 2 of {steps}" in caplog.text and "once more in float32" in caplog.text
    assert torch.isfinite(frames).all() and frames.dtype == torch.float32
    assert {name: p.dtype for name, p in backbone.modules["transformer"].named_parameters()} == before
    assert not backbone.modules["transformer"]._forward_pre_hooks
    whole = LTX2(folder, **SETTINGS)
    assert float((frames - whole.extend(PROMPT, past(), seed=1)).abs().mean()) < 0.02


@pytest.mark.parametrize(
    ("bound", "calls"), [(False, [torch.bfloat16, torch.float32]), (True, [torch.bfloat16])]
)
def test_latents_that_stay_not_finite_are_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bound: bool, calls: list[torch.dtype]
) -> None:
    plan = Plan(groups=1) if bound else Plan()
    place = Placement(torch.device("cpu"), Speed(), plan, steps=SETTINGS["steps"])
    backbone = LTX2(folder, **SETTINGS, precision="bfloat16", place=place)
    seen = tiny_a2.poisoned(backbone, monkeypatch, range(99))
    with pytest.raises(NotFiniteError, match=r"not finite after denoising step 1 of") as caught:
        backbone.extend(PROMPT, None, seed=1)
    assert seen == calls and len(str(caught.value).splitlines()) == 1
    assert ("was not tried again in float32, because the memory plan" in str(caught.value)) == bound


@pytest.mark.parametrize("part", ["vae", "vocoder"])
def test_pictures_or_sound_that_are_not_finite_are_refused(backbone: LTX2, monkeypatch, part: str) -> None:
    network = backbone.modules[part]
    name = "decode" if part == "vae" else "forward"
    real = getattr(network, name)

    def broken(*inputs, **options):
        made = real(*inputs, **options)
        return (made[0] * math.nan,) if part == "vae" else made * math.nan

    monkeypatch.setattr(network, name, broken)
    with pytest.raises(FaceLockError, match="VAE gave" if part == "vae" else "sound holds"):
        backbone.extend(PROMPT, None, seed=1)


def test_out_of_memory_is_one_sentence(backbone: LTX2, monkeypatch) -> None:
    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(backbone.modules["transformer"], "forward", full)
    with pytest.raises(DeviceError, match=r"ran out of memory on cpu. Choose a smaller"):
        backbone.extend(PROMPT, None, seed=1)


def test_a_decoder_short_of_memory_goes_on_in_tiles(folder: Path, monkeypatch, caplog) -> None:
    backbone = LTX2(folder, **SETTINGS)
    whole = backbone.extend(PROMPT, None, seed=1)
    vae, calls = backbone.modules["vae"], []
    decode = vae.decode

    def full_at_first(*inputs, **options):
        calls.append(vae.use_tiling)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("full")
        return decode(*inputs, **options)

    monkeypatch.setattr(vae, "decode", full_at_first)
    with caplog.at_level(logging.WARNING):
        tiled = backbone.extend(PROMPT, None, seed=1)
    assert calls == [False, True]
    assert tiled.shape == whole.shape
    assert "in tiles" in caplog.text


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": (64, 80)}, r"size = \(64, 80\). Give n \* 32"),
        ({"size": (32, 64)}, r"size = \(32, 64\). Give 64 or more"),
        ({"context": 8}, r"context = 8. Give n \* 8 \+ 1 frames"),
        ({"context": 17}, "context = 17. Give less than the window, 17"),
        ({"steps": 0}, "steps = 0. Give 1 or more"),
        ({"context_noise": 0.6}, "context_noise = 0.6. Give between 0 and 0.5"),
        ({"reference_strength": 1.5}, "reference_strength = 1.5. Give between 0 and 1"),
        ({"flow_shift": 3.0}, "Leave flow_shift out"),
        ({"precision": "float16"}, "float16 takes hours on a CPU"),
        ({"precision": "int3"}, "No precision is called 'int3'"),
        ({"stg_scale": 1.0}, "no attention to skip. Give stg_scale = 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(folder: Path, changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        LTX2(folder, **(SETTINGS | changes))
    assert "\n" not in str(caught.value)


def test_a_block_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tiny_a2.save_ltx2(tmp_path, perturbed_attn=True)
    with pytest.raises(ConfigError, match=r"stg_block = 29. Give 0 to 1"):
        LTX2(tmp_path, **SETTINGS, stg_scale=1.0)


@pytest.mark.parametrize(
    "context", [torch.zeros(8, 3, *SIZE), torch.zeros(9, 3, 64, 64), torch.full((9, 3, *SIZE), math.nan)]
)
def test_a_context_of_another_shape_is_refused(backbone: LTX2, context: Tensor) -> None:
    with pytest.raises(InputError, match=r"The context"):
        backbone.extend(PROMPT, context, seed=1)


def _weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def spoil(path: Path, how: str) -> None:
    weights = load_file(path)
    name = sorted(weights)[0]
    if how == "missing":
        del weights[name]
    elif how == "shape":
        weights[name] = torch.zeros(3, 5, 7)
    else:
        weights[name] = torch.full_like(weights[name], math.nan)
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("part", "how"),
    [
        ("transformer", "missing"), ("transformer", "cut"), ("connectors", "nan"), ("audio_vae", "shape"),
        ("vocoder", "missing"), ("vocoder", "gone"), ("vae", "pickle"),
    ],
)  # fmt: skip
def test_weights_that_are_wrong_or_missing_are_one_sentence(copied: Path, part: str, how: str) -> None:
    path = _weights(copied, part)
    if how == "gone":
        shutil.rmtree(path.parent)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "pickle":
        path.rename(path.with_suffix(".bin"))
    else:
        spoil(path, how)
    with pytest.raises(ModelError, match=part) as caught:
        LTX2(copied, **SETTINGS)
    assert len(str(caught.value)) < 500


def test_another_pipeline_or_vocoder_is_refused(copied: Path) -> None:
    index = copied / "model_index.json"
    told = json.loads(index.read_text())
    index.write_text(json.dumps(told | {"_class_name": "WanPipeline"}))
    with pytest.raises(ModelError, match="holds a WanPipeline"):
        LTX2(copied, **SETTINGS)
    index.write_text(json.dumps(told))
    config = copied / "vocoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "Evil"}))
    with pytest.raises(ModelError, match="vocoder"):
        LTX2(copied, **SETTINGS)


def test_networks_that_do_not_fit_each_other_are_refused(copied: Path, tmp_path: Path) -> None:
    tiny_a2.ltx2_transformer(in_channels=16, out_channels=16).save_pretrained(copied / "transformer")
    with pytest.raises(ModelError, match="takes 16 and 8 channels, the autoencoders make 8 and 8"):
        LTX2(copied, **SETTINGS)


# ---------------------------------------------------------------------- by a recipe


def test_the_recipe_fits_the_published_configuration(folder: Path, monkeypatch) -> None:
    """The published networks without their weights stand in for the checkpoint, but for the text encoder."""
    with torch.device("meta"):
        networks = {
            "connectors": LTX2TextConnectors(), "transformer": LTX2VideoTransformer3DModel(),
            "vae": AutoencoderKLLTX2Video(spatial_compression_ratio=32, temporal_compression_ratio=8),
            "audio_vae": AutoencoderKLLTX2Audio(), "vocoder": LTX2Vocoder(),
        }  # fmt: skip
    words = tiny_a2.gemma_tokenizer()
    networks["text_encoder"] = tiny_a2.gemma(len(words))
    found = Checkpoint(networks, words, tiny_a2.FlowMatchEulerDiscreteScheduler(), {})
    monkeypatch.setattr("facelock.blueprint.base.load_checkpoint", lambda *_, **__: found)
    low = load_recipe("ltx-2").blueprint
    backbone = LTX2(
        "anywhere", size=low.size, fps=float(low.fps), window=low.window, context=low.context, steps=low.steps,
        guidance_scale=low.guidance_scale, precision=low.precision, flow_shift=low.flow_shift, **low.options,
    )  # fmt: skip
    assert (backbone.first_chunk, backbone.chunk, backbone.sample_rate) == (121, 96, 24_000)
    assert backbone._latents(low.window) == 16
    assert backbone._asked() == 121
    assert backbone._silence().shape == (1, 8, 127, 16)  # 126 latents end 31 ms before the pictures


def test_the_published_weights_are_asked_for_by_name(monkeypatch) -> None:
    monkeypatch.setattr("facelock.assembly.backbone_class", lambda kind: pytest.fail("loaded"))
    with pytest.raises(FaceLockError, match="facelock models pull --only ltx-2 "):
        Pipeline.from_recipe("ltx-2", device="cpu")


def test_a_recipe_makes_a_clip_that_speaks(folder: Path, tmp_path: Path) -> None:
    values = tomllib.loads((asset_dir("pipelines") / "default.toml").read_text())
    values["blueprint"] = {
        "kind": "ltx2", "model": str(folder), "size": [64, 64], "fps": 24, "window": 17, "context": 9, "steps": 1,
        "guidance_scale": 3.0, "anchor": 0.2, "options": {"audio_guidance_scale": 2.0, "reference_strength": 0.5},
    }  # fmt: skip
    pipeline = Pipeline.from_recipe(Recipe.model_validate(values), device="cpu")
    faces = [Path(__file__).parents[1] / "samples" / "faces" / f"{name}.png" for name in ("maria", "tom")]
    clip = pipeline.generate(PROMPT, faces, seconds=Fraction(26, 24))
    report = clip.save(tmp_path / "clip.mp4")
    assert pipeline.parts.backbone.reference_strength == 0.5
    assert report.frames == count_frames(tmp_path / "clip.mp4") == 26
    assert probe(tmp_path / "clip.mp4").audio == ("aac",)
