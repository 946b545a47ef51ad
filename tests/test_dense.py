"""Dense landmark readers: the right points, from hostile files a sentence, and no row that depends on another."""

from __future__ import annotations

import io
import zipfile
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from real import ASSETS, needs_assets

from facelock.errors import ModelError
from facelock.faces import dense
from facelock.faces.dense import DenseReader, InsightFaceReader, MediaPipeReader, load_reader, spans
from facelock.faces.layouts import INSIGHTFACE106, MEDIAPIPE478, with_forehead
from facelock.geometry import REFERENCE384, similarity_from_landmarks, warp_crops
from facelock.images import read_picture

TASK = ASSETS / "landmarks" / "face_landmarker.task"
ASTRONAUT = ASSETS / "photos" / "public_domain" / "astronaut.png"


def toy_106(path, side=192, numbers=212):
    """Points that depend on the picture: a fixed random map of its mean colours in a grid of 8 x 8 cells."""
    g = np.random.default_rng(0)
    weights = (g.normal(size=(192, numbers)) * 0.002).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["data", "mean"], ["centred"], name="Sub_0"),
            helper.make_node("Mul", ["centred", "scale"], ["scaled"], name="Mul_0"),
            helper.make_node(
                "AveragePool", ["scaled"], ["cells"], kernel_shape=[side // 8] * 2, strides=[side // 8] * 2
            ),
            helper.make_node("Flatten", ["cells"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["fc1"]),
        ],
        "toy",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["None", 3, side, side])],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, ["None", numbers])],
        [
            numpy_helper.from_array(np.float32(127.5), "mean"),
            numpy_helper.from_array(np.float32(1 / 128), "scale"),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def mediapipe():
    return MediaPipeReader(TASK)


@pytest.fixture(scope="module")
def astronaut():
    """The astronaut's face in REFERENCE384, and the detector's five points there."""
    frames = read_picture(ASTRONAUT).frames
    path = ASSETS / "detectors" / "face_detection_yunet_2023mar.onnx"
    detector = cv2.FaceDetectorYN.create(str(path), "", frames.shape[:1:-1])
    bgr = (frames[0].permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
    found = torch.from_numpy(detector.detect(np.ascontiguousarray(bgr))[1][:1, 4:14].reshape(1, 5, 2))
    matrices = similarity_from_landmarks(found, REFERENCE384)
    crop = warp_crops(frames, torch.zeros(1, dtype=torch.long), matrices, 384)
    return crop, found[0] @ matrices[0, :, :2].T + matrices[0, :, 2]


def test_layouts_name_each_contour_once():
    for layout in (MEDIAPIPE478, INSIGHTFACE106):
        contours = (
            layout.oval,
            layout.left_eye,
            layout.right_eye,
            layout.outer_lips,
            layout.inner_lips,
            layout.nose,
        )
        flat = [i for contour in contours for i in contour]
        assert len(flat) == len(set(flat)) and max(flat) < layout.count
        assert set(flat).isdisjoint(layout.loose)
        assert set(layout.mesh) | set(layout.loose) == set(range(layout.count))


@needs_assets
def test_mesh_lies_where_the_detector_found_the_face(mediapipe, astronaut):
    crop, five = astronaut
    points, sure = mediapipe.read(crop)
    layout = mediapipe.layout
    assert points.shape == (1, 478, 2) and points.dtype == torch.float32
    assert isinstance(mediapipe, DenseReader) and float(sure) > 0.9
    lips = points[0, [layout.outer_lips[0], layout.outer_lips[10]]]
    own = [points[0, list(part)].mean(0) for part in (layout.left_eye, layout.right_eye, layout.nose[:1])]
    apart = (torch.stack([*own, *lips]) - five).norm(dim=1) / spans(points, layout)
    assert apart.max() < 0.15  # YuNet's own error is most of it
    assert points[0, list(layout.inner_lips)].mean(0)[1] > own[2][1] > own[0][1]


@needs_assets
def test_points_follow_the_face(mediapipe, astronaut):
    crop, _ = astronaut
    moved = torch.roll(crop, (9, -13), (2, 3))
    apart = mediapipe.read(moved)[0] - mediapipe.read(crop)[0] - torch.tensor([-13.0, 9.0])
    assert apart.norm(dim=-1).mean() < 2.5  # of 16


@needs_assets
def test_rows_are_independent_bit_for_bit(mediapipe, astronaut):
    crop, _ = astronaut
    crops = torch.cat(
        [crop, crop.flip(3), torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))]
    )
    points, sure = mediapipe.read(crops)
    for row in range(3):
        alone = mediapipe.read(crops[row : row + 1])
        assert torch.equal(alone[0][0], points[row]) and torch.equal(alone[1][0], sure[row])
    none = mediapipe.read(crops[:0])
    assert none[0].shape == (0, 478, 2) and none[1].shape == (0,)


