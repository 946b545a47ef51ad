"""Packs by name: every way of the grammar, what a file is found to be, and one sentence for what is missing."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import toy_pack
from onnx import TensorProto, helper, numpy_helper
from real import ASSETS, needs_assets

from facelock.assets import asset_dir
from facelock.errors import ConfigError, ModelError
from facelock.faces import CrateEncoder, OnnxEncoder, Pack, ScrfdDetector, YunetDetector, kind_of
from facelock.faces.graph import rewritten
from facelock.faces.kinds import takes_bytes
from facelock.faces.pack import to_planes
from facelock.images import read_picture
from facelock.perception import open_perception
from facelock.types import Faces, Thresholds
from facelock.weights import calibration, digest
from facelock.weights.calibration import CAREFUL, calibrated

MODELS = asset_dir("models") / "miniature"
RECOGNISERS = ASSETS / "recognisers"
DETECTORS = ASSETS / "detectors"
RAW = ("arcface_mbf_y1_ms1m", "mobileface_id_v2", "mobilefacenet_casia_xiaoccer")
"""Take 0..255 (the assets' README)."""
ROWS = 3


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A root with an insightface pack of random networks, and other files in it as real packs have them."""
    root = tmp_path_factory.mktemp("insightface")
    (root / "models").mkdir()
    folder = toy_pack.folder(root / "models" / "toys")
    shutil.copy(MODELS / "aligner.onnx", folder / "a_first.onnx")
    return root


def test_the_miniature_stays_what_it_was():
    seen = open_perception()
    assert seen.names == ("miniature", "miniature")
    assert seen.faces.encoder.id.startswith("miniature/recogniser@")
    assert seen.judge.encoder.id.startswith("miniature/judge@") and isinstance(
        seen.judge.encoder, CrateEncoder
    )
    assert len(seen.packs) == 2


def test_insightface_packs_by_name_and_by_folder(home, monkeypatch, tmp_path):
    monkeypatch.setenv("INSIGHTFACE_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    by_name = open_perception("insightface:toys")
    by_folder = open_perception(f"insightface:{home / 'models' / 'toys'}")
    assert by_name.faces.encoder.id == by_folder.faces.encoder.id
    assert isinstance(by_name.faces, Pack) and isinstance(by_name.faces.detector, ScrfdDetector)
    assert by_name.faces.detector.detection_size == 640
    assert by_name.packs == (by_name.faces,) and by_name.judge is by_name.faces  # it measures by itself


def test_the_root_is_the_home_folders_by_default(home, monkeypatch):
    monkeypatch.delenv("INSIGHTFACE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home.parent))
    (home.parent / ".insightface").exists() or (home.parent / ".insightface").symlink_to(home)
    assert open_perception("insightface:toys").faces.encoder.id.startswith("recogniser@")


def test_a_missing_pack_says_where_it_was_looked_for_and_how_to_get_it(home, monkeypatch):
    monkeypatch.setenv("INSIGHTFACE_HOME", str(home))
    before = sorted(home.rglob("*"))
    with pytest.raises(ModelError) as caught:
        open_perception("insightface:buffalo_l")
    message = str(caught.value)
    assert str(home / "models" / "buffalo_l") in message and "model.download buffalo_l" in message
    assert "non-commercial" in message and "\n" not in message
    assert sorted(home.rglob("*")) == before  # nothing was fetched or made
    (home / "models" / "half").mkdir(exist_ok=True)
    shutil.copy(home / "models" / "toys" / "detector.onnx", home / "models" / "half" / "det.onnx")
    with pytest.raises(ModelError, match="half: holds no recogniser"):
        open_perception("insightface:half")


def test_two_files_and_a_judge_by_itself(home):
    toys = home / "models" / "toys"
    pair = f"{toys / 'detector.onnx'}+{MODELS / 'faces' / 'recogniser.onnx'}"
    seen = open_perception(pair, str(toys / "recogniser.onnx"))
    assert seen.faces.encoder.id.startswith("miniature/recogniser@")  # known by its digest
    assert seen.judge.detector is seen.faces.detector
    assert seen.judge.encoder.id.startswith("recogniser@")
    crate = open_perception(pair, "miniature/judge")
    assert isinstance(crate.judge.encoder, CrateEncoder)
    assert crate.judge.encoder.id == open_perception().judge.encoder.id
    assert crate.judge.detector is crate.faces.detector
    other = open_perception(pair, f"insightface:{toys}")
    assert other.judge.detector is not other.faces.detector
    assert (
        open_perception("miniature/detector+miniature/recogniser").faces.encoder.id == seen.faces.encoder.id
    )


def test_a_file_with_a_plus_in_its_name(home, tmp_path):
    shutil.copy(home / "models" / "toys" / "detector.onnx", tmp_path / "a+b.onnx")
    shutil.copy(home / "models" / "toys" / "recogniser.onnx", tmp_path / "c+d.onnx")
    seen = open_perception(f"{tmp_path / 'a+b.onnx'}+{tmp_path / 'c+d.onnx'}", str(tmp_path / "c+d.onnx"))
    assert seen.faces.encoder.id.startswith("c+d@") and seen.judge.detector is seen.faces.detector


@pytest.mark.parametrize(
    "name", ["", "buffalo_l", "insightface:", "opencv:", "opencv:yunet", "+", "a+", "+b"]
)
def test_names_that_mean_nothing(name):
    with pytest.raises(ConfigError, match="insightface:NAME"):
        open_perception(name)


@pytest.mark.parametrize(
    ("faces", "judge"),
    [("opencv:nothing+sface", None), ("nowhere.onnx+nothing.onnx", None), ("miniature", "nowhere.onnx"),
     ("miniature", ""), ("miniature/recogniser+miniature/recogniser", None),
     ("miniature/detector+miniature/detector", None), ("miniature", "miniature/upscaler"),
     ("miniature", "miniature/faces")],
)  # fmt: skip
def test_weights_that_are_not_there_or_of_another_kind(faces, judge):
    with pytest.raises((ModelError, ConfigError)) as caught:
        open_perception(faces, judge)
    assert re.search(r"\. [A-Z]", str(caught.value)) and "\n" not in str(caught.value)


# -- what a file is ----------------------------------------------------------------------------------------


def test_kinds_are_found_by_looking(home, tmp_path):
    toys = home / "models" / "toys"
    assert kind_of(toys / "detector.onnx") == "scrfd"
    assert kind_of(toys / "recogniser.onnx") == "arcface"
    assert kind_of(MODELS / "judge") == "crate"
    assert kind_of(MODELS / "aligner.onnx") == kind_of(MODELS / "blueprint") == "other"
    renamed = tmp_path / "detector.onnx"
    shutil.copy(toys / "recogniser.onnx", renamed)
    assert kind_of(renamed) == "arcface"
    shutil.copy(toys / "detector.onnx", renamed)
    assert kind_of(renamed) == "scrfd"  # looked at again when it changes
    renamed.write_bytes(b"no model" * 100)
    with pytest.raises(ModelError, match="not a readable ONNX model"):
        kind_of(renamed)


def recogniser(path, steps):
    """An ArcFace file that first does ``steps``: (operator, constant or None)."""
    nodes, weights, value = [], [], "in"
    for place, (kind, constant) in enumerate(steps):
        inputs = [value]
        if constant is not None:
            weights.append(numpy_helper.from_array(np.float32(constant), f"c{place}"))
            inputs.append(f"c{place}")
        nodes.append(helper.make_node(kind, inputs, [f"v{place}"]))
        value = f"v{place}"
    nodes += [
        helper.make_node("AveragePool", [value], ["s"], kernel_shape=[56, 56], strides=[56, 56]),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["e"]),
    ]
    weights.append(
        numpy_helper.from_array(np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32), "w")
    )
    entry = helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 3, 112, 112])
    leave = helper.make_tensor_value_info("e", TensorProto.FLOAT, ["n", 8])
    graph = helper.make_graph(nodes, "g", [entry], [leave], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("steps", "raw"),
    [
        ([("Sub", 127.5), ("Mul", 1 / 128)], True),
        ([("Identity", None), ("Sub", 127.5), ("Div", 128.0)], True),
        ([("Mul", 1 / 128), ("Add", -1.0)], True),
        ([], False),
        ([("Sub", 0.1)], False),
        ([("Relu", None), ("Sub", 127.5), ("Mul", 1 / 128)], False),  # that is the network itself
    ],
)
def test_the_range_is_read_off_the_graph(tmp_path, steps, raw):
    path = recogniser(tmp_path / "r.onnx", steps)
    assert takes_bytes(path) is raw
    crops = torch.rand(1, 3, 112, 112)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"in": (crops * 255 if raw else crops * 2 - 1).numpy()})[0][0]
    got = OnnxEncoder(path, name="r", thresholds=CAREFUL).embed_crops(crops)[0].numpy()
    assert float(got @ wanted / np.linalg.norm(wanted)) > 0.99999


@needs_assets
def test_every_recogniser_of_the_assets():
    widths = {"w600k_mbf_dequant_fp32": 512, "mobileface_id_v2": 256}
    for path in sorted(RECOGNISERS.glob("*.onnx")):
        assert takes_bytes(path) is (path.stem in RAW), path.stem
        encoder = open_perception(f"{DETECTORS / 'det_500m.onnx'}+{path}").faces.encoder
        assert encoder.embed_crops(torch.rand(ROWS, 3, 112, 112)).shape == (ROWS, widths.get(path.stem, 128))
    assert kind_of(DETECTORS / "det_500m.onnx") == "scrfd"
    assert kind_of(DETECTORS / "face_detection_yunet_2023mar.onnx") == "yunet"


@needs_assets
def test_opencv_by_files():
    spec = (
        f"opencv:{DETECTORS / 'face_detection_yunet_2023mar.onnx'}+{RECOGNISERS / 'arcface_mbf_y1_ms1m.onnx'}"
    )
    seen = open_perception(spec, str(RECOGNISERS / "mobileface_id_v2.onnx"))
    assert isinstance(seen.faces.detector, YunetDetector) and seen.judge.detector is seen.faces.detector
    assert seen.names == (spec, str(RECOGNISERS / "mobileface_id_v2.onnx"))


# -- the same numbers as insightface's, and as the file's --------------------------------------------------


def test_embeddings_equal_insightfaces_own_on_the_same_crop(home):
    from insightface.model_zoo import get_model

    path = home / "models" / "toys" / "recogniser.onnx"
    theirs = get_model(str(path), providers=["CPUExecutionProvider"])
    crops = torch.rand(5, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    crops = (crops * 255).round() / 255
    ours = OnnxEncoder(path, name="toy", thresholds=CAREFUL).embed_crops(crops)
    for crop, embedding in zip(crops, ours, strict=True):
        feature = theirs.get_feat(cv2.merge(to_planes(crop)[::-1]))[0]
        assert float(embedding @ torch.from_numpy(feature / np.linalg.norm(feature))) >= 0.9999


@needs_assets
def test_the_same_faces_and_embeddings_as_insightface_on_a_photo():
    import warnings

    from insightface.app.common import Face
    from insightface.model_zoo import get_model

    from facelock.images import read_picture

    detector, path = DETECTORS / "det_500m.onnx", RECOGNISERS / "w600k_mbf_dequant_fp32.onnx"
    pack = open_perception(f"{detector}+{path}").faces
    frames = read_picture(ASSETS / "photos/public_domain/fr_test_obama_and_biden.jpg").frames
    picture = cv2.merge(to_planes(frames[0])[::-1])
    finder, reader = (get_model(str(p), providers=["CPUExecutionProvider"]) for p in (detector, path))
    finder.prepare(-1, input_size=(640, 640), det_thresh=0.5)
    boxes, points = finder.detect(picture)
    found = pack.detect(frames)
    np.testing.assert_allclose(found.box, boxes[:, :4], atol=0.05)
    np.testing.assert_allclose(found.landmarks, points, atol=0.05)
    for n, embedding in enumerate(pack.embed(frames, found)):
        face = Face(bbox=boxes[n, :4], kps=points[n], det_score=boxes[n, 4])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            reader.get(picture, face)
        assert float(embedding @ torch.from_numpy(face.normed_embedding)) >= 0.9999


def prelu_net(path, slopes):
    weights = np.random.default_rng(0).normal(0, 0.3, (16, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["in", "w"], ["c"], kernel_shape=[3, 3], strides=[8, 8]),
        helper.make_node("PRelu", ["c", "a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["out"]),
    ]
    entry = helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 3, 112, 112])
    leave = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", "d"])
    tensors = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(slopes, "a")]
    graph = helper.make_graph(nodes, "g", [entry], [leave], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_prelu_rewritten_gives_the_same_numbers(tmp_path):
    slopes = np.random.default_rng(1).normal(0.2, 0.5, (16, 1, 1)).astype(np.float32)
    path = prelu_net(tmp_path / "p.onnx", slopes)
    content = rewritten(path)
    assert content and "PRelu" not in {node.op_type for node in onnx.load_from_string(content).graph.node}
    x = np.random.default_rng(2).normal(size=(2, 3, 112, 112)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(m, providers=["CPUExecutionProvider"]).run(None, {"in": x})[0]
        for m in (str(path), content)
    )
    assert (before < 0).any() and np.abs(before - after).max() < 1e-5 * np.abs(before).max()


@pytest.mark.parametrize("cut", ["area", "library"])
def test_packs_see_in_bytes_what_they_see_in_floats(cut):
    """Frames as a file holds them, interleaved, are found and embedded like the same in [0, 1]."""
    bundled = open_perception().faces
    pack = Pack(bundled.detector, bundled.encoder, cut=cut, look_again=True)
    samples = Path(__file__).parents[1] / "samples" / "faces"
    frames = [read_picture(samples / f"{name}.png").frames for name in ("maria", "leo")]
    small = torch.nn.functional.interpolate(torch.cat(frames), (96, 96), mode="area")
    pictures = (small * 255).round().byte().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    faces, floats = pack.detect(pictures), pictures.float() / 255
    again = pack.detect(floats)
    assert len(faces) and all(
        torch.equal(getattr(faces, k), getattr(again, k)) for k in ("frame", "box", "landmarks")
    )
    assert torch.equal(pack.crops(pictures, faces), pack.crops(floats, faces))
    assert pack.side_by_side


# -- thresholds --------------------------------------------------------------------------------------------


def test_calibrated_recognisers_have_ordered_thresholds_and_say_how():
    assert len(calibration.table()) >= 5
    for sha256, known in calibration.table().items():
        assert re.fullmatch(r"[0-9a-f]{64}", sha256) and known.measured and known.licence
        limits = known.thresholds
        assert 0 < limits.far_1e2 <= limits.far_1e3 <= limits.far_1e4 < 0.7
        if "not measured here" not in known.measured:
            for name in ("far_1e2", "far_1e3", "far_1e4"):
                assert getattr(CAREFUL, name) >= getattr(limits, name)


def test_an_unknown_recogniser_gets_careful_thresholds_and_one_warning(home, tmp_path, caplog):
    path = toy_pack.recogniser(tmp_path / "mine.onnx", seed=77)
    pair = f"{home / 'models' / 'toys' / 'detector.onnx'}+{path}"
    with caplog.at_level(logging.WARNING):
        first = open_perception(pair)
        open_perception(pair)
    assert first.faces.encoder.thresholds == CAREFUL
    assert caplog.text.count("mine (sha256") == 1 and "not calibrated" in caplog.text


@needs_assets
def test_known_weights_are_known_under_any_name(tmp_path, caplog):
    copy = tmp_path / "whatever.onnx"
    shutil.copy(RECOGNISERS / "w600k_mbf_dequant_fp32.onnx", copy)
    with caplog.at_level(logging.WARNING):
        encoder = open_perception(f"{DETECTORS / 'det_500m.onnx'}+{copy}").faces.encoder
    known = calibrated(digest(copy))
    assert known and encoder.thresholds == known.thresholds != CAREFUL
    assert encoder.id.startswith("insightface/w600k_mbf-dequantised@") and not caplog.text
    assert all(calibrated(digest(path)) for path in RECOGNISERS.glob("*.onnx"))


def test_a_pack_asks_nothing_of_an_encoder_that_it_does_not_need():
    class Blind:
        def detect(self, frames):
            return Faces(
                torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, 5, 2), torch.zeros(0)
            )

    encoder = OnnxEncoder(
        MODELS / "faces" / "recogniser.onnx", name="m", thresholds=Thresholds(0.1, 0.2, 0.3)
    )
    pack = Pack(Blind(), encoder, look_again=True)
    assert len(pack.detect(torch.rand(2, 3, 40, 40))) == 0
    assert pack.embed(torch.rand(2, 3, 40, 40), pack.detect(torch.rand(2, 3, 40, 40))).shape[0] == 0
