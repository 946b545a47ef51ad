"""What all six kinds of checkpoint have in common: damaged parts, faults in each network, plans, two people."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiny_a2
import torch
import toys
from safetensors.torch import load_file, save_file
from test_backbones import CASES, one_sentence, rewrite, weights
from tiny_wan import PROMPT
from torch import Tensor
from transformers import AutoTokenizer

from facelock.assets import asset_dir
from facelock.blueprint import backbone_class
from facelock.errors import DeviceError, EnvironmentFailure, FaceLockError, ModelError, NotFiniteError
from facelock.preflight import lacking
from facelock.recipe import Recipe
from facelock.tuning import Speed
from facelock.tuning.placement import Placement
from facelock.tuning.plan import Plan
from facelock.weights import pretrained
from facelock.weights.pretrained import load_part

KINDS: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any]]] = {
    name: (
        case.kind,
        case.save,
        {"size": (32, 48), "fps": 16, "window": case.window, "context": case.context},
    )
    for name, case in CASES.items()
} | {
    "ltx2": ("ltx2", tiny_a2.save_ltx2, {"size": (64, 64), "fps": 24, "window": 17, "context": 9}),
    "consisid": (
        "consisid",
        lambda folder: tiny_a2.consisid_pipeline().save_pretrained(folder),
        {"size": (32, 48), "fps": 8, "window": 17, "context": 1},
    ),
}
PEOPLE = [toys.identity("maria"), toys.identity("tom")]


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features")
    for seed, person in enumerate(PEOPLE):
        save_file(tiny_a2.consisid_features(seed), path / f"{person.name}.safetensors")
    return path


@pytest.fixture(scope="session", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, features: Path) -> Any:
    kind, save, settings = KINDS[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    save(folder)
    own = {"features": str(features)} if kind == "consisid" else {}
    return kind, folder, {**settings, "steps": 2, "guidance_scale": 3.0, **own}


def load(case: Any, folder: Path | None = None, **changes: Any) -> Any:
    kind, own, settings = case
    return backbone_class(kind)(folder or own, **(settings | changes))


def two_chunks(backbone: Any) -> Tensor:
    first = backbone.extend(PROMPT, None, seed=1, references=PEOPLE)
    past = None if backbone.chunk == backbone.first_chunk else first[-backbone.context :]
    return torch.cat([first, backbone.extend("a woman", past, seed=2, references=PEOPLE)])


def recipe_of(case: Any, folder: Path) -> Recipe:
    kind, _, settings = case
    values = tomllib.loads((asset_dir("pipelines") / "default.toml").read_text())
    plain = {key: value for key, value in settings.items() if key != "features"}
    options = {key: settings[key] for key in ("features",) if key in settings}
    values["blueprint"] |= plain | {"kind": kind, "model": str(folder), "options": options, "anchor": 0.0}
    return Recipe.model_validate(values)


# ---------------------------------------------------------------------- wrong or missing weights


def only_words(folder: Path) -> None:
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()


def shard_lacks(folder: Path) -> None:
    """In two parts, as large checkpoints are published; the second one is gone."""
    path = weights(folder, "transformer")
    tensors = load_file(path)
    names, stem = sorted(tensors), path.name.removesuffix(".safetensors")
    halves = {
        f"{stem}-00001-of-00002.safetensors": names[::2],
        f"{stem}-00002-of-00002.safetensors": names[1::2],
    }
    first, second = halves
    save_file({name: tensors[name] for name in halves[first]}, path.with_name(first), {"format": "pt"})
    places = {name: file for file, those in halves.items() for name in those}
    (folder / "transformer" / f"{stem}.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    path.unlink()
    assert not path.with_name(second).exists()


def poison_last(folder: Path, part: str) -> None:
    """Of the last tensor of a part, be it a weight or a buffer."""
    path = weights(folder, part)
    tensors = load_file(path)
    name = max(tensors)
    save_file(tensors | {name: torch.full_like(tensors[name], float("inf"))}, path, {"format": "pt"})


def written(place: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / place).write_text(text)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no vocabulary": (only_words, "tokenizer holds no vocabulary"),
    "no tokenizer_config": (lambda f: (f / "tokenizer/tokenizer_config.json").unlink(), "lacks its tokenizer_config"),
    "tokenizer is null": (written("tokenizer/tokenizer.json", "null"), "tokenizer cannot be loaded"),
    "tokenizer_config is a list": (written("tokenizer/tokenizer_config.json", "[]"), "holds no table"),
    "no config": (lambda f: (f / "text_encoder/config.json").unlink(), "text_encoder lacks its config.json"),
    "config is a list": (written("vae/config.json", "[]"), "vae/config.json is damaged .it holds no table"),
    "no scheduler": (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "lacks its scheduler_config.json"),
    "a shard is gone": (shard_lacks, "transformer lacks .*-00002-of-00002.safetensors, a part of its weights"),
    "the VAE holds infinity": (lambda f: poison_last(f, "vae"), "vae: .* holds values that are not finite"),
    "half a file": (lambda f: cut(weights(f, "vae")), "vae/.* is damaged"),
}  # fmt: skip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_part_is_one_sentence_that_names_it(
    case: Any, tmp_path: Path, capfd: Any, name: str
) -> None:
    damage, words = DAMAGES[name]
    folder = Path(shutil.copytree(case[1], tmp_path / "copy"))
    damage(folder)
    with pytest.raises(ModelError, match=words) as caught:
        load(case, folder)
    assert str(folder) in one_sentence(caught.value)
    assert capfd.readouterr() == ("", "")
    if name not in (
        "tokenizer is null",
        "the VAE holds infinity",
    ):  # what a file says by itself is said before loading
        assert words_of(case, folder) == [str(caught.value)]


def words_of(case: Any, folder: Path) -> list[str]:
    return [str(error) for error in lacking(recipe_of(case, folder))]


def test_a_whole_folder_lacks_nothing(case: Any) -> None:
    assert words_of(case, case[1]) == []


def test_weights_of_another_text_encoder_are_refused(case: Any, tmp_path: Path) -> None:
    """Its states are wider than what reads them, or its words fewer than the tokenizer's."""
    folder = Path(shutil.copytree(case[1], tmp_path / "copy"))
    config = folder / "text_encoder" / "config.json"
    held = json.loads(config.read_text())
    if "text_config" in held:
        held["text_config"]["hidden_size"] = 24
    config.write_text(json.dumps(held | ({} if "text_config" in held else {"d_model": 24})))
    told = words_of(case, folder)
    assert len(told) == 1 and "states of 24 channels" in told[0]
    with pytest.raises(ModelError, match="states of 24 channels"):
        load(case, folder)