@needs_assets
def test_confidence_tells_a_face_from_none(mediapipe, astronaut):
    flat = torch.tensor([0.2, 0.5, 0.7])[:, None, None, None].expand(3, 3, 384, 384)
    faces, nothing = mediapipe.read(astronaut[0])[1], mediapipe.read(flat)[1]
    assert faces.min() > 0.9 > 0.8 > nothing.max()


@needs_assets
def test_the_network_alone_is_read_too(mediapipe, astronaut, tmp_path):
    file = tmp_path / "mesh.tflite"
    file.write_bytes(zipfile.ZipFile(TASK).read(dense.MESH))
    assert torch.equal(MediaPipeReader(file).read(astronaut[0])[0], mediapipe.read(astronaut[0])[0])


def bundle(content: bytes, name: str = dense.MESH) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no model", bundle(b"no model"), bundle(b"x", "other"), bundle(b"x" * 5000)[:-30], bytes(5000)],
    ids=["empty", "text", "bundled text", "another member", "cut short", "zeros"],
)
def test_damaged_bundles_are_one_sentence(tmp_path, content):
    file = tmp_path / "face_landmarker.task"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"face_landmarker\.task: .*\. Fetch it again"):
        MediaPipeReader(file)


def test_a_bundle_that_unpacks_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "LARGEST_BUNDLE", 100_000)
    file = tmp_path / "bomb.task"
    file.write_bytes(bundle(bytes(10_000_000)))
    assert file.stat().st_size < 100_000
    with pytest.raises(ModelError, match="unpacks to more than"):
        MediaPipeReader(file)
    file.write_bytes(bytes(100_001))
    with pytest.raises(ModelError, match="are no landmark model"):
        MediaPipeReader(file)


def test_absent_landmarks_say_how_to_get_them(tmp_path):
    with pytest.raises(ModelError, match="facelock models pull"):
        load_reader(tmp_path / "nowhere.task")


def test_the_environment_names_a_reader(tmp_path, monkeypatch):
    monkeypatch.setenv("FACELOCK_LANDMARKS", str(toy_106(tmp_path / "mine.onnx")))
    assert isinstance(load_reader(), InsightFaceReader)
    monkeypatch.setenv("FACELOCK_LANDMARKS", str(tmp_path / "gone.onnx"))
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        load_reader()


def test_106_points_equal_insightface(tmp_path):
    from insightface.model_zoo.landmark import Landmark

    path = toy_106(tmp_path / "2d106det.onnx")
    picture = np.random.default_rng(1).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    face = SimpleNamespace(bbox=np.array([32.0, 32.0, 160.0, 160.0]))
    store = type("Face", (dict,), {"bbox": face.bbox})()
    theirs = Landmark(str(path)).get(np.ascontiguousarray(picture[..., ::-1]), store)
    crop = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    ours, sure = load_reader(path, views=1).read(crop)
    assert ours.shape == (1, 113, 2) and float(sure) == 1.0
    np.testing.assert_allclose(ours[0, :106].numpy(), theirs, atol=2e-3)
    np.testing.assert_array_equal(ours[0].numpy(), with_forehead(ours[0, :106].numpy()))


def test_forehead_lies_above_the_brows():
    points = np.zeros((106, 2), np.float32)
    points[1], points[17] = (10, 50), (90, 50)
    points[[*INSIGHTFACE106.left_eye]], points[[*INSIGHTFACE106.right_eye]] = (30, 50), (70, 50)
    points[86] = (50, 75)
    arch = with_forehead(points)[106:]
    assert (np.diff(arch[:, 0]) > 0).all() and (arch[:, 1] < 40).all() and arch[3, 1] == pytest.approx(25)


def test_another_network_is_no_landmark_reader(tmp_path):
    with pytest.raises(ModelError, match="106 landmarks"):
        InsightFaceReader(toy_106(tmp_path / "other.onnx", numbers=140))


def test_views_agree_on_a_steady_reader_and_not_on_a_wild_one():
    class Reader(dense._Views):
        layout, side = INSIGHTFACE106, 96

        def __init__(self, steady):
            super().__init__(2)
            self.steady, self.calls = steady, 0

        def _points(self, view):
            """The brightest pixel with a fixed pattern around it."""
            self.calls += 1
            y, x = np.unravel_index(view.sum(2).argmax(), view.shape[:2])
            pattern = np.linspace(-20, 20, 226).reshape(113, 2).astype(np.float32)
            return pattern + np.float32([x, y]) + (0 if self.steady else 6 * self.calls)

    crop = torch.zeros(1, 3, 192, 192)
    crop[:, :, 93:99, 93:99] = 1
    steady, wild = (Reader(kind).read(crop)[1] for kind in (True, False))
    assert steady > 0.5 > wild
