"""What a recipe's [speed] and a memory plan do to a backbone: the same clip, or nearly, and one sentence otherwise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_speed import PROMPT, SETTINGS, save_checkpoint
from torch import Tensor

from facelock.assembly import Assembly
from facelock.blueprint.skyreels_v2 import SkyReelsV2
from facelock.errors import ConfigError, EnvironmentFailure
from facelock.recipe import load_recipe
from facelock.recipe.sections import SpeedRecipe
from facelock.recipe.uses import VERIFY
from facelock.tuning import Speed, StepCache, apply
from facelock.tuning.options import ATTENTION, GPU_ATTENTION, HALF_ATTENTION, attention_misfit
from facelock.tuning.placement import Placement
from facelock.tuning.plan import Plan
from facelock.tuning.ratios import measure_ratios

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("speed"))


@pytest.fixture(scope="session")
def plain(folder: Path) -> SkyReelsV2:
    return SkyReelsV2(folder, **SETTINGS)


def tuned(folder: Path, speed: Speed | None = None, plan: Plan | None = None, **options) -> SkyReelsV2:
    place = Placement(CPU, speed, plan, steps=SETTINGS["steps"])
    return SkyReelsV2(folder, **SETTINGS, place=place, **options)


def two_chunks(backbone: SkyReelsV2) -> Tensor:
    first = backbone.extend(PROMPT, None, seed=1)
    return torch.cat([first, backbone.extend(PROMPT, first[-5:], seed=2)])


def forwards(backbone: SkyReelsV2) -> list[int]:
    """Counts how often the last block computes; calls the step cache answers do not reach its attention."""
    seen: list[int] = []
    layer = backbone.modules["transformer"].blocks[-1].ffn
    layer.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize(
    "plan",
    [Plan(), Plan(groups=1, text="layers"), Plan(groups=2, text="after", tiling=True, batch=1)],
    ids=["all", "smallest", "between"],
)
def test_a_plan_gives_the_same_bytes(folder: Path, plain: SkyReelsV2, plan: Plan) -> None:
    assert torch.equal(two_chunks(tuned(folder, plan=plan)), two_chunks(plain))


def test_offloading_really_hooks_the_modules(folder: Path) -> None:
    modules = tuned(folder, plan=Plan(groups=1, text="layers")).modules
    for name in ("transformer", "text_encoder"):
        assert any(
            "group_offloading" in str(getattr(part, "_diffusers_hook", None) and part._diffusers_hook.hooks)
            for part in modules[name].modules()
        ), name


@pytest.mark.parametrize(
    ("speed", "near"),
    [
        (Speed(attention="native_math"), 1e-4),
        (Speed(channels_last=True), 1e-4),
        (Speed(quantise="float8"), 0.05),
        (Speed(vae_precision="bfloat16"), 0.05),
        (Speed(reference=True, quantise="float8", attention="sage", compile="default"), 0.0),
    ],
    ids=["attention", "channels last", "float8", "bfloat16 VAE", "reference"],
)
def test_a_choice_changes_little(folder: Path, plain: SkyReelsV2, speed: Speed, near: float) -> None:
    found, expected = two_chunks(tuned(folder, speed)), two_chunks(plain)
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() <= near


def test_float8_halves_the_weights_of_the_blocks(folder: Path) -> None:
    transformer = tuned(folder, Speed(quantise="float8")).modules["transformer"]
    assert transformer.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    assert transformer.patch_embedding.weight.dtype == torch.float32


def test_the_vae_computes_in_bfloat16_and_answers_in_float32(folder: Path) -> None:
    vae = tuned(folder, Speed(vae_precision="bfloat16")).modules["vae"]
    seen = []
    vae.decoder.conv_out.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    assert vae.decode(torch.zeros(1, 16, 1, 4, 6)).sample.dtype == torch.float32
    assert vae.encode(torch.zeros(1, 3, 1, 32, 48)).latent_dist.mode().dtype == torch.float32
    assert seen == [torch.bfloat16]
    assert vae.decoder.conv_in.weight.dtype == torch.float32


CACHES = [
    StepCache("first_block", threshold=1.0),
    StepCache("mag", threshold=1.0, ratios=(1.0,) * 6),
    StepCache("sea", threshold=5.0),
]


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: cache.kind)
@pytest.mark.parametrize("pair", [True, False], ids=["paired", "apart"])
def test_a_step_cache_skips_blocks_and_a_chunk_stays_a_function_of_its_seed(
    folder: Path, plain: SkyReelsV2, cache: StepCache, pair: bool
) -> None:
    backbone = tuned(folder, Speed(cache=cache), pair_guidance=pair)
    seen = forwards(backbone)
    once = two_chunks(backbone)
    computed, asked = len(seen), 2 * SETTINGS["steps"] * (1 if pair else 2)
    assert 0 < computed < asked
    backbone.extend(PROMPT, None, seed=9)  # another clip between leaves nothing behind
    assert torch.equal(once, two_chunks(backbone))
    assert not torch.equal(once, two_chunks(plain))


def test_attention_broadcast_skips_attention_and_gives_up_where_it_would_mix_the_halves(
    folder: Path, plain: SkyReelsV2, caplog: pytest.LogCaptureFixture
) -> None:
    speed = Speed(cache=StepCache("pab", window=(0, 1000)))
    paired, apart = tuned(folder, speed), tuned(folder, speed, pair_guidance=False)
    counts = []
    for backbone in (paired, apart):
        seen: list[int] = []
        backbone.modules["transformer"].blocks[0].attn1.to_q.register_forward_hook(lambda *_: seen.append(1))  # noqa: B023
        found = two_chunks(backbone)
        counts.append(len(seen))
    assert counts[0] < 2 * SETTINGS["steps"]
    assert counts[1] == 4 * SETTINGS["steps"]
    assert "off from here on" in caplog.text
    assert (found - two_chunks(plain)).abs().max() < 1e-4


def test_ratios_are_measured_one_per_step_and_accepted(folder: Path, plain: SkyReelsV2) -> None:
    ratios = measure_ratios(plain.modules["transformer"], lambda: plain.extend(PROMPT, None, seed=1))
    assert len(ratios) == SETTINGS["steps"]
    assert ratios[0] == 1.0
    assert all(0 < ratio < 10 for ratio in ratios)
    tuned(folder, Speed(cache=StepCache("mag", ratios=ratios)))


def test_compiled_blocks_compute_the_same(
    folder: Path, plain: SkyReelsV2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tracer but without code generation, which takes minutes here."""
    monkeypatch.setattr(apply, "compiler_present", lambda: True)
    from diffusers import SkyReelsV2Transformer3DModel as Network

    compiled = Network.compile_repeated_blocks
    monkeypatch.setattr(
        Network, "compile_repeated_blocks", lambda self, mode: compiled(self, backend="eager")
    )
    backbone = tuned(folder, Speed(compile="default"))
    assert (two_chunks(backbone) - two_chunks(plain)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("speed", "message"),
    [
        (Speed(attention="sage"), r"sage.*[Ii]nstall"),
        (Speed(quantise="int8"), "pip install torchao"),
    ],
)
def test_a_missing_package_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, speed: Speed, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFailure, match=message) as caught:
        tuned(folder, speed)
    assert caught.value.exit_code == 3


