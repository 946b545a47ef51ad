"""The production recipe that ``--commercial`` takes: licences, facts, and the whole of it with stand-ins."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import published_sizes
import pytest
import tiny_restore
import tiny_wan
from footage_files import ffmpeg
from real import ASSETS, needs_assets
from test_preflight import MARIA
from test_warp import Reader
from torch.nn import functional

import facelock
from facelock.assembly import Assembly
from facelock.assets import asset_dir
from facelock.errors import ConfigError, FaceLockError
from facelock.footage.parts import open_parts
from facelock.images import read_picture
from facelock.pipeline import Pipeline
from facelock.preflight import wanted
from facelock.recipe import Recipe, load_recipe, model_names, recipe_names
from facelock.video.writing import probe
from facelock.weights import require_commercial
from facelock.weights.calibration import CAREFUL, calibrated
from facelock.weights.catalog import Catalog
from facelock.weights.pull import find_all

NAME = "wan2.1-vace-1.3b-commercial"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_it_is_the_production_recipe_that_is_not_refused() -> None:
    allowed = set()
    for name, path in recipe_names().items():
        try:
            require_commercial(model_names(load_recipe(path)).values())
        except ConfigError:
            continue
        allowed.add(name)
    assert allowed == {"default", "miniature", "miniature-two", NAME}


def test_nothing_but_weights_and_a_gpu_stands_in_its_way() -> None:
    with pytest.raises(FaceLockError) as caught:
        Assembly(load_recipe(NAME), "cpu", commercial=True)
    told = str(caught.value)
    assert "commercial" not in told.replace(NAME, "") and "auraface-v1" in told
    assert len(told.splitlines()) == 3 and "restoration in bfloat16 needs a GPU" in told
    names = wanted((), NAME)
    assert {entry.name for entry in find_all(names, commercial=True)} == {
        "wan2.1-vace-1.3b", "opencv/yunet", "opencv/sface", "mediapipe/face_landmarker", "realesr-general-x4v3",
        "auraface-v1",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="does not allow commercial use"):
        find_all(wanted((), "wan2.1-vace-1.3b"), commercial=True)


def test_its_blueprint_is_the_one_that_is_counted() -> None:
    recipe, plain = load_recipe(NAME), load_recipe("wan2.1-vace-1.3b")
    assert recipe.blueprint == plain.blueprint
    assert recipe.vram_gib == round(published_sizes.gib("wan2.1-vace-1.3b"), 1)
    assert recipe.lock.kind == "warp" and recipe.restore.restorer is None


def test_its_judge_is_another_recogniser_and_uncalibrated() -> None:
    recipe, catalog = load_recipe(NAME), Catalog.load()
    judge, loop = catalog.entry(recipe.judge.encoder), catalog.entry(recipe.faces.encoder)
    assert judge.sha256 != loop.sha256 and judge.fetch and judge.bytes == 260_694_151
    assert calibrated(judge.sha256) is None and judge.thresholds is None and judge.published_threshold is None
    packs = [entry for name, entry in catalog.entries.items() if name.startswith("insightface/")]
    assert judge.sha256 not in {digest for pack in packs for digest in (pack.sha256, *pack.files.values())}


def stood_in(folder: Path, **models: str | int) -> Recipe:
    """The recipe as it is shipped, with other settings by role, a small blueprint, precisions of a CPU."""
    values: dict[str, Any] = tomllib.loads((asset_dir("pipelines") / f"{NAME}.toml").read_text())
    low = {
        "size": [64, 64],
        "window": 9,
        "context": 5,
        "steps": 2,
        "guidance_scale": 1.0,
        "precision": "float32",
    }
    values["blueprint"] |= low | {"model": str(tiny_wan.vace(folder / "vace"))}
    values["restore"] |= {"precision": "float32"}
    values["restore"] |= {"upscaler": str(tiny_restore.srvgg(folder / "up.pth", scale=4))}
    for role, name in models.items():
        section, key = role.split("_", 1)
        values[section][key] = name
    return Recipe.model_validate(values)


@pytest.mark.parametrize("names", [("maria",), ("maria", "leo")], ids=["one", "two"])
def test_a_clip_is_made_by_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """The miniature's recognisers and a toy's landmarks stand in; the tiny blueprint's noise lies on a face."""
    (tmp_path / "face.task").write_bytes(b"a toy reads them")
    monkeypatch.setattr("facelock.alignment.warp.load_reader", lambda path: Reader())
    recipe = stood_in(
        tmp_path,
        faces_detector="miniature/detector",
        faces_detection_size=128,  # what it is made for
        faces_encoder="miniature/recogniser",
        judge_encoder="miniature/judge",
        lock_model=str(tmp_path / "face.task"),
    )
    pipeline = Pipeline.from_recipe(recipe, "cpu")
    backbone, asked = pipeline.parts.backbone, []
    picture = functional.interpolate(read_picture(MARIA).frames, (64, 64), mode="area")
    real = backbone.extend

    def extend(prompt: str, context: Any, **options: Any) -> Any:
        asked.append((None if context is None else len(context), [who.name for who in options["references"]]))
        return 0.98 * picture + 0.02 * real(prompt, context, **options)

    monkeypatch.setattr(backbone, "extend", extend)
    cast = [str(Path(MARIA).with_name(f"{name}.png")) for name in names]
    report = pipeline.generate("a woman talking", cast, seconds=13 / 16).save(tmp_path / "clip.mp4")
    assert asked == [(None, list(names)), (5, list(names))]
    info = probe(tmp_path / "clip.mp4")
    assert report.frames == info.frames == 13 and (info.height, info.width) == (256, 256)
    assert {row.character for row in report.ledger} == set(names)
    assert all(row.similarity is not None for row in report.ledger if row.character == "maria")
    assert report.settings["recipe"]["name"] == NAME


