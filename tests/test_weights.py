"""The catalog, verified files, and weights that are refused before they are read."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import time

import pytest
import torch
from real import ASSETS, needs_assets
from safetensors.torch import save_file

from facelock.assets import asset_dir
from facelock.errors import ConfigError, ModelError
from facelock.weights import (
    catalog,
    digest,
    encoder_id,
    load_safetensors,
    locate,
    require_here,
    sha256_file,
    thresholds,
)
from facelock.weights.catalog import Catalog, cache_dir


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A catalog of one file and one folder."""
    (tmp_path / "one.onnx").write_bytes(b"one")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "a.bin2").write_bytes(b"a")
    sha = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "a")}
    (tmp_path / "catalog.toml").write_text(
        f'[models."mini/one"]\npath = "one.onnx"\nsha256 = "{sha["one"]}"\n'
        "thresholds = { far_1e2 = 0.1, far_1e3 = 0.2, far_1e4 = 0.3 }\n"
        f'[models."mini/pack"]\npath = "pack"\n[models."mini/pack".files]\n"a.bin2" = "{sha["a"]}"\n'
    )
    monkeypatch.setattr(catalog, "asset_dir", lambda _: tmp_path)
    return tmp_path


def test_names_become_verified_files(models):
    assert locate("mini/one") == models / "one.onnx"
    assert locate("mini/pack") == models / "pack"
    assert thresholds("mini/one").far_1e3 == 0.2
    assert encoder_id("mini/one", models / "one.onnx") == "mini/one@" + sha256_file(models / "one.onnx")[:12]
    with pytest.raises(ModelError, match="no thresholds"):
        thresholds("mini/pack")


def test_a_file_that_was_changed_is_refused(models):
    locate("mini/one")
    (models / "one.onnx").write_bytes(b"two")
    (models / "pack" / "a.bin2").write_bytes(b"b!")
    for name in ("mini/one", "mini/pack"):
        with pytest.raises(ModelError, match="sha256 differs"):
            locate(name)
    (models / "one.onnx").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        locate("mini/one")


def test_an_unknown_name_names_the_nearest(models):
    with pytest.raises(ConfigError, match=r"'mini/onne'\. Known ones near it: mini/one"):
        locate("mini/onne")
    with pytest.raises(ConfigError, match=r"'zzz'\. See `facelock models list`\.$"):
        locate("zzz")
    with pytest.raises(ConfigError, match=r"^\./nowhere\.onnx: there is no such model file"):
        locate("./nowhere.onnx")


def test_a_path_is_taken_as_it_is_unless_it_is_a_pickle(models, tmp_path):
    (tmp_path / "mine.onnx").write_bytes(b"x")
    assert locate(str(tmp_path / "mine.onnx")) == tmp_path / "mine.onnx"
    for ending in ("pt", "pth", "ckpt", "bin", "pkl"):
        path = tmp_path / f"bad.{ending}"
        path.write_bytes(pickle.dumps(1))
        for read in (locate, load_safetensors):
            with pytest.raises(ModelError, match="can run code"):
                read(str(path))


def test_a_damaged_catalog_is_said(tmp_path):
    for content in (None, b"= not toml"):
        if content:
            (tmp_path / "catalog.toml").write_bytes(content)
        with pytest.raises(ModelError, match=r"catalog\.toml: cannot be read"):
            Catalog.load(tmp_path)


def test_a_digest_follows_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    first = digest(path)
    path.write_bytes(b"22")
    assert digest(path) != first


def header(path, text: bytes, size: int | None = None):
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text)
    return path


def test_tensors_are_read(tmp_path):
    save_file({"a": torch.arange(4.0), "n": torch.arange(3)}, tmp_path / "a.safetensors")
    read = load_safetensors(tmp_path / "a.safetensors")
    assert torch.equal(read["a"], torch.arange(4.0)) and read["n"].dtype == torch.int64


