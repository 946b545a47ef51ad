"""ConsisID on a tiny random checkpoint of the real classes: one clip of a known face, and clear words for the rest."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

import published_sizes
import pytest
import tiny_a2
import torch
import toys
from diffusers import AutoencoderKLCogVideoX, ConsisIDPipeline, ConsisIDTransformer3DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from facelock.blueprint import backbone_class, refuse_continuation
from facelock.blueprint.checkpoint import Checkpoint
from facelock.blueprint.consisid import ConsisID
from facelock.blueprint.consisid_features import FeatureFolder, Features
from facelock.errors import ConfigError, DeviceError, FaceLockError, InputError, ModelError, NotFiniteError
from facelock.protocols import Backbone, SpeakingBackbone
from facelock.recipe import load_recipe
from facelock.tuning import Speed
from facelock.tuning.placement import Placement
from facelock.tuning.plan import Plan
from facelock.video.writing import count_frames

PROMPT, SIZE = "a woman talks", (32, 48)
SETTINGS = {"size": SIZE, "fps": 8, "window": 17, "context": 1, "steps": 3, "guidance_scale": 6.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("consisid")
    tiny_a2.consisid_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two persons' features."""
    path = tmp_path_factory.mktemp("features")
    for seed, name in enumerate(("maria", "tom")):
        save_file(tiny_a2.consisid_features(seed), path / f"{name}.safetensors")
    return path


@pytest.fixture(scope="module")
def backbone(folder: Path, known: Path) -> ConsisID:
    return ConsisID(folder, **SETTINGS, features=known)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def maria():
    return toys.identity("maria")


def tom():
    return toys.identity("tom")


def test_is_a_silent_backbone_found_by_name(backbone: ConsisID) -> None:
    assert backbone_class("consisid") is ConsisID
    assert isinstance(backbone, Backbone)
    assert not isinstance(backbone, SpeakingBackbone)
    assert backbone.first_chunk == backbone.chunk == 17
    assert set(backbone.modules) == {"text_encoder", "transformer", "vae"}


def test_the_clip_equals_the_published_pipeline(folder: Path, backbone: ConsisID) -> None:
    pipe = ConsisIDPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    face = tiny_a2.consisid_features(0)
    expected = pipe(
        image=Image.fromarray(face["picture"].permute(1, 2, 0).numpy()), prompt=PROMPT, negative_prompt="",
        id_cond=face["id_cond"], id_vit_hidden=[face[f"id_vit_hidden.{index}"] for index in range(5)],
        height=32, width=48, num_frames=17, num_inference_steps=3, guidance_scale=6.0, max_sequence_length=16,
        generator=torch.Generator().manual_seed(3), output_type="pt",
    ).frames[0]  # fmt: skip
    found = backbone.extend(PROMPT, None, seed=3, references=[maria()])
    assert found.shape == expected.shape == (17, 3, *SIZE)
    assert (found - expected).abs().max() < 1e-4
    assert torch.equal(found, backbone.extend(PROMPT, None, seed=3, references=[maria()]))
    for other in (
        backbone.extend(PROMPT, None, seed=4, references=[maria()]),
        backbone.extend(PROMPT, None, seed=3, references=[tom()]),
    ):
        assert (found - other).abs().max() > 1e-3


def test_a_shorter_window_is_trimmed_exactly(folder: Path, known: Path, backbone: ConsisID) -> None:
    short = ConsisID(folder, **(SETTINGS | {"window": 11}), features=known)
    made = short.extend(PROMPT, None, seed=1, references=[maria()])
    assert len(made) == 11  # of 17: 5 latents, as 4 would make 16 frames of another kind
    assert torch.equal(made, backbone.extend(PROMPT, None, seed=1, references=[maria()])[:11])


