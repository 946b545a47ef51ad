"""Perception: the same faces as insightface, the same bits in any company, and honest refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
import toy_pack
from PIL import Image
from safetensors.torch import save_file

from facelock.assets import asset_dir
from facelock.errors import ConfigError, FaceLockError, ModelError
from facelock.faces import CrateEncoder, OnnxEncoder, OnnxPack, load_encoder, load_pack
from facelock.faces.onnx_pack import distinct
from facelock.nets.crate import Crate
from facelock.protocols import Encoder, FacePack
from facelock.types import Thresholds

ROOT = asset_dir("models").parent
BUNDLED = asset_dir("models") / "miniature" / "faces"
THRESHOLDS = Thresholds(0.2, 0.3, 0.4)
SIZES = [(128, 128), (256, 256), (64, 64), (90, 200), (301, 167), (1000, 40)]
bundled = pytest.mark.skipif(
    not (BUNDLED / "detector.onnx").exists(), reason="no bundled pack in this checkout"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_pack.folder(tmp_path_factory.mktemp("pack") / "toy")


def open_pack(folder, **options) -> OnnxPack:
    return load_pack(
        "onnx_pack", detector=folder / "detector.onnx", encoder=folder / "recogniser.onnx",
        name="toy", thresholds=THRESHOLDS, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pack(folder):
    return open_pack(folder, batch=4)


def pictures(count: int, height: int = 128, width: int = 128, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8: soft coloured blobs."""
    noise = np.random.default_rng(seed).random((count, 9, 9, 3), np.float32)
    large = [cv2.resize(n, (width, height), interpolation=cv2.INTER_CUBIC) for n in noise]
    return (np.stack(large).clip(0, 1) * 255).round().astype(np.uint8)


def to_frames(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rgb.copy()).permute(0, 3, 1, 2).float() / 255


def analysis(folder, size: int = 128):
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=str(folder), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(size, size), det_thresh=0.5)
    return app


def compare(pack: OnnxPack, app, rgb: np.ndarray) -> Iterator[float]:
    """Both on one picture: the faces must be the same; the cosine of each one's two embeddings."""
    frames = to_frames(rgb[None])
    ours, theirs = pack.detect(frames), app.get(np.ascontiguousarray(rgb[..., ::-1]))
    assert len(ours) == len(theirs)
    embeddings = pack.embed(frames, ours)
    shift = max(rgb.shape[:2]) / 256 - 0.5  # insightface takes the centre of a detection pixel for its corner
    for n, face in enumerate(theirs):
        np.testing.assert_allclose(ours.box[n], face.bbox + shift, atol=0.5)
        np.testing.assert_allclose(ours.landmarks[n], face.kps + shift, atol=0.5)
        assert float(ours.score[n]) == pytest.approx(float(face.det_score), abs=1e-3)
        yield float(embeddings[n] @ torch.from_numpy(face.normed_embedding))


@pytest.mark.parametrize("flat", [False, True])
def test_same_faces_as_insightface_on_a_toy_pack(tmp_path, flat):
    folder = toy_pack.folder(tmp_path / "pack", flat=flat)
    pack, app = open_pack(folder), analysis(folder)
    found = 0
    for seed, (height, width) in enumerate(SIZES):
        found += len(list(compare(pack, app, pictures(1, height, width, seed)[0])))
    assert found > 20


@bundled
def test_same_faces_as_insightface_on_the_bundled_pack():
    pack, app = open_pack(BUNDLED), analysis(BUNDLED)
    photos = sorted((ROOT / "samples" / "faces").glob("*.png"))
    if not photos:
        pytest.skip("no sample faces in this installation")
    for photo in photos:
        rgb = np.asarray(Image.open(photo).convert("RGB"))
        for width, height in ((512, 512), (256, 256), (128, 128), (300, 256)):
            resized = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
            alike = list(compare(pack, app, resized))
            assert len(alike) == 1
            assert alike[0] > 0.97, (photo.name, width)


def test_detection_size_is_insightfaces(folder):
    pack, app = open_pack(folder, detection_size=192), analysis(folder, 192)
    assert len(list(compare(pack, app, pictures(1, 300, 200, 5)[0]))) > 3


def test_order_and_protocols(pack):
    assert isinstance(pack, FacePack) and isinstance(pack.encoder, Encoder)
    faces = pack.detect(to_frames(pictures(5)))
    assert len(faces) > 10
    assert faces.frame.dtype == torch.int64 and (faces.frame.diff() >= 0).all()
    for frame in range(5):
        assert (faces.score[faces.frame == frame].diff() <= 0).all()
    assert faces.box.shape == (len(faces), 4) and faces.landmarks.shape == (len(faces), 5, 2)
    assert faces.box.dtype == faces.landmarks.dtype == faces.score.dtype == torch.float32
    embeddings = pack.embed(to_frames(pictures(5)), faces)
    assert embeddings.shape == (len(faces), 64)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(len(faces)), atol=1e-6)


def exact_in_any_company(pack: OnnxPack, frames: torch.Tensor) -> None:
    faces = pack.detect(frames)
    embeddings = pack.embed(frames, faces)
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(1))
    shuffled = pack.detect(frames[order])
    again = pack.embed(frames[order], shuffled)
    for place, frame in enumerate(order.tolist()):
        here, there = faces.frame == frame, shuffled.frame == place
        alone = pack.detect(frames[frame : frame + 1])
        for one in (shuffled.select(there), alone):
            assert torch.equal(faces.box[here], one.box)
            assert torch.equal(faces.landmarks[here], one.landmarks)
            assert torch.equal(faces.score[here], one.score)
        assert torch.equal(embeddings[here], again[there])
        assert torch.equal(embeddings[here], pack.embed(frames[frame : frame + 1], alone))


