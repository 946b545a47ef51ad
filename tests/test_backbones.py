"""What every backbone of the Wan family must do, each on a tiny random checkpoint saved in its real layout."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import test_skyreels_v2
import tiny_wan
import torch
from safetensors.torch import load_file, save_file
from tiny_wan import PROMPT
from torch import Tensor

from facelock.blueprint import backbone_class
from facelock.blueprint.wan_base import WanBackbone
from facelock.errors import (
    ConfigError,
    DeviceError,
    FaceLockError,
    InputError,
    ModelError,
    NotFiniteError,
)
from facelock.protocols import Backbone
from facelock.tuning.options import Speed
from facelock.tuning.placement import Placement
from facelock.tuning.plan import Plan
from facelock.types import Identity

SIZE = (32, 48)
PLAIN = {"size": SIZE, "fps": 16, "steps": 2, "guidance_scale": 3.0}
PEOPLE = [
    Identity(name, {}, crops=torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(seed)))
    for seed, name in enumerate(("maria", "tom"))
]


@dataclass(frozen=True)
class Case:
    """One kind of checkpoint and a recipe's numbers for it."""

    kind: str
    save: Callable[[Path], Any]
    window: int
    context: int


CASES = {
    "skyreels": Case("skyreels_v2", lambda f: test_skyreels_v2.pipeline().save_pretrained(f), 9, 5),
    "vace": Case("wan_vace", tiny_wan.vace, 9, 5),
    "vace 2.2": Case("wan_vace", lambda f: tiny_wan.vace(f, experts=True), 8, 4),
    "helios": Case("helios", tiny_wan.helios, 63, 33),
}


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    found = CASES[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    found.save(folder)
    return found, folder


def load(case: tuple[Case, Path], folder: Path | None = None, **changes: Any) -> WanBackbone:
    found, own = case
    settings = PLAIN | {"window": found.window, "context": found.context} | changes
    return backbone_class(found.kind)(folder or own, **settings)


@pytest.fixture(scope="session")
def backbone(case: tuple[Case, Path]) -> WanBackbone:
    return load(case)


def clip(backbone: WanBackbone, chunks: int = 4) -> list[Tensor]:
    """A new clip and what continues it, with two characters."""
    made = [backbone.extend(PROMPT, None, seed=10, references=PEOPLE)]
    while len(made) < chunks:
        tail = torch.cat(made)[-backbone.context :]
        made.append(backbone.extend(PROMPT, tail, seed=10 + len(made), references=PEOPLE))
    return made


def tail(backbone: WanBackbone) -> Tensor:
    return torch.rand(backbone.context, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def one_sentence(error: FaceLockError) -> str:
    message = str(error)
    assert len(message.splitlines()) == 1 and message.endswith("."), message
    return message


# ---------------------------------------------------------------------- clips


def test_a_clip_of_four_chunks_has_exactly_the_frames_asked_for(
    case: tuple[Case, Path], backbone: WanBackbone
) -> None:
    found = case[0]
    assert isinstance(backbone, Backbone)
    made = clip(backbone)
    assert [len(chunk) for chunk in made] == [found.window, *[found.window - found.context] * 3]
    for chunk in made:
        assert chunk.shape[1:] == (3, *SIZE)
        assert chunk.dtype == torch.float32
        assert chunk.is_contiguous() and not chunk.is_inference()
        assert 0 <= chunk.min() < chunk.max() <= 1


def test_a_chunk_is_a_function_of_its_arguments(case: tuple[Case, Path], backbone: WanBackbone) -> None:
    """Solvers, caches and whatever else a backbone keeps must not show: the third chunk alone is the same."""
    made = clip(backbone, 3)
    context = torch.cat(made[:2])[-backbone.context :]
    kept = context.clone()
    alone = load(case).extend(PROMPT, context, seed=12, references=PEOPLE)
    assert torch.equal(alone, made[2])
    assert torch.equal(context, kept)


def test_the_first_new_frame_depends_on_context_prompt_and_seed(backbone: WanBackbone) -> None:
    past = tail(backbone)
    base = backbone.extend(PROMPT, past, seed=0)[0]
    assert not torch.equal(base, backbone.extend(PROMPT, past.flip(0), seed=0)[0])
    assert not torch.equal(base, backbone.extend(PROMPT, None, seed=0)[backbone.context])
    assert not torch.equal(base, backbone.extend("the rain", past, seed=0)[0])
    assert not torch.equal(base, backbone.extend(PROMPT, past, seed=1)[0])


def test_without_guidance_there_is_one_pass_and_another_result(
    case: tuple[Case, Path], backbone: WanBackbone
) -> None:
    plain = load(case, guidance_scale=1.0)
    assert len(plain._embed(PROMPT)) == 1
    assert not torch.equal(plain.extend(PROMPT, None, seed=0), backbone.extend(PROMPT, None, seed=0))


def test_turns_and_the_published_code_give_nearly_the_same(
    case: tuple[Case, Path], backbone: WanBackbone
) -> None:
    base = backbone.extend(PROMPT, tail(backbone), seed=0)
    for changes in ({"pair_guidance": False}, {"reference": True}):
        other = load(case, **changes).extend(PROMPT, tail(backbone), seed=0)
        assert (other - base).abs().max() < 1e-4, changes


# ---------------------------------------------------------------------- loading and placing


def test_networks_are_read_on_the_cpu_and_then_placed(case: tuple[Case, Path]) -> None:
    seen: dict[str, torch.nn.Module] = {}
    backbone = load(case, precision="bfloat16", place=seen.update)
    assert seen == dict(backbone.modules)
    assert {"text_encoder", "transformer", "vae"} <= set(seen)
    for name, network in seen.items():
        assert not network.training
        kinds = {p.dtype for p in network.parameters()}
        assert (torch.float32 if name == "vae" else torch.bfloat16) in kinds, name
        assert name != "vae" or kinds == {torch.float32}
        assert {p.device.type for p in network.parameters()} == {"cpu"}
        assert not any(p.requires_grad for p in network.parameters())


def test_bfloat16_is_close(case: tuple[Case, Path], backbone: WanBackbone) -> None:
    half = load(case, precision="bfloat16").extend(PROMPT, tail(backbone), seed=0)
    assert half.dtype == torch.float32
    assert (half - backbone.extend(PROMPT, tail(backbone), seed=0)).abs().mean() < 0.05


def test_loading_is_silent(case: tuple[Case, Path], capfd: pytest.CaptureFixture[str]) -> None:
    load(case)
    assert capfd.readouterr() == ("", "")


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def change(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def last_part(folder: Path) -> Path:
    """The transformer; of two, the second."""
    return weights(folder, "transformer_2" if (folder / "transformer_2").is_dir() else "transformer")


def only_a_pickle(folder: Path) -> None:
    path = weights(folder, "transformer")
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no folder": shutil.rmtree,
    "no index": lambda f: (f / "model_index.json").unlink(),
    "index not json": lambda f: (f / "model_index.json").write_text("{"),
    "another pipeline": lambda f: rewrite(f / "model_index.json", _class_name="WanPipeline"),
    "code for a scheduler": lambda f: rewrite(f / "model_index.json", scheduler=["os", "system"]),
    "no transformer": lambda f: shutil.rmtree(last_part(f).parent),
    "no weights": lambda f: weights(f, "text_encoder").unlink(),
    "only a pickle": only_a_pickle,
    "truncated": lambda f: last_part(f).write_bytes(last_part(f).read_bytes()[:-4000]),
    "not safetensors": lambda f: weights(f, "vae").write_bytes(b"<html>not found</html>"),
    "a weight lacking": lambda f: change(last_part(f), lambda t: t.pop("blocks.1.attn1.to_q.weight")),
    "a weight with NaN": lambda f: change(last_part(f), lambda t: t["proj_out.bias"].fill_(float("nan"))),
    "other statistics": lambda f: rewrite(f / "vae" / "config.json", latents_std=[1.0] * 15),
    "statistics of zero": lambda f: rewrite(f / "vae" / "config.json", latents_std=[0.0] * 16),
    "other shapes": lambda f: rewrite(last_part(f).parent / "config.json", ffn_dim=64),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_one_sentence(case: tuple[Case, Path], tmp_path: Path, damage: Callable) -> None:
    folder = Path(shutil.copytree(case[1], tmp_path / "copy"))
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load(case, folder)
    assert str(folder) in one_sentence(caught.value)


@pytest.mark.parametrize(
    "index",
    [
        {"boundary_ratio": None},
        {"boundary_ratio": "0.875"},
        {"boundary_ratio": 1.5},
        {"transformer_2": [None, None]},
        {"transformer": [None, None], "transformer_2": [None, None]},
    ],
)
def test_two_transformers_and_their_boundary_belong_together(tmp_path: Path, index: dict) -> None:
    case = (CASES["vace 2.2"], tiny_wan.vace(tmp_path, experts=True))
    rewrite(tmp_path / "model_index.json", **index)
    with pytest.raises(ModelError) as caught:
        load(case)
    assert str(tmp_path) in one_sentence(caught.value)


def test_an_index_older_than_the_second_transformer_loads(tmp_path: Path) -> None:
    """The published Wan 2.1 folders were saved before diffusers knew of ``transformer_2``."""
    tiny_wan.vace(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for key in ("transformer_2", "boundary_ratio"):
        index.pop(key, None)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert set(load((CASES["vace"], tmp_path)).modules) == {"text_encoder", "transformer", "vae"}


# ---------------------------------------------------------------------- while it runs


def test_steps_are_reported_and_may_stop_the_run(case: tuple[Case, Path]) -> None:
    steps: list[tuple[int, int]] = []
    backbone = load(case, on_step=lambda done, total: steps.append((done, total)))
    backbone.extend(PROMPT, tail(backbone), seed=0)
    assert steps == [(1, 2), (2, 2)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    backbone.on_step = stop
    with pytest.raises(KeyboardInterrupt):
        backbone.extend(PROMPT, None, seed=0)


def replaced_forward(
    backbone: WanBackbone, monkeypatch: pytest.MonkeyPatch, result: Callable[[int, Tensor], Tensor]
) -> list[torch.dtype]:
    """Put ``result(call, output)`` in the place of what the transformers return; lists each call's precision."""
    calls: list[torch.dtype] = []
    for name, network in backbone.modules.items():
        if name.startswith("transformer"):
            forward = network.forward

            def changed(*args: Any, forward: Callable = forward, net: Any = network, **kwargs: Any) -> Any:
                calls.append(net.patch_embedding.weight.dtype)
                return (result(len(calls) - 1, forward(*args, **kwargs)[0]),)

            monkeypatch.setattr(network, "forward", changed)
    return calls


def no_room(call: int, output: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_out_of_memory_is_one_sentence(case: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(case)
    replaced_forward(backbone, monkeypatch, no_room)
    with pytest.raises(DeviceError, match="memory") as caught:
        backbone.extend(PROMPT, tail(backbone), seed=0)
    one_sentence(caught.value)


def test_memory_for_one_pass_is_enough(
    case: tuple[Case, Path], backbone: WanBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def room_for_one(call: int, output: Tensor) -> Tensor:
        return output if len(output) == 1 else no_room(call, output)

    expected = backbone.extend(PROMPT, tail(backbone), seed=0)
    tight = load(case)
    replaced_forward(tight, monkeypatch, room_for_one)
    assert (tight.extend(PROMPT, tail(backbone), seed=0) - expected).abs().max() < 1e-4


def test_out_of_memory_while_decoding_goes_on_in_tiles_then_says_so(
    case: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, tried = load(case), []
    decode = backbone._vae.decode

    def tight(*args: Any, **kwargs: Any) -> Any:
        tried.append(backbone._vae.use_tiling)
        return decode(*args, **kwargs) if tried[-1] else no_room(0, args[0])

    monkeypatch.setattr(backbone._vae, "decode", tight)
    assert len(backbone.extend(PROMPT, None, seed=0)) == backbone.first_chunk
    assert tried[:2] == [False, True]
    monkeypatch.setattr(backbone._vae, "decode", lambda *args, **kwargs: no_room(0, args[0]))
    with pytest.raises(DeviceError, match="memory"):
        backbone.extend(PROMPT, None, seed=0)


def test_latents_with_nan_are_tried_once_more_in_float32(
    case: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load(case, precision="bfloat16", pair_guidance=True)
    before = {name: p.dtype for name, p in backbone._transformer.named_parameters()}
    seen = replaced_forward(backbone, monkeypatch, lambda call, x: x * float("nan") if call == 1 else x)
    with caplog.at_level(logging.WARNING):
        found = backbone.extend(PROMPT, tail(backbone), seed=0)
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert "step 2 of 2" in caplog.text
    assert torch.isfinite(found).all()
    assert {name: p.dtype for name, p in backbone._transformer.named_parameters()} == before


def test_latents_that_stay_nan_are_one_sentence_naming_the_step(
    case: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(case)
    replaced_forward(backbone, monkeypatch, lambda call, x: x * float("nan"))
    with pytest.raises(FaceLockError, match="step 1 of 2") as caught:
        backbone.extend(PROMPT, tail(backbone), seed=0)
    assert caught.value.exit_code == 1
    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("speed", "plan", "why"),
    [
        (Speed(quantise="float8"), Plan(), "because its weights are held in float8."),
        (Speed(), Plan(groups=1), "because the memory plan moves its weights in and out of the GPU."),
    ],
)
def test_latents_with_nan_are_not_tried_again_where_weights_are_bound(
    case: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch, speed: Speed, plan: Plan, why: str
) -> None:
    place = Placement(torch.device("cpu"), speed, plan, steps=2)
    backbone = load(case, precision="bfloat16", place=place)
    seen = replaced_forward(backbone, monkeypatch, lambda call, x: x * float("nan"))
    with pytest.raises(
        NotFiniteError, match=r"step 1 of 2\. Try .* It was not tried again in float32, "
    ) as caught:
        backbone.extend(PROMPT, tail(backbone), seed=0)
    assert len(seen) == 1 and str(caught.value).endswith(why)
    one_sentence(caught.value)


def test_a_context_of_another_shape_or_with_nan_is_refused(backbone: WanBackbone) -> None:
    for bad in (tail(backbone)[1:], tail(backbone).transpose(2, 3), tail(backbone) * float("nan")):
        with pytest.raises(InputError) as caught:
            backbone.extend(PROMPT, bad, seed=0)
        one_sentence(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": (32, 40)}, r"size = \(32, 40\).*16"),
        ({"size": (0, 32)}, "size"),
        ({"window": 33, "context": 33}, "context = 33.*less than the window"),
        ({"steps": 0}, "steps"),
        ({"context_noise": 0.5}, "context_noise"),
        ({"precision": "float8"}, "float8"),
        ({"precision": "float16"}, "CPU"),
    ],
)
def test_settings_that_do_not_fit_are_refused(case: tuple[Case, Path], changed: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(case, **changed)
    one_sentence(caught.value)


# ---------------------------------------------------------------------- guidance


class Guide:
    """Asks for ``edit`` of what is predicted, and remembers what it was told."""

    def __init__(self, edit: Callable[[Tensor], Tensor]) -> None:
        self.edit, self.told = edit, []

    def begin(self, references: Any) -> None:
        self.told.append([person.name for person in references])

    def __call__(self, x0: Tensor, sigma: float, step: int, known: int) -> Tensor:
        self.told.append((step, 0 < sigma <= 1))
        return self.edit(x0)


def test_a_guide_that_edits_nothing_leaves_every_bit(case: tuple[Case, Path], backbone: WanBackbone) -> None:
    led = load(case, guide=Guide(lambda x0: x0))
    for context in (None, tail(backbone)):
        found = led.extend(PROMPT, context, seed=0, references=PEOPLE)
        assert torch.equal(found, backbone.extend(PROMPT, context, seed=0, references=PEOPLE))


def test_what_a_guide_asks_for_is_what_is_made(
    case: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    guide, decoded = Guide(torch.zeros_like), []
    led = load(case, guide=guide)
    decode = led._decode
    monkeypatch.setattr(led, "_decode", lambda latents: (decoded.append(latents), decode(latents))[1])
    led.extend(PROMPT, None, seed=0, references=PEOPLE)
    assert guide.told[:3] == [["maria", "tom"], (0, True), (1, True)]
    assert decoded[0].abs().max() < 1e-4
