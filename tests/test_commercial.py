"""``--commercial``: weights whose licence does not allow it, or is not known, are refused before they are loaded."""

from __future__ import annotations

import shutil

import pytest
from real import ASSETS, needs_assets

import facelock
from facelock import assembly, cli, pipeline
from facelock.assets import asset_dir
from facelock.errors import ConfigError, ModelError
from facelock.perception import open_perception
from facelock.recipe import load_recipe
from facelock.weights import locate, require_commercial
from facelock.weights.catalog import Catalog

BUNDLED = [name for name, entry in Catalog.load().entries.items() if entry.bundled]


def test_what_allows_it_passes():
    require_commercial(BUNDLED)
    require_commercial(["opencv/yunet", "opencv-sface"])  # known by name, whether here or not
    require_commercial([asset_dir("models") / "miniature" / name for name in ("aligner.onnx", "blueprint")])


@pytest.mark.parametrize(
    "name", ["insightface/buffalo_l", "insightface-antelopev2", "insightface/inswapper_128"]
)
def test_a_name_that_does_not_is_refused(name):
    said = r"^insightface/\w+ does not allow commercial use \(its licence: InsightFace.*research only\)\. "
    for refused in (
        lambda: require_commercial(["opencv/yunet", name]),
        lambda: locate(name, commercial=True),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            refused()
        assert caught.value.exit_code == 2


def test_a_file_that_nobody_knows_is_refused(tmp_path):
    mine = tmp_path / "mine.onnx"
    mine.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"mine\.onnx: its licence is not known"):
        require_commercial([mine])
    with pytest.raises(ConfigError, match="no model is called"):
        require_commercial(["opencv/yunett"])


def test_a_folder_is_judged_by_every_file_of_it(tmp_path):
    folder = tmp_path / "pack"
    shutil.copytree(asset_dir("models") / "miniature" / "faces", folder)
    (folder / "README.md").write_text("a model card is no weight")
    require_commercial([folder])
    (folder / "extra.onnx").write_bytes(b"of unknown origin")
    with pytest.raises(ConfigError, match=r"extra\.onnx: its licence is not known"):
        require_commercial([folder])


def test_a_file_is_known_wherever_it_lies(tmp_path, monkeypatch):
    """The renamed copy of a non-commercial pack's file: known by what is in it."""
    known = Catalog.load()
    digests = {**known.entry("insightface/buffalo_s").files}
    monkeypatch.setattr("facelock.weights.digest", lambda path: digests[path.read_text()])
    (tmp_path / "free.onnx").write_text("w600k_mbf.onnx")
    with pytest.raises(
        ConfigError, match=r"free\.onnx \(insightface/buffalo_s\) does not allow commercial use"
    ):
        require_commercial([tmp_path / "free.onnx"])


@needs_assets
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("recognisers/w600k_mbf_dequant_fp32.onnx", "dequantised from buffalo_s.*non-commercial research"),
        ("recognisers/arcface_mbf_y1_ms1m.onnx", "MobileFaceNet y1.*non-commercial research"),
        ("recognisers/mobilefacenet_casia_xiaoccer.onnx", "licence: none given by its publisher"),
        ("detectors/det_500m.onnx", "insightface/buffalo_s.*non-commercial research"),
        ("sr/realesr-animevideov3-x4.onnx", "its licence is not known"),
        ("detectors/face_detection_yunet_2023mar.onnx", None),
        ("landmarks/face_landmarker.task", None),
        ("recognisers/mobileface_id_v2.onnx", None),
    ],
)
def test_real_weights(file, said):
    if said is None:
        require_commercial([ASSETS / file])
        return
    with pytest.raises(ConfigError, match=said):
        require_commercial([ASSETS / file])


def recipe_with(tmp_path, **models):
    """The shipped recipe with other models in it, as a file."""
    text = (asset_dir("pipelines") / "default.toml").read_text()
    for old, new in models.items():
        text = text.replace(f'"miniature/{old}"', f'"{new}"')
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.fixture
def nothing_loads(monkeypatch):
    for name in ("load_pack", "aligner_class", "backbone_class", "locate"):
        monkeypatch.setattr(assembly, name, lambda *_, name=name, **__: pytest.fail(f"{name} was reached"))


def test_a_recipe_is_refused_before_anything_is_looked_for(tmp_path, nothing_loads):
    recipe = load_recipe(recipe_with(tmp_path, aligner="insightface/inswapper_128"))
    with pytest.raises(ConfigError, match="insightface/inswapper_128 does not allow"):
        pipeline.Pipeline.from_recipe(recipe, "cpu", True)
    with pytest.raises(ConfigError, match="insightface/inswapper_128 does not allow"):
        facelock.generate("a woman", "maria.png", seconds=1, recipe=recipe, commercial=True)
    recipe = load_recipe(recipe_with(tmp_path, judge="insightface/antelopev2"))
    with pytest.raises(ConfigError, match="insightface/antelopev2 does not allow"):
        facelock.load_identity("maria.png", recipe=recipe, commercial=True)


def test_a_recipe_s_own_file_is_refused(tmp_path, nothing_loads):
    (tmp_path / "my.onnx").write_bytes(b"my own")
    with pytest.raises(ConfigError, match=r"my\.onnx: its licence is not known"):
        pipeline.Pipeline.from_recipe(load_recipe(recipe_with(tmp_path, judge="my.onnx")), "cpu", True)


def test_without_the_flag_the_same_weight_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path))
    recipe = load_recipe(recipe_with(tmp_path, aligner="insightface/inswapper_128"))
    with pytest.raises(ModelError, match="insightface/inswapper_128 is not on this machine"):
        pipeline.Pipeline.from_recipe(recipe, "cpu")


def test_the_miniature_may_be_used():
    pipeline.Pipeline.from_recipe("miniature", "cpu", True)
    assert open_perception(commercial=True).names == ("miniature", "miniature")


def test_perception_asks_too(monkeypatch):
    asked = []
    monkeypatch.setattr("facelock.weights.require_commercial", asked.extend)
    open_perception(commercial=True)
    assert set(asked) == {"miniature/detector", "miniature/recogniser", "miniature/judge"}
    asked.clear()
    open_perception()
    assert asked == []


@pytest.mark.parametrize("command", ["generate", "verify"])
def test_the_command_line_refuses(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_with(tmp_path, judge="insightface/buffalo_l")
    (tmp_path / "maria.png").write_bytes(b"never read")
    monkeypatch.setattr("facelock.api.probe", lambda _: None)
    given = {
        "generate": ["generate", "a woman", "--seconds", "1", "-o", "clip.mp4"],
        "verify": ["verify", "clip.mp4"],
    }[command]
    with pytest.raises(SystemExit) as left:
        cli.main([*given, "--face", "maria.png", "--recipe", str(recipe), "--commercial", "--device", "cpu"])
    _, err = capsys.readouterr()
    assert left.value.code == 2
    assert "facelock: error: insightface/buffalo_l does not allow commercial use" in err
    assert not (tmp_path / "clip.mp4").exists()