def test_a_frame_gives_the_same_bits_in_any_company(pack):
    exact_in_any_company(pack, to_frames(pictures(7)))


@bundled
def test_the_bundled_pack_gives_the_same_bits_in_any_company():
    exact_in_any_company(open_pack(BUNDLED, batch=4), to_frames(pictures(6, 64, 64)))
    encoder = open_pack(BUNDLED, batch=4).encoder
    crops = to_frames(pictures(6, 112, 112))
    together = encoder.embed_crops(crops)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    assert torch.equal(encoder.embed_crops(crops[order]), together[order])
    assert all(torch.equal(encoder.embed_crops(crops[n : n + 1])[0], together[n]) for n in range(6))


def test_nothing_in_nothing_out(pack):
    none = pack.detect(torch.zeros(0, 3, 64, 64))
    assert len(none) == 0
    assert pack.embed(torch.zeros(0, 3, 64, 64), none).shape == (0, 64)


def test_frames_without_faces(tmp_path):
    pack = open_pack(toy_pack.folder(tmp_path / "blind", bias=-99.0))
    faces = pack.detect(to_frames(pictures(3)))
    assert len(faces) == 0 and faces.landmarks.shape == (0, 5, 2)


def test_nan_is_an_error_not_an_empty_room(pack):
    frames = to_frames(pictures(2))
    frames[1, 0, 0, 0] = float("nan")
    with pytest.raises(FaceLockError, match="NaN"):
        pack.detect(frames)
    crops = torch.rand(2, 3, 112, 112)
    crops[1, 1] = float("nan")
    with pytest.raises(FaceLockError, match="no usable embedding"):
        pack.encoder.embed_crops(crops)


def test_suppression_keeps_the_surest_of_each_face():
    boxes = np.array(
        [[0, 0, 100, 100], [5, 5, 105, 105], [300, 0, 400, 100], [302, 0, 402, 100], [60, 0, 160, 100]]
    )
    assert distinct(boxes.astype(np.float32)) == [0, 2, 4]
    assert distinct(np.zeros((0, 4), np.float32)) == []


def test_ids_name_the_weights(folder, pack, tmp_path):
    assert pack.encoder.id.startswith("toy@") and len(pack.encoder.id) == len("toy@") + 12
    other = toy_pack.recogniser(tmp_path / "other.onnx", seed=9)
    assert OnnxEncoder(other, name="toy", thresholds=THRESHOLDS).id != pack.encoder.id


def test_files_of_the_wrong_kind_are_refused(folder, tmp_path):
    with pytest.raises(ModelError, match="outputs"):
        OnnxPack(folder / "recogniser.onnx", open_pack(folder).encoder)
    with pytest.raises(ModelError, match="112 x 112"):
        OnnxEncoder(folder / "detector.onnx", name="toy", thresholds=THRESHOLDS)
    with pytest.raises(ModelError, match="112 x 112"):
        OnnxEncoder(toy_pack.recogniser(tmp_path / "r.onnx", size=128), name="toy", thresholds=THRESHOLDS)
    (tmp_path / "broken.onnx").write_bytes((folder / "recogniser.onnx").read_bytes()[:1000])
    with pytest.raises(ModelError):
        OnnxEncoder(tmp_path / "broken.onnx", name="toy", thresholds=THRESHOLDS)
    with pytest.raises(ConfigError, match="onnx_pack, crate"):
        load_encoder("arcface", folder / "recogniser.onnx", name="toy", thresholds=THRESHOLDS)
    with pytest.raises(ConfigError, match="no model is called"):
        load_encoder("onnx_pack", folder / "recogniser.onnx", name="no such name in the catalog")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "judge"
    folder.mkdir()
    torch.manual_seed(0)
    net = Crate(dim=32, depth=2, heads=2, code=16)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"architecture": "crate", **net.config}))
    return folder


def test_the_judge_gives_the_same_bits_in_any_company(judge):
    encoder = CrateEncoder(judge, name="toy/judge", thresholds=THRESHOLDS)
    crops = to_frames(pictures(6, 112, 112))
    together = encoder.embed_crops(crops)
    assert together.shape == (6, 16) and encoder.id.startswith("toy/judge@")
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    assert torch.equal(encoder.embed_crops(crops[order]), together[order])
    assert torch.equal(encoder.embed_crops(crops[2:3])[0], together[2])
    assert torch.allclose(together.norm(dim=1), torch.ones(6), atol=1e-6)
    assert encoder.embed_crops(crops[:0]).shape == (0, 16)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_a_judge_that_is_no_judge_is_refused(judge, tmp_path):
    config = json.loads((judge / "config.json").read_text())
    weights = (judge / "model.safetensors").read_bytes()
    broken = [
        ({**config, "dim": 64}, weights),
        ({**config, "architecture": "other"}, weights),
        ({**config, "depth": 10**9}, weights),
        ({**config, "heads": 0}, weights),
        ({"architecture": "crate"}, weights),
        ([1], weights),
        (config, weights[:500]),
    ]
    for place, (described, held) in enumerate(broken):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(described))
        (folder / "model.safetensors").write_bytes(held)
        with pytest.raises(ModelError):
            CrateEncoder(folder, name="toy", thresholds=THRESHOLDS)
    with pytest.raises(ModelError):
        CrateEncoder(tmp_path / "nowhere", name="toy", thresholds=THRESHOLDS)