@needs_assets
def test_a_real_clip_is_locked_by_its_own_weights(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """YuNet and the landmarks are the catalog's own files; SFace and AuraFace are not at hand, so two others of MIT and
    research licences stand in for them. The judge sees the other person come nearer to the reference."""
    known = Catalog.load()
    for name, file in (
        ("opencv/yunet", "detectors/face_detection_yunet_2023mar.onnx"),
        ("mediapipe/face_landmarker", "landmarks/face_landmarker.task"),
    ):
        place = known.entry(name).path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ASSETS / file, place)
    recognisers = ASSETS / "recognisers"
    recipe = stood_in(
        tmp_path,
        faces_encoder=str(recognisers / "mobileface_id_v2.onnx"),
        judge_encoder=str(recognisers / "w600k_mbf_dequant_fp32.onnx"),
    )
    clip = ffmpeg(
        tmp_path / "clip.mp4",
        "-i",
        ASSETS / "videos" / "liveportrait_d19.mp4",
        "-frames:v",
        3,
        "-vf",
        "scale=320:-2",
    )
    who = ASSETS / "photos" / "public_domain" / "astronaut.png"
    report = facelock.lock(clip, who, recipe=recipe, device="cpu").save(tmp_path / "fixed.mp4")
    assert report.frames == 3 and report.settings["aligner"] == "warp"
    before = [row.similarity for row in report.ledger_unlocked]
    after = [row.similarity for row in report.ledger]
    assert all(b is not None and a is not None and a > b + 0.1 for a, b in zip(after, before, strict=True)), (
        before,
        after,
    )
    verified = facelock.verify(tmp_path / "fixed.mp4", who, recipe=recipe, device="cpu")
    assert verified.frames == 3
    named = f"opencv/yunet+{recognisers / 'mobileface_id_v2.onnx'}"
    parts = open_parts(recipe, "cpu", packs=named, judge=str(recognisers / "arcface_mbf_y1_ms1m.onnx"))
    assert parts.aligner == "warp" and set(parts.weights) == {"lock.model"}
    with pytest.raises(ConfigError, match=r"w600k.*does not allow commercial use"):
        facelock.verify(clip, who, recipe=recipe, device="cpu", commercial=True)


def test_careful_thresholds_are_those_the_page_states() -> None:
    page = (Path(__file__).parents[1] / "docs" / "production.md").read_text()
    assert (CAREFUL.far_1e2, CAREFUL.far_1e3, CAREFUL.far_1e4) == (0.32, 0.42, 0.50)
    assert "0.32, 0.42 and 0.50" in page and f"`{NAME}`" in page