def test_weights_that_are_refused(tmp_path):
    save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.safetensors")
    whole = tmp_path / "whole.safetensors"
    save_file({"w": torch.zeros(1000)}, whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    header(tmp_path / "endless.safetensors", b"{}", 2**60)
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = json.dumps({f"t{i}": entry for i in range(200_000)}).encode()
    header(tmp_path / "many.safetensors", many)
    for name, reason in [
        ("nan", "NaN or infinity"),
        ("cut", "not a readable"),
        ("empty", "not a readable"),
        ("endless", "not a readable"),
        ("many", "more than any model|not a readable"),
        ("none", "not a readable"),
    ]:
        began = time.monotonic()
        with pytest.raises(ModelError, match=reason) as caught:
            load_safetensors(tmp_path / f"{name}.safetensors")
        assert time.monotonic() - began < 30
        assert caught.value.exit_code == 3


def test_the_shipped_catalog_matches_the_shipped_files():
    entries = Catalog.load().entries
    assert len(entries) >= 8
    for name, entry in entries.items():
        if not entry.bundled:
            continue
        assert locate(name) == entry.path
        assert entry.licence == "Apache-2.0" and entry.layout and entry.task
        files = [entry.path] if entry.path.is_file() else [entry.path / f for f in entry.files]
        assert sum(f.stat().st_size for f in files) == entry.bytes
    for name in ("miniature/recogniser", "miniature/judge"):
        found = thresholds(name)
        assert 0 < found.far_1e2 < found.far_1e3 < found.far_1e4 < 1


def test_everything_that_ships_is_in_the_catalog():
    listed = set()
    for entry in [e for e in Catalog.load().entries.values() if e.bundled]:
        listed |= {entry.path} if entry.path.is_file() else {entry.path / f for f in entry.files}
    files = {f for f in (asset_dir("models") / "miniature").rglob("*") if f.is_file()}
    papers = {f for f in files if f.suffix == ".md" or f.name == "training.json" or f.parent.name == "curves"}
    assert files - papers == listed


PUBLIC = """
[models."other/two"]
path = "other/two.onnx"
sha256 = "{sha}"
bytes = 3
licence = "MIT"
commercial = true
[models."other/two".fetch]
urls = ["https://example.org/two.onnx"]

[models."other/gone"]
path = "other/gone.onnx"
sha256 = "{sha}"
licence = "non-commercial"
"""


@pytest.fixture
def public(models, tmp_path, monkeypatch):
    """A public weight beside the bundled ones; the cache folder is empty."""
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "home"))
    (models / "public.toml").write_text(PUBLIC.format(sha=hashlib.sha256(b"two").hexdigest()))
    return tmp_path / "home" / "models" / "other"


def test_all_that_is_missing_is_told_at_once(public, models):
    text = (models / "public.toml").read_text()
    second = "\n" + text.replace("other/two", "other/three").replace("other/gone", "other/lost")
    (models / "public.toml").write_text(text + second.replace(text.split("[", 1)[0], "", 1))
    found = r"^2 models are not on this machine\. Get them with: facelock models pull other/two other/three \(MIT\)\.$"
    with pytest.raises(ModelError, match=found):
        require_here(["other/two", "mini/one", "other/three", "other/two"])
    with pytest.raises(
        ModelError, match="other/gone is not on this machine, and its publisher no longer offers"
    ):
        require_here(["other/two", "other/gone"])


def test_a_public_weight_says_how_to_get_it_until_it_is_here(public):
    said = r"^other/two is not on this machine\. Get it with: facelock models pull other/two \(0\.0 MiB, MIT\)\.$"
    for name in ("other/two", "other-two"):
        with pytest.raises(ModelError, match=said):
            locate(name)
    with pytest.raises(ModelError, match=r"publisher no longer offers it\. Put it at .*other/gone\.onnx"):
        locate("other/gone")
    public.mkdir(parents=True)
    (public / "gone.onnx").write_bytes(b"another")
    with pytest.raises(
        ModelError, match=r"gone\.onnx: not the file the catalog knows.*Replace it, or remove it"
    ):
        locate("other/gone")
    (public / "two.onnx").write_bytes(b"two")
    assert locate("other/two") == locate("other-two") == public / "two.onnx"
    (public / "two.onnx").write_bytes(b"2")
    with pytest.raises(
        ModelError, match=r"sha256 differs.*Get it again with: facelock models pull other/two"
    ):
        locate("other/two")


