"""Memory plans: read from headers, checked against what diffusers' classes keep alive, refused before loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_speed import real_size

from facelock.errors import ConfigError, DeviceError, ModelError
from facelock.memory import weights_after
from facelock.recipe import load_recipe, tuned
from facelock.tuning.footprint import Footprint, read_footprint
from facelock.tuning.plan import (
    GIB,
    RESERVE,
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
    assert (small.width, small.blocks, small.control, small.compression) == (1536, 30, 0, (4, 8))
    assert small.network == "SkyReelsV2Transformer3DModel" and small.float32 == {"vae"}
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


def test_the_later_stages_stay_on_the_card_beside_it(small: Footprint, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for name, size in (
        ("unet/a.safetensors", 7),
        ("unet/config.json", 99),
        ("b.onnx", 5),
        ("model.safetensors", 99),
    ):
        (tmp_path / name).write_bytes(bytes(size))
    paths = {"lock.model": tmp_path / "unet", "faces.encoder": tmp_path / "b.onnx"}
    paths |= {"judge.encoder": tmp_path / "b.onnx", "blueprint.model": tmp_path}
    assert weights_after(paths) == 12  # each file once, and not the blueprint's
    for plan in (Plan(), Plan(groups=1, text="layers", tiling=True, pair=False)):
        more = peak(small, replace(SMALL, after=GIB), plan) - peak(small, SMALL, plan)
        assert more == pytest.approx(RESERVE * GIB, abs=2)


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