def test_of_two_characters_the_first_is_drawn_and_that_is_said(backbone: ConsisID, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        both = backbone.extend(PROMPT, None, seed=1, references=[maria(), tom()])
    assert "ConsisID draws one face, maria; the lock alone gives that of tom." in caplog.text
    assert torch.equal(both, backbone.extend(PROMPT, None, seed=1, references=[maria()]))
    with pytest.raises(InputError, match="Give a reference picture"):
        backbone.extend(PROMPT, None, seed=1)


def test_an_extractor_may_take_the_folders_place(folder: Path, known: Path, backbone: ConsisID) -> None:
    asked = []

    def extract(identity) -> Features:
        asked.append(identity.name)
        return FeatureFolder(known)(tom())

    plugged = ConsisID(folder, **SETTINGS, features=extract)
    made = plugged.extend(PROMPT, None, seed=1, references=[maria()])
    assert asked == ["maria"]
    assert torch.equal(made, backbone.extend(PROMPT, None, seed=1, references=[tom()]))


# ---------------------------------------------------------------------- a clip


def pipeline(backbone: object):
    values = {"kind": "consisid", "model": "tiny", "size": list(SIZE), "fps": 8, "window": 17, "context": 1}
    blueprint = {**values, "steps": 3, "guidance_scale": 6.0}
    return toys.pipeline(toys.Parts(backbone=backbone), blueprint=blueprint)


def test_one_clip_is_made_and_resumed_to_the_same_bytes(
    backbone: ConsisID, tmp_path: Path, monkeypatch
) -> None:
    for name in ("a.mp4", "b.mp4"):
        if name == "b.mp4":
            monkeypatch.setattr("facelock.clip.join_segments", None)
            with pytest.raises(TypeError):
                pipeline(backbone).generate(PROMPT, [maria(), tom()], seconds=1.5).save(tmp_path / name)
            monkeypatch.undo()
            monkeypatch.setattr(backbone, "extend", None)  # all is made already
        pipeline(backbone).generate(PROMPT, [maria(), tom()], seconds=1.5).save(tmp_path / name)
    assert count_frames(tmp_path / "a.mp4") == 12
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_longer_clip_is_refused_before_anything_is_loaded() -> None:
    class Untouched(toys.Parts):
        @property
        def backbone(self):
            raise AssertionError("the backbone was loaded")

        @backbone.setter
        def backbone(self, _):
            pass

        def identity(self, *_, **__):
            raise AssertionError("a picture was read")

    asked = pipeline(None)
    asked.parts = Untouched()
    with pytest.raises(
        InputError, match=r"one clip of 2.1 seconds and cannot continue it, but 3.0 were"
    ) as caught:
        asked.generate(PROMPT, "maria.png", seconds=3)
    assert "\n" not in str(caught.value)
    refuse_continuation("ltx2", window=17, frames=99, fps=asked.fps)


def test_it_cannot_continue(backbone: ConsisID) -> None:
    with pytest.raises(InputError, match=r"one clip of 2.1 seconds and cannot continue it\. Ask"):
        backbone.extend(PROMPT, torch.rand(1, 3, *SIZE), seed=1, references=[maria()])


@pytest.mark.parametrize("step", [1, 3])
def test_not_finite_latents_are_one_sentence(backbone: ConsisID, monkeypatch, step: int) -> None:
    transformer, calls = backbone.modules["transformer"], []
    forward = transformer.forward

    def broken(**inputs):
        calls.append(1)
        return (forward(**inputs)[0] * (math.nan if len(calls) == step else 1),)

    monkeypatch.setattr(transformer, "forward", broken)
    with pytest.raises(FaceLockError, match=f"not finite after denoising step {step} of 3"):
        backbone.extend(PROMPT, None, seed=1, references=[maria()])


def test_not_finite_latents_are_tried_once_more_in_float32(
    folder: Path, known: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = ConsisID(folder, **SETTINGS, precision="bfloat16", features=known)
    before = {name: p.dtype for name, p in backbone.modules["transformer"].named_parameters()}
    seen = tiny_a2.poisoned(backbone, monkeypatch, {1})
    with caplog.at_level(logging.WARNING):
        frames = backbone.extend(PROMPT, None, seed=1, references=[maria()])
    steps = backbone.steps
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * steps
    assert f"step 2 of {steps}" in caplog.text and "once more in float32" in caplog.text
    assert torch.isfinite(frames).all() and frames.dtype == torch.float32
    assert {name: p.dtype for name, p in backbone.modules["transformer"].named_parameters()} == before
    assert not backbone.modules["transformer"]._forward_pre_hooks
    whole = ConsisID(folder, **SETTINGS, features=known)
    assert float((frames - whole.extend(PROMPT, None, seed=1, references=[maria()])).abs().mean()) < 0.02


@pytest.mark.parametrize(
    ("bound", "calls"), [(False, [torch.bfloat16, torch.float32]), (True, [torch.bfloat16])]
)
def test_latents_that_stay_not_finite_are_one_sentence(
    folder: Path, known: Path, monkeypatch: pytest.MonkeyPatch, bound: bool, calls: list[torch.dtype]
) -> None:
    plan = Plan(groups=1) if bound else Plan()
    place = Placement(torch.device("cpu"), Speed(), plan, steps=SETTINGS["steps"])
    backbone = ConsisID(folder, **SETTINGS, precision="bfloat16", features=known, place=place)
    seen = tiny_a2.poisoned(backbone, monkeypatch, range(99))
    with pytest.raises(NotFiniteError, match=r"not finite after denoising step 1 of") as caught:
        backbone.extend(PROMPT, None, seed=1, references=[maria()])
    assert seen == calls and len(str(caught.value).splitlines()) == 1
    assert ("was not tried again in float32, because the memory plan" in str(caught.value)) == bound


def test_out_of_memory_is_one_sentence_and_a_full_decoder_tiles(
    folder: Path, known: Path, monkeypatch, caplog
) -> None:
    backbone = ConsisID(folder, **SETTINGS, features=known)
    decode, calls = backbone.modules["vae"].decode, []

    def full_at_first(*inputs, **options):
        calls.append(backbone.modules["vae"].use_tiling)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("full")
        return decode(*inputs, **options)

    monkeypatch.setattr(backbone.modules["vae"], "decode", full_at_first)
    with caplog.at_level(logging.WARNING):
        assert len(backbone.extend(PROMPT, None, seed=1, references=[maria()])) == 17
    assert calls == [False, True]
    assert "in tiles" in caplog.text

    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backbone.modules["transformer"], "forward", full)
    with pytest.raises(DeviceError, match="ran out of memory on cpu"):
        backbone.extend(PROMPT, None, seed=1, references=[maria()])


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": ""}, "needs each face's features"),
        ({"features": "nowhere/at/all"}, "is no folder of ConsisID features"),
        ({"size": (32, 32)}, r"size = \(32, 32\). Give \(32, 48\), the only size"),
        ({"window": 18}, r"window = 18\. Give 2 to 17"),
        ({"context": 17}, r"context = 17\. Give less than"),
        ({"steps": 0}, "steps = 0"),
        ({"flow_shift": 3.0}, "no flow_shift"),
        ({"guide": lambda x0, *_: x0}, "no flow_shift, context_noise or guidance"),
        ({"precision": "float16"}, "float16 takes hours on a CPU"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(folder: Path, known: Path, changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        ConsisID(folder, **(SETTINGS | {"features": known} | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("gone", "features of maria are missing. Compute it"),
        ("cut", "maria.safetensors: cannot be used"),
        ("no picture", "cannot be used .'picture'."),
        ("nan", "id_cond is not finite"),
        ("float picture", "not .3, S, S. uint8"),
        ("no layers", "cannot be used .'id_vit_hidden.0'."),
        ("other layers", r"are \(1, 24\) and \[16, 16, 16, 16\], this checkpoint takes"),
        ("other size", r"are \(1, 20\) and"),
    ],
)
def test_features_that_are_missing_or_wrong_are_one_sentence(
    folder: Path, known: Path, tmp_path: Path, damage: str, words: str
) -> None:
    here = Path(shutil.copytree(known, tmp_path / "features"))
    path = here / "maria.safetensors"
    stored = load_file(path)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        if damage == "no picture":
            del stored["picture"]
        elif damage == "nan":
            stored["id_cond"][0, 3] = math.nan
        elif damage == "float picture":
            stored["picture"] = stored["picture"].float()
        elif damage == "other size":
            stored["id_cond"] = stored["id_cond"][:, :20].contiguous()
        else:
            kept = 4 if damage == "other layers" else 0
            for index in range(kept, 5):
                del stored[f"id_vit_hidden.{index}"]
        save_file(stored, path)
    backbone = ConsisID(folder, **SETTINGS, features=here)
    with pytest.raises(InputError, match=words) as caught:
        backbone.extend(PROMPT, None, seed=1, references=[maria()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "how"), [("transformer", "missing"), ("vae", "cut"), ("text_encoder", "gone")]
)
def test_weights_that_are_wrong_or_missing_are_one_sentence(
    copied: Path, known: Path, part: str, how: str
) -> None:
    path = next((copied / part).glob("*.safetensors"))
    if how == "gone":
        shutil.rmtree(path.parent)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        weights = load_file(path)
        del weights[sorted(weights)[0]]
        save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=part):
        ConsisID(copied, **SETTINGS, features=known)


def test_a_transformer_that_knows_no_face_is_refused(tmp_path: Path, known: Path) -> None:
    tiny_a2.consisid_pipeline(is_train_face=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not told of a face"):
        ConsisID(tmp_path, **SETTINGS, features=known)


def test_the_recipe_fits_the_published_configuration(known: Path, monkeypatch) -> None:
    """The published networks without their weights stand in for the checkpoint, but for the text encoder."""
    with torch.device("meta"):
        networks = {
            "transformer": ConsisIDTransformer3DModel(**published_sizes.CONSISID),
            "vae": AutoencoderKLCogVideoX(
                down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4
            ),
        }
    words = tiny_a2.t5_tokenizer()
    networks["text_encoder"] = tiny_a2.consisid_pipeline().text_encoder
    found = Checkpoint(networks, words, tiny_a2.CogVideoXDPMScheduler(prediction_type="v_prediction"), {})
    monkeypatch.setattr("facelock.blueprint.base.load_checkpoint", lambda *_, **__: found)
    low = load_recipe("consisid-5b").blueprint
    backbone = ConsisID(
        "anywhere", size=low.size, fps=float(low.fps), window=low.window, context=low.context, steps=low.steps,
        guidance_scale=low.guidance_scale, precision=low.precision, flow_shift=low.flow_shift,
        **(low.options | {"features": known}),
    )  # fmt: skip
    assert backbone.first_chunk == 49
    assert backbone._latents() == 13
    refuse_continuation(low.kind, window=low.window, frames=49, fps=low.fps)
    with pytest.raises(InputError, match=r"one clip of 6\.1 seconds"):
        refuse_continuation(low.kind, window=low.window, frames=50, fps=low.fps)
