"""Commands ask for what they use of a recipe: who locks or measures a clip need not have the blueprint's 15 GiB."""

from __future__ import annotations

from pathlib import Path

import pytest
from footage_files import video
from real import ASSETS, needs_assets
from test_preflight import MARIA, recipe_file

import facelock
from facelock.assembly import Assembly
from facelock.errors import ConfigError, FaceLockError, ModelError
from facelock.footage.parts import open_parts
from facelock.images import read_picture
from facelock.memory import memory_plan
from facelock.pipeline import Pipeline
from facelock.preflight import lacking
from facelock.recipe import load_recipe, model_names, tuned
from facelock.recipe.uses import ALL, REFERENCES, RESTORER, VERIFY, clip_uses, uses
from facelock.tuning.plan import Plan

BLUEPRINT = ('model = "miniature/blueprint"', 'model = "skyreels-v2-1.3b"')
UPSCALER = ('upscaler = "miniature/upscaler"', 'upscaler = "realesr-general-x4v3"')
RESTORER_LOST = ('restorer = "miniature/restorer"', 'restorer = "gfpgan-v1.4"')
KIND = ('restorer_kind = "onnx_restorer"', 'restorer_kind = "spandrel_restorer"')
ALIGNER = ('model = "miniature/aligner"', 'model = "insightface/inswapper_128"')
LOOP = ('encoder = "miniature/recogniser"', 'encoder = "insightface/buffalo_l"')
SAGE = '\n[speed]\nattention = "sage"\n'


@pytest.fixture(autouse=True)
def nothing_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two frames of the sample character's picture."""
    picture = read_picture(MARIA).frames
    return video(tmp_path_factory.mktemp("clip") / "clip.mp4", picture.repeat(2, 1, 1, 1))


def test_roles_of_sections() -> None:
    recipe = load_recipe("wan2.1-vace-1.3b")
    assert set(model_names(recipe, VERIFY)) == {"faces.detector", "judge.encoder"}
    assert set(model_names(recipe, REFERENCES)) == {"faces.detector", "faces.encoder", "judge.encoder"}
    assert set(model_names(load_recipe(), RESTORER)) == {"restore.restorer"}
    assert model_names(recipe, ALL) == model_names(recipe)
    assert not uses(frozenset({"lock"}), "locked.model")


def test_nothing_is_said_of_a_blueprint_that_is_not_used(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, BLUEPRINT, ("window = 17", "window = 18"), UPSCALER, more=SAGE)
    recipe = load_recipe(path)
    told = " ".join(map(str, lacking(recipe)))
    for words in ("skyreels-v2-1.3b", "realesr-general-x4v3", "speed.attention"):
        assert words in told
    for used in (VERIFY, REFERENCES, REFERENCES | RESTORER | {"lock", "encode"}):
        assert lacking(recipe, used=used) == []
    wrong = load_recipe(recipe_file(tmp_path, ALIGNER, RESTORER_LOST, KIND, LOOP))
    assert lacking(wrong, used=VERIFY) == [] != lacking(wrong, used=frozenset({"lock"}))


def test_a_clip_is_locked_without_blueprint_and_upscaler(tmp_path: Path, clip: Path) -> None:
    recipe = recipe_file(tmp_path, BLUEPRINT, UPSCALER, more=SAGE)
    footage = facelock.lock(clip, MARIA, recipe=recipe, device="cpu")
    (chunk,) = footage
    assert chunk.frames.shape[0] == 2
    assert footage.parts.restorer is not None and "blueprint.model" not in footage.parts.weights
    with pytest.raises(FaceLockError, match=r"skyreels-v2-1\.3b"):
        facelock.generate("a woman", MARIA, seconds=1, recipe=recipe, device="cpu")


def test_the_restorer_counts_where_it_restores(tmp_path: Path, clip: Path) -> None:
    recipe = recipe_file(tmp_path, BLUEPRINT, RESTORER_LOST, KIND)
    with pytest.raises(FaceLockError, match=r"gfpgan-v1\.4 is not on this machine"):
        open_parts(recipe, "cpu")
    assert open_parts(recipe, "cpu", restore=False).restorer is None
    with pytest.raises(ModelError, match="inswapper_128 is not on this machine"):
        open_parts(recipe_file(tmp_path, BLUEPRINT, ALIGNER), "cpu")


@pytest.mark.parametrize(
    ("lock", "restore", "guided", "left_out"),
    [
        (True, True, False, set()),
        (False, True, False, {"lock.model"}),
        (True, False, False, {"restore.restorer"}),
        (False, False, True, {"lock.model", "restore.restorer"}),
        (False, False, False, {"lock.model", "restore.restorer", "faces.encoder"}),
    ],
)
def test_a_clip_asks_for_the_stages_that_make_it(
    lock: bool, restore: bool, guided: bool, left_out: set[str]
) -> None:
    everything = model_names(load_recipe())
    used = clip_uses(lock=lock, restore=restore, guided=guided)
    assert set(everything) - set(model_names(load_recipe(), used)) == left_out