def test_a_tokenizer_of_more_words_than_the_text_encoder_has_is_refused(case: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(case[1], tmp_path / "copy"))
    path = folder / "tokenizer" / "tokenizer_config.json"
    rewrite(path, extra_special_tokens=[f"<x{i}>" for i in range(300)])
    with pytest.raises(ModelError, match=r"tokenizer has \d+ words, its text encoder \d+"):
        load(case, folder)


def test_a_scheduler_of_other_predictions_is_refused(case: Any, tmp_path: Path) -> None:
    if case[0] in ("helios", "ltx2"):
        pytest.skip("its scheduler knows no other")
    folder = Path(shutil.copytree(case[1], tmp_path / "copy"))
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")  # diffusers' default is another one
    with pytest.raises(
        ModelError, match=r"scheduler expects epsilon, its transformer gives (flow|v)_prediction"
    ):
        load(case, folder)


def test_what_a_configuration_lies_about_is_said_of_the_model(case: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(case[1], tmp_path / "copy"))
    key = {"consisid": "norm_eps", "ltx2": "timestep_scale_multiplier"}.get(case[0], "eps")
    rewrite(folder / "transformer" / "config.json", **{key: "x"})
    with pytest.raises(ModelError, match=r"can.*be (worked with|loaded) \(.*\)\. Pull or export") as caught:
        load(case, folder).extend(PROMPT, None, seed=1, references=PEOPLE)
    assert str(folder) in one_sentence(caught.value)


