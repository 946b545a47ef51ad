"""YuNet and OpenCV's recogniser: the same faces and the same embeddings as OpenCV's own classes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from real import ASSETS, needs_assets

from facelock.errors import FaceLockError, ModelError
from facelock.faces import Detector, OnnxEncoder, Pack, YunetDetector
from facelock.faces.pack import library_crops, to_planes
from facelock.geometry import ARCFACE112, similarity_from_landmarks
from facelock.images import read_picture
from facelock.protocols import Cropper, FacePack
from facelock.types import Faces, Thresholds

YUNET = ASSETS / "detectors" / "face_detection_yunet_2023mar.onnx"
RECOGNISER = ASSETS / "recognisers" / "arcface_mbf_y1_ms1m.onnx"
PHOTOS = ASSETS / "photos"
FULL = 8192
LIMITS = Thresholds(0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def pack():
    encoder = OnnxEncoder(RECOGNISER, name="y1", thresholds=LIMITS)
    return Pack(YunetDetector(YUNET, detection_size=FULL), encoder, cut="library")


def some_photos() -> list[torch.Tensor]:
    names = ("public_domain/astronaut.png", "public_domain/fr_test_obama_and_biden.jpg", "deepface/df_img1/img5.jpg",
             *(f"lfw/Tony_Blair/Tony_Blair_000{n}.jpg" for n in range(1, 6)))  # fmt: skip
    return [shrunk(read_picture(PHOTOS / name).frames) for name in names]


def shrunk(frames: torch.Tensor) -> torch.Tensor:
    return frames[..., :900, :900].contiguous()


def bgr(frame: torch.Tensor) -> np.ndarray:
    return cv2.merge(to_planes(frame)[::-1])


def theirs(frame: torch.Tensor) -> np.ndarray:
    """(n, 15) by cv2.FaceDetectorYN."""
    picture = bgr(frame)
    finder = cv2.FaceDetectorYN.create(str(YUNET), "", picture.shape[1::-1], 0.6)
    found = finder.detect(picture)[1]
    return np.zeros((0, 15), np.float32) if found is None else found


@needs_assets
def test_the_same_faces_and_embeddings_as_opencv(pack):
    reader, seen = cv2.FaceRecognizerSF.create(str(RECOGNISER), ""), 0
    for frames in some_photos():
        found, rows = pack.detect(frames), theirs(frames[0])
        assert len(found) == len(rows)
        embeddings = pack.embed(frames, found)
        for n, row in enumerate(rows):
            box = np.concatenate([row[:2], row[:2] + row[2:4]])
            np.testing.assert_allclose(found.box[n], box, atol=0.01)
            np.testing.assert_allclose(found.landmarks[n].reshape(-1), row[4:14], atol=0.01)
            assert float(found.score[n]) == pytest.approx(float(row[14]), abs=1e-4)
            feature = reader.feature(reader.alignCrop(bgr(frames[0]), row))[0]
            assert float(embeddings[n] @ torch.from_numpy(feature / np.linalg.norm(feature))) >= 0.9999
            seen += 1
    assert seen >= 9


@needs_assets
def test_crops_are_opencvs_own(pack):
    reader = cv2.FaceRecognizerSF.create(str(RECOGNISER), "")
    frames = some_photos()[0]
    row = theirs(frames[0])[:1]
    for shift in (0.0, -150.0, 260.0):  # also where a part of the face lies outside of the picture
        moved = row.copy()
        moved[:, 4:14:2] += shift
        points = torch.from_numpy(moved[:, 4:14].reshape(1, 5, 2))
        matrices = similarity_from_landmarks(points, ARCFACE112)
        crop = library_crops(frames, torch.tensor([0]), matrices, 112)[0]
        own = reader.alignCrop(bgr(frames[0]), moved[0])[..., ::-1].transpose(2, 0, 1)
        assert np.abs((crop * 255).round().numpy() - own).mean() < 0.05


@needs_assets
def test_large_frames_are_looked_at_smaller_and_lead_back():
    frames = read_picture(PHOTOS / "public_domain/astronaut.png").frames
    large = torch.nn.functional.interpolate(frames, size=(1200, 1536), mode="bilinear")
    found = YunetDetector(YUNET).detect(large)
    small = cv2.resize(bgr(large[0]), (640, 500))
    (row,) = cv2.FaceDetectorYN.create(str(YUNET), "", (640, 500), 0.6).detect(small)[1]
    back = (row[4:14].reshape(5, 2) + 0.5) * 2.4 - 0.5  # resizing maps pixel centres on pixel centres
    np.testing.assert_allclose(found.landmarks[0], back, atol=0.02)
    corners = np.stack([row[:2], row[:2] + row[2:4]])
    np.testing.assert_allclose(found.box[0].reshape(2, 2), (corners + 0.5) * 2.4 - 0.5, atol=0.02)


@needs_assets
def test_a_frame_gives_the_same_bits_in_any_company(pack):
    frames = torch.cat([photo[..., :250, :250] for photo in some_photos()])
    faces = pack.detect(frames)
    assert (faces.frame.diff() >= 0).all() and len(faces) >= 4
    embeddings = pack.embed(frames, faces)
    for number in range(len(frames)):
        alone, here = pack.detect(frames[number : number + 1]), faces.frame == number
        assert torch.equal(alone.box, faces.box[here]) and torch.equal(alone.landmarks, faces.landmarks[here])
        assert torch.equal(pack.embed(frames[number : number + 1], alone), embeddings[here])


@needs_assets
def test_protocols_and_nothing(pack):
    assert isinstance(pack, FacePack) and isinstance(pack, Cropper) and isinstance(pack.detector, Detector)
    none = pack.detect(torch.zeros(0, 3, 64, 64))
    assert len(none) == 0 and pack.embed(torch.zeros(0, 3, 64, 64), none).shape == (0, 128)
    assert len(pack.detect(torch.zeros(2, 3, 33, 50))) == 0


@needs_assets
def test_nan_is_an_error(pack):
    with pytest.raises(FaceLockError, match="NaN"):
        pack.detect(torch.full((1, 3, 64, 64), float("nan")))


@needs_assets
def test_other_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match="not those of YuNet"):
        YunetDetector(RECOGNISER)
    (tmp_path / "broken.onnx").write_bytes(YUNET.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"broken\.onnx: not a readable ONNX model"):
        YunetDetector(tmp_path / "broken.onnx")


class FarSighted:
    """Sees a face in the middle of pictures of 100 pixels and more, if their first row is not all 0."""

    def detect(self, frames: torch.Tensor) -> Faces:
        side = frames.shape[-1]
        hits = [n for n, frame in enumerate(frames) if side >= 100 and float(frame[:, 60].max()) > 0.5]
        count = len(hits)
        box = torch.tensor([[side / 2 - 10, side / 2 - 10, side / 2 + 10, side / 2 + 10]]).expand(count, 4)
        points = torch.full((count, 5, 2), side / 2)
        return Faces(torch.tensor(hits, dtype=torch.int64), box, points, torch.ones(count))


def test_close_ups_get_a_second_look_with_a_margin():
    frames = torch.zeros(3, 3, 60, 60)
    frames[0], frames[2] = 1.0, 1.0
    assert len(Pack(FarSighted(), None).detect(frames)) == 0  # type: ignore[arg-type]
    found = Pack(FarSighted(), None, look_again=True).detect(frames)  # type: ignore[arg-type]
    assert found.frame.tolist() == [0, 2]
    assert torch.equal(
        found.landmarks, torch.full((2, 5, 2), 30.0)
    )  # pixels of the frame, not of the padded one
    assert torch.equal(found.box[0], torch.tensor([20.0, 20.0, 40.0, 40.0]))