def test_a_clip_without_the_lock_is_made_without_the_aligner(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, ALIGNER, LOOP, RESTORER_LOST, KIND)
    options = {"seconds": 0.25, "recipe": recipe, "device": "cpu"}
    for stages, wanted, other in (
        ({"lock": True, "restore": False}, "inswapper_128", "gfpgan"),
        ({"lock": False, "restore": True}, "gfpgan", "inswapper_128"),
    ):
        with pytest.raises(FaceLockError) as error:
            facelock.generate("a woman", MARIA, **options, **stages)
        assert wanted in str(error.value) and other not in str(error.value)
    clip = facelock.generate("a woman", MARIA, lock=False, restore=False, commercial=True, **options)
    assert clip.save(tmp_path / "plain.mp4").frames == 3
    weights = clip.pipeline.parts.weights
    assert "lock.model" not in weights and "faces.encoder" not in weights and "restore.upscaler" in weights


def test_a_clip_is_measured_with_detector_and_judge_alone(tmp_path: Path, clip: Path) -> None:
    recipe = recipe_file(tmp_path, BLUEPRINT, UPSCALER, ALIGNER, LOOP, RESTORER_LOST, KIND, more=SAGE)
    report = facelock.verify(clip, MARIA, recipe=recipe, device="cpu")
    assert report.frames == 2
    plain = facelock.verify(clip, MARIA, device="cpu")
    assert [row.similarity for row in report.ledger] == [row.similarity for row in plain.ledger]
    with pytest.raises(FaceLockError, match=r"opencv/sface is not on this machine"):
        judged = ('encoder = "miniature/judge"', 'encoder = "opencv/sface"')
        facelock.verify(clip, MARIA, recipe=recipe_file(tmp_path, judged), device="cpu")


def test_a_reference_is_read_with_the_recognisers_alone(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, BLUEPRINT, ALIGNER)
    assert len(facelock.load_identity(MARIA, recipe=recipe, device="cpu").embeddings) == 2
    pipeline = Pipeline.from_recipe(recipe_file(tmp_path, BLUEPRINT, LOOP), "cpu", used=VERIFY)
    assert len(pipeline.parts.identity(MARIA, name=None, face=None).embeddings) == 1


def test_licences_are_asked_of_what_is_used(tmp_path: Path, clip: Path) -> None:
    recipe = recipe_file(tmp_path, ALIGNER, RESTORER_LOST, KIND)
    said = "does not allow commercial use"
    assert facelock.verify(clip, MARIA, recipe=recipe, device="cpu", commercial=True).frames == 2
    for begin in (
        lambda: facelock.generate("a", MARIA, seconds=1, recipe=recipe, device="cpu", commercial=True),
        lambda: facelock.lock(clip, MARIA, recipe=recipe, device="cpu", commercial=True),
    ):
        with pytest.raises(ConfigError, match=said):
            begin()
    mixed = recipe_file(
        tmp_path, ('restorer = "miniature/restorer"', 'restorer = "insightface/inswapper_128"')
    )
    with pytest.raises(ConfigError, match=said):
        open_parts(mixed, "cpu", commercial=True)
    assert open_parts(mixed, "cpu", commercial=True, restore=False).restorer is None
    loop = recipe_file(tmp_path, LOOP)
    with pytest.raises(ConfigError, match=said):
        facelock.load_identity(MARIA, recipe=loop, device="cpu", commercial=True)


def test_landmarks_are_used_by_the_warp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.task"
    mine.write_bytes(b"mine")
    monkeypatch.setenv("FACELOCK_LANDMARKS", str(mine))
    with pytest.raises(ConfigError, match=r"mine\.task: its licence is not known"):
        open_parts("miniature", "cpu", aligner="warp", commercial=True)
    open_parts("miniature", "cpu", commercial=True)


@needs_assets
def test_named_recognisers_need_nothing_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACELOCK_LANDMARKS", str(ASSETS / "landmarks" / "face_landmarker.task"))
    faces = ASSETS / "detectors" / "face_detection_yunet_2023mar.onnx"
    packs = f"{faces}+{ASSETS / 'recognisers' / 'mobileface_id_v2.onnx'}"
    judge = str(ASSETS / "recognisers" / "w600k_mbf_dequant_fp32.onnx")
    parts = open_parts("wan2.1-vace-1.3b", "cpu", aligner="warp", packs=packs, judge=judge)
    assert set(parts.weights) == set() and parts.restorer is None
    with pytest.raises(ConfigError, match="does not allow commercial use"):
        open_parts("miniature", "cpu", aligner="warp", packs=packs, judge=judge, commercial=True)


def test_memory_is_planned_without_a_blueprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """14 billion weights that are not loaded take none."""
    recipe = tuned(load_recipe("wan2.1-vace-14b"), vram=8)
    assert memory_plan(recipe, Assembly(load_recipe(), "cpu")._device, None).groups == 0
    used = REFERENCES | {"lock"}
    assert Assembly(load_recipe(), "cpu", used=used).plan == Plan()
    with pytest.raises(KeyError):
        Assembly(load_recipe(), "cpu", used=used).backbone  # noqa: B018
