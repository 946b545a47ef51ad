"""The production recipes: they load, fit the published configurations, and say in time what is missing."""

from __future__ import annotations

from pathlib import Path

import published_sizes
import pytest
import tiny_wan
import torch
from diffusers import AutoencoderKLWan, HeliosScheduler, UniPCMultistepScheduler

import facelock
from facelock.assembly import Assembly
from facelock.assets import asset_dir
from facelock.blueprint import backbone_class
from facelock.blueprint.checkpoint import Checkpoint
from facelock.errors import ConfigError, FaceLockError, InputError
from facelock.recipe import load_recipe, model_names
from facelock.weights import Catalog

NAMES = [*published_sizes.TRANSFORMERS, *published_sizes.OTHERS]


@pytest.fixture(autouse=True)
def nothing_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_every_model_of_it_is_in_the_catalog(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.blueprint.model == recipe.name == name
    assert recipe.licence and recipe.blueprint.precision == "bfloat16"
    for role, model in model_names(recipe).items():
        assert Catalog.load().find(model), f"{role} = {model}"


@pytest.mark.parametrize(
    ("recipe", "asked", "said"),
    [
        ("consisid-5b", {"seconds": 60}, "one clip of 6.1 seconds and cannot continue it"),
        ("skyreels-v2-1.3b", {"seconds": 1, "size": 20_000}, "35294x20000 does not fit this recipe"),
    ],
)
def test_what_it_cannot_make_is_said_before_its_weights_are_asked_for(
    recipe: str, asked: dict[str, int], said: str
) -> None:
    with pytest.raises((InputError, ConfigError), match=said):
        facelock.generate("a woman", "maria.png", recipe=recipe, device="cpu", **asked)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_here_are_one_sentence_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facelock.assembly.backbone_class", lambda kind: pytest.fail("loaded"))
    with pytest.raises(FaceLockError) as caught:
        Assembly(load_recipe(name), "cpu")
    told = str(caught.value)
    assert f"facelock models pull --only {name} " in told and told.count("models pull") == 1
    assert "restoration in bfloat16 needs a GPU" in told  # all that is in the way, a line each
    assert len(told.splitlines()) == (4 if name == "consisid-5b" else 3)


@pytest.mark.parametrize("name", NAMES)
def test_commercial_use_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="commercial"):
        Assembly(load_recipe(name), "cpu", commercial=True)


@pytest.mark.parametrize(
    ("name", "first", "chunk", "latents"),
    [
        ("skyreels-v2-1.3b", 97, 80, (25, 68, 120)),
        ("skyreels-v2-14b", 97, 80, (25, 68, 120)),
        ("wan2.1-vace-1.3b", 81, 64, (21, 60, 104)),
        ("wan2.1-vace-14b", 81, 64, (21, 60, 104)),
        ("wan2.2-vace-a14b", 81, 64, (21, 60, 104)),
        ("helios-14b", 99, 33, (26, 48, 80)),
    ],
)
def test_its_numbers_fit_the_published_configurations(
    name: str, first: int, chunk: int, latents: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published networks without their weights stand in for the checkpoint; everything else is the real code."""
    words = tiny_wan.tokenizer()
    with torch.device("meta"):
        kinds = published_sizes.TRANSFORMERS[name]
        networks = {f"transformer{'_2' * i}": kind(**config) for i, (kind, config) in enumerate(kinds)}
    networks |= {"text_encoder": tiny_wan.text_encoder(len(words)), "vae": AutoencoderKLWan(base_dim=4)}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = UniPCMultistepScheduler(num_train_timesteps=1000, **flow)
    if name == "helios-14b":
        scheduler = HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True)
    index = {"boundary_ratio": 0.875} if len(kinds) > 1 else {}
    found = Checkpoint(networks, words, scheduler, index)
    monkeypatch.setattr("facelock.blueprint.base.load_checkpoint", lambda *_, **__: found)
    low = load_recipe(name).blueprint
    backbone = backbone_class(low.kind)(
        "anywhere",
        size=low.size,
        fps=float(low.fps),
        window=low.window,
        context=low.context,
        steps=low.steps,
        guidance_scale=low.guidance_scale,
        flow_shift=low.flow_shift,
        context_noise=low.context_noise,
        precision=low.precision,
        **low.options,
    )
    assert (backbone.first_chunk, backbone.chunk) == (first, chunk)
    assert backbone._latent_shape() == (1, 16, *latents)


@pytest.mark.parametrize("name", NAMES)
def test_gib_of_weights_are_those_of_the_published_configurations(name: str) -> None:
    counted = round(published_sizes.gib(name), 1)
    assert load_recipe(name).vram_gib == counted
    assert f"{counted} GiB of weights" in (asset_dir("pipelines") / "README.md").read_text()