def test_a_sentencepiece_vocabulary_alone_needs_its_package(
    case: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """ConsisID is published with one."""
    folder = Path(shutil.copytree(case[1], tmp_path / "copy"))
    only_words(folder)
    (folder / "tokenizer" / "spiece.model").touch()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setattr("facelock.weights.folders.find_spec", lambda name: None)
    with pytest.raises(
        EnvironmentFailure, match=r"sentencepiece, which is not installed. Give pip install sent"
    ):
        load(case, folder)


def test_a_sentencepiece_vocabulary_alone_is_read(tmp_path: Path) -> None:
    words = [f"{who} {does} in a {place}" for who in PROMPT.split() for does in ["talks", "smiles"]
             for place in ["forest", "city", "studio", "office"]]  # fmt: skip
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(folder / "spiece"), vocab_size=30, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    read = load_part(tmp_path, "tokenizer", AutoTokenizer.from_pretrained, "Pull it.")
    ids = read("a forest").input_ids
    assert ids[-1] == 1 and 2 not in ids and read.decode(ids[:-1]) == "a forest"


# ---------------------------------------------------------------------- out of memory and NaN, network by network


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_room_on_the_cpu(*_: Any, **__: Any) -> Any:
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"
    )


@pytest.mark.parametrize("fault", [full, no_room_on_the_cpu])
def test_no_memory_while_loading_is_one_sentence(case: Any, monkeypatch: Any, fault: Any) -> None:
    network = type(load(case).modules["transformer"])
    monkeypatch.setattr(network, "from_pretrained", fault)
    with pytest.raises(pretrained.OutOfMemoryError, match="ran out of memory on cpu") as caught:
        load(case)
    one_sentence(caught.value)


@pytest.mark.parametrize("fault", [full, no_room_on_the_cpu])
@pytest.mark.parametrize("place", ["text_encoder.forward", "transformer.forward", "vae.decode", "vae.encode"])
def test_no_memory_in_any_network_is_one_sentence(
    case: Any, monkeypatch: Any, place: str, fault: Any
) -> None:
    backbone = load(case)
    part, name = place.split(".")
    monkeypatch.setattr(backbone.modules[part], name, fault)
    with pytest.raises(DeviceError, match="ran out of memory on cpu") as caught:
        two_chunks(backbone)
    one_sentence(caught.value)


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_nan_in_any_network_is_one_sentence(case: Any, monkeypatch: Any, part: str) -> None:
    """A weight turns to NaN after loading, as a failing memory would have it."""
    backbone = load(case)
    for weight in backbone.modules[part].parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="not finite") as caught:
        two_chunks(backbone)
    one_sentence(caught.value)


# ---------------------------------------------------------------------- plans, long prompts, two people


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_smallest_plan_gives_the_same_bytes(case: Any, precision: str) -> None:
    place = Placement(torch.device("cpu"), Speed(), Plan(text="layers", groups=1, batch=1), steps=2)
    planned = load(case, precision=precision, place=place)
    assert torch.equal(two_chunks(planned), two_chunks(load(case, precision=precision)))


def test_a_prompt_that_is_cut_is_said_once(case: Any, caplog: Any, capfd: Any) -> None:
    backbone = load(case)
    with caplog.at_level(logging.WARNING, "facelock"):
        backbone.extend(" ".join(["a woman"] * 700), None, seed=1, references=PEOPLE[:1])
    said = [text for text in caplog.messages if "its end has no effect" in text]
    assert len(said) == 1
    assert capfd.readouterr().err == ""


def test_two_people_in_one_shot_are_drawn_or_the_second_is_named(case: Any, caplog: Any) -> None:
    backbone = load(case)
    frames = backbone.extend(PROMPT, None, seed=1, references=PEOPLE)
    assert len(frames) == backbone.first_chunk and torch.isfinite(frames).all()
    if case[0] == "consisid":
        assert "that of tom" in caplog.text


def test_errors_of_others_stay_theirs(case: Any) -> None:
    """What a caller's own function raises is not said of the model."""

    def stop(done: int, steps: int) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        load(case, on_step=stop).extend(PROMPT, None, seed=1, references=PEOPLE)
    assert not isinstance(caught.value, FaceLockError)