def test_a_file_of_the_alias_s_name_is_the_file(public, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other-two").write_bytes(b"mine")
    assert locate("other-two").read_bytes() == b"mine"


def test_where_pulled_weights_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("FACELOCK_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert str(cache_dir()) == "/var/cache/me/facelock/models"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_dir() == tmp_path / ".cache" / "facelock" / "models"
    monkeypatch.setenv("FACELOCK_HOME", "/data")
    assert str(cache_dir()) == "/data/models"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"https://example', '"http://example', "must be an https address"),
        ('path = "other/two', 'path = "../two', "must be a plain relative path"),
        ('path = "other/two', 'path = "/two', "must be a plain relative path"),
        ("bytes = 3", "byte = 3", r"models\.other/two\.byte: Extra"),
        ("bytes = 3", "", "nothing unknown is downloaded"),
        ("commercial = true", 'commercial = "yes"', "commercial: Input should be a valid boolean"),
        ('licence = "MIT"', "", "names no licence"),
        ("[models", "[models.x]\n[models", "models.x.path: Field required"),
        ("other/gone", "mini/one", "is bundled already"),
        ("[models", 'kind = "zip"\n[models', "Extra inputs"),
        ("urls", 'kind = "zip"\nurls', "a zip needs its own bytes and sha256"),
        ("urls", 'kind = "torrent"\nurls', "Input should be 'file', 'zip' or 'hub'"),
    ],
)
def test_a_catalog_with_a_mistake_is_refused(public, models, old, new, said):
    text = (models / "public.toml").read_text()
    (models / "public.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ModelError, match=said) as caught:
        Catalog.load()
    assert "public.toml: " in str(caught.value) and "Reinstall FaceLock" in str(caught.value)


def test_the_public_weights_that_ship():
    entries = {name: e for name, e in Catalog.load().entries.items() if not e.bundled}
    assert {"opencv/yunet", "opencv/sface", "insightface/buffalo_l", "mediapipe/face_landmarker"} <= set(
        entries
    )
    for name, entry in entries.items():
        assert entry.licence and entry.task and entry.source and entry.layout, name
        assert entry.bytes or entry.is_recorded, name
        assert cache_dir() in entry.path.parents
        if "/" in name:  # the others: test_hub.py
            assert entry.commercial == (not name.startswith("insightface/"))
        if entry.fetch and entry.fetch.kind == "zip":
            assert all(file.endswith(".onnx") for file in entry.files) and entry.fetch.bytes < entry.bytes
    assert entries["insightface/inswapper_128"].fetch is None
    assert Catalog.load().entry("mediapipe-face-landmarker").name == "mediapipe/face_landmarker"
    assert entries["opencv/sface"].published_threshold == 0.363
    with pytest.raises(ModelError, match="no thresholds"):
        thresholds("opencv/sface")  # one threshold at no stated rate is none per rate


@needs_assets
def test_the_assets_are_the_files_that_the_catalog_names():
    known = Catalog.load()
    for name, path in [
        ("opencv/yunet", "detectors/face_detection_yunet_2023mar.onnx"),
        ("mediapipe/face_landmarker", "landmarks/face_landmarker.task"),
    ]:
        entry = known.entry(name)
        assert sha256_file(ASSETS / path) == entry.sha256 and (ASSETS / path).stat().st_size == entry.bytes
    assert (
        sha256_file(ASSETS / "detectors/det_500m.onnx")
        == (known.entry("insightface/buffalo_s").files["det_500m.onnx"])
    )
    for path in (ASSETS / "recognisers").glob("*.onnx"):
        assert known.licences(sha256_file(path)), path.name
