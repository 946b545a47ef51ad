"""Memory plans: read from headers, checked against what diffusers' classes keep alive, refused before loading."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_speed import real_size
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from facelock.errors import ConfigError, DeviceError, ModelError
from facelock.recipe import load_recipe, tuned
from facelock.tuning.footprint import Footprint, read_footprint
from facelock.tuning.plan import (
    GIB,
    PER_PIXEL,
    PER_TOKEN,
    VRAM,
    Plan,
    Shape,
    choose_plan,
    peak,
    plans,
    report,
)

SMALL, LARGE = Shape((544, 960), 97), Shape((720, 1280), 121)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("sizes")
    return {which: real_size(top / which, which) for which in ("1.3B", "14B")}


@pytest.fixture(scope="session")
def small(folders: dict[str, Path]) -> Footprint:
    return read_footprint(folders["1.3B"])


@pytest.fixture(scope="session")
def large(folders: dict[str, Path]) -> Footprint:
    return read_footprint(folders["14B"])


def test_sizes_come_from_the_headers_and_the_files_take_no_room(
    folders: dict[str, Path], small: Footprint
) -> None:
    assert small.parameters["transformer"] == pytest.approx(1.4e9, rel=0.1)
    assert small.parameters["text_encoder"] == pytest.approx(5.7e9, rel=0.05)
    assert (small.width, small.blocks, small.forcing, small.compression) == (1536, 30, True, (4, 8))
    assert small.tokens(97, (544, 960)) == 25 * 34 * 60
    files = [path.stat() for path in folders["14B"].rglob("*") if path.is_file()]
    assert sum(file.st_size for file in files) > 30 * GIB
    assert sum(file.st_blocks * 512 for file in files) < 2**20


def test_a_larger_model_and_a_larger_picture_need_more(small: Footprint, large: Footprint) -> None:
    for plan in (Plan(), Plan(groups=1, text="layers", tiling=True, pair=False)):
        assert peak(small, SMALL, plan) < peak(large, SMALL, plan) < peak(large, LARGE, plan)
    assert peak(large, Shape((544, 960), 97, float8=True), Plan()) < peak(large, SMALL, Plan())


@pytest.mark.parametrize(
    "one", [{"text": "after"}, {"tiling": True}, {"pair": False}, {"groups": 1}, {"batch": 1}]
)
def test_no_measure_needs_more_memory(small: Footprint, one: dict[str, Any]) -> None:
    assert peak(small, SMALL, Plan(**one)) <= peak(small, SMALL, Plan())
    assert Plan(**one).slowness() > Plan().slowness()


def test_more_memory_never_chooses_a_slower_plan(small: Footprint, large: Footprint) -> None:
    for found in (small, large):
        chosen = [(plan, gib) for _, plan, gib in report(found, SMALL) if plan]
        ranks = [plan.slowness() for plan, _ in chosen]
        assert ranks == sorted(ranks, reverse=True)
        assert all(gib <= vram for (vram, plan, gib) in report(found, SMALL) if plan)
    assert plans()[0] == Plan()


def test_1_3b_runs_in_8_gib_and_14b_does_not(small: Footprint, large: Footprint) -> None:
    plan = choose_plan(small, SMALL, vram=8, recipe="small")
    assert plan.groups
    assert plan.tiling
    assert choose_plan(small, SMALL, vram=48, recipe="small") == Plan()
    with pytest.raises(DeviceError) as caught:
        choose_plan(large, SMALL, vram=8, recipe="large", smaller=["small"])
    message = str(caught.value)
    for part in ("large", "960x544", "97 frames", "8 GiB", "--vram 24", "smaller size", "--recipe small"):
        assert part in message, message
    assert caught.value.exit_code == 3


def test_what_fits_no_card_names_no_card(large: Footprint) -> None:
    with pytest.raises(DeviceError, match="a larger card"):
        choose_plan(large, Shape((2176, 3840), 257), vram=80, recipe="huge")


def test_a_recipe_that_cannot_fit_is_refused_before_anything_is_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from facelock.assembly import Assembly

    recipe = load_recipe()
    changed = {"model": str(folders["14B"]), "size": (544, 960), "window": 97, "precision": "bfloat16"}
    low = recipe.blueprint.model_copy(update=changed)
    recipe = tuned(recipe.model_copy(update={"blueprint": low}), vram=8)
    monkeypatch.setattr("facelock.assembly.backbone_class", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(DeviceError, match=r"--recipe miniature|--vram"):
        Assembly(recipe, "cpu")
    assert Assembly(tuned(recipe, vram=80), "cpu").plan.groups == 0


def test_vram_takes_the_sizes_that_have_a_plan() -> None:
    assert tuned(load_recipe(), vram=16).memory.vram == 16
    with pytest.raises(ConfigError, match="8, 12, 16, 24, 48, 80"):
        tuned(load_recipe(), vram=10)
    assert VRAM == (8, 12, 16, 24, 48, 80)


def test_a_card_smaller_than_its_plan_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from facelock.assembly import Assembly

    monkeypatch.setattr("facelock.memory.total_memory", lambda _: 12 * GIB)
    with pytest.raises(DeviceError, match=r"12 GiB, less than --vram 24"):
        Assembly(tuned(load_recipe(), vram=24), "cpu")
    assert Assembly(load_recipe(), "cpu").plan == Plan()


def test_damaged_weights_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "x.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="damaged"):
        read_footprint(tmp_path)


# ---------------------------------------------------------------------- the factors


class Alive(TorchDispatchMode):
    """Adds up the bytes of all tensors that are alive, fake ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return out

    def _gone(self, count: int) -> None:
        self.now -= count


@pytest.mark.parametrize("full", [False, True], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("forcing", [True, False], ids=["SkyReels-V2", "Wan"])
def test_denoising_takes_what_the_formula_says(forcing: bool, full: bool) -> None:
    """At a real width and many tokens, on fake tensors: within 15 % below the formula, and never above."""
    from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel
    from torch._subclasses.fake_tensor import FakeTensorMode

    kind = SkyReelsV2Transformer3DModel if forcing else WanTransformer3DModel
    dtype = torch.float32 if full else torch.bfloat16
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(dtype)
        try:
            network = kind(
                num_attention_heads=12, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=4096,
                freq_dim=256, ffn_dim=8960, num_layers=2, rope_max_seq_len=1024,
            )  # fmt: skip
        finally:
            torch.set_default_dtype(torch.float32)
        levels = torch.zeros(1, 25, dtype=torch.long) if forcing else torch.zeros(1, dtype=torch.long)
        more = {"enable_diffusion_forcing": True, "fps": [1]} if forcing else {}
        with torch.no_grad(), Alive() as alive:
            network(
                hidden_states=torch.empty(1, 16, 25, 68, 120, dtype=dtype), timestep=levels,
                encoder_hidden_states=torch.empty(1, 512, 4096, dtype=dtype), return_dict=False, **more,
            )  # fmt: skip
    share = alive.peak / (25 * 34 * 60 * 1536 * PER_TOKEN[forcing, full])
    assert 0.8 < share <= 1.0, share


def test_decoding_takes_what_the_formula_says() -> None:
    from diffusers import AutoencoderKLWan
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        vae = AutoencoderKLWan()
        with torch.no_grad(), Alive() as alive:
            vae.decode(torch.empty(1, 16, 3, 60, 104), return_dict=False)
    share = alive.peak / (480 * 832 * (PER_PIXEL + 12 * 9))
    assert 0.8 < share <= 1.05, share