def test_without_a_compiler_compile_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "compiler_present", lambda: False)
    with pytest.raises(EnvironmentFailure, match=r"g\+\+"):
        tuned(folder, Speed(compile="default"))


@pytest.mark.parametrize("name", sorted(GPU_ATTENTION))
def test_attention_of_a_gpu_is_refused_on_a_cpu_before_anything_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facelock.tuning.packages.is_installed", lambda module: True)
    recipe = load_recipe()
    recipe = recipe.model_copy(update={"speed": SpeedRecipe(attention=name)})
    with pytest.raises(ConfigError, match=rf"{name}' needs a GPU\. Give one of native, native_math"):
        Assembly(recipe, "cpu")
    assert Assembly(recipe, "cpu", used=VERIFY).device == "cpu"


def test_attention_of_half_precision_takes_no_float32() -> None:
    for name in ATTENTION:
        found = attention_misfit(name, gpu=True, precision="float32")
        assert (found is not None) == (name in HALF_ATTENTION), name
        assert attention_misfit(name, gpu=True, precision="bfloat16") is None
    place = Placement(torch.device("meta"), Speed(attention="native_flash"), steps=6)
    assert "half precision" in place.bound  # so that what is not finite is not tried again in float32


def test_what_a_chosen_attention_cannot_compute_is_one_sentence(folder: Path) -> None:
    backbone = tuned(folder, Speed(attention="native_efficient"))  # as if it were not known of this device
    with pytest.raises(ConfigError, match=r"'native_efficient' cannot compute this blueprint \(No viable"):
        backbone.extend(PROMPT, None, seed=1)
    transformer = tuned(folder, Speed(attention="native_math")).modules["transformer"]
    for error in (torch.OutOfMemoryError("full"), RuntimeError("CUDA error: lost")):
        transformer.blocks[0].forward = lambda *_, error=error, **__: _raised(error)
        with pytest.raises(type(error), match=str(error)):
            _once(transformer)


def _raised(error: Exception) -> None:
    raise error


def _once(transformer: Any) -> None:
    with torch.no_grad():
        transformer(
            hidden_states=torch.zeros(1, 16, 1, 4, 4),
            timestep=torch.zeros(1, 1),
            encoder_hidden_states=torch.zeros(1, 4, transformer.config.text_dim),
        )


def test_a_backend_that_is_chosen_stays_with_its_model(folder: Path) -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()[0]
    tuned(folder, Speed(attention="native_math"))
    assert _AttentionBackendRegistry.get_active_backend()[0] == before


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"attention": "nativ"}, r"did you mean 'native'\?.*sage"),
        ({"attention": "flash_hub"}, "speed.attention"),
        ({"compile": "fast"}, "speed.compile.*reduce-overhead"),
        ({"cache": {"kind": "faster"}}, "FasterCache.*first_block"),
        ({"cache": {"kind": "taylorseer"}}, "TaylorSeer"),
        ({"cache": {"kind": "teacache"}}, "not known.*first_block, mag, pab, sea"),
        ({"cache": {"kind": "mag"}}, "measure_ratios"),
        ({"cache": {"kind": "pab", "every": 1}}, "every"),
        ({"quantise": "nf4"}, "bitsandbytes.*float8, int8"),
        ({"vae_precision": "float16"}, "vae_precision.*bfloat16"),
    ],
)
def test_an_unknown_name_says_the_known_ones(table: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeedRecipe.model_validate(table)


def test_one_step_has_nothing_to_reuse(folder: Path) -> None:
    with pytest.raises(ConfigError, match="one denoising step"):
        SkyReelsV2(
            folder,
            **(SETTINGS | {"steps": 1}),
            place=Placement(CPU, Speed(cache=StepCache("first_block")), steps=1),
        )


def test_the_reference_path_is_the_published_code(folder: Path, plain: SkyReelsV2) -> None:
    from facelock.blueprint.wan_vae_cpu import _FoldedCausalConv

    reference = SkyReelsV2(folder, **SETTINGS, reference=True)
    assert not any(isinstance(part, _FoldedCausalConv) for part in reference.modules["vae"].modules())
    assert not reference._pair_guidance
    assert (two_chunks(reference) - two_chunks(plain)).abs().max() < 1e-4
