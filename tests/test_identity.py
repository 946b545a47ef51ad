"""A reference picture becomes an identity, or is refused with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from facelock.assets import asset_dir
from facelock.errors import InputError
from facelock.faces import load_pack
from facelock.geometry import ARCFACE112, HEAD
from facelock.identity import identity_from_picture
from facelock.images import LONGEST_SIDE
from facelock.types import CropSpec, Faces, Identity, Thresholds

SAMPLES = asset_dir("models").parent / "samples" / "faces"
BUNDLED = asset_dir("models") / "miniature" / "faces"
THRESHOLDS = Thresholds(0.54, 0.67, 0.75)
SIDE = 256


@dataclass
class FakeEncoder:
    id: str
    crop: CropSpec = ARCFACE112
    thresholds: Thresholds = THRESHOLDS

    def embed_crops(self, crops: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass
class FakePack:
    """Finds faces of ``height`` at the given places of a picture, once it is at least ``sees_from`` wide."""

    places: list[tuple[float, float]]
    height: float = 120
    yaw: float = 0.0
    sees_from: int = 0
    encoder: FakeEncoder = field(default_factory=lambda: FakeEncoder("loop@000000000000"))
    asked: list[tuple[int, int]] = field(default_factory=list)

    def detect(self, frames: Tensor) -> Faces:
        self.asked.append(tuple(frames.shape[-2:]))
        places = self.places if frames.shape[-1] >= self.sees_from else []
        turn = np.radians(self.yaw)
        head = np.array(HEAD)
        flat = np.stack([head[:, 0] * np.cos(turn) + head[:, 2] * np.sin(turn), head[:, 1] - 0.5], 1)
        points = [flat * self.height / 3 + place for place in places]
        half = self.height / 2
        boxes = [(x - half, y - half, x + half, y + half) for x, y in places]
        return Faces(
            torch.zeros(len(places), dtype=torch.int64),
            torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            torch.tensor(np.array(points).reshape(-1, 5, 2), dtype=torch.float32),
            torch.full((len(places),), 0.9),
        )

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        middle = (faces.box[:, :2] + faces.box[:, 2:]) / 2
        return middle / middle.norm(dim=1, keepdim=True)


def noise(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_one_face_becomes_an_identity():
    packs = [FakePack([(100, 120)]), FakePack([], encoder=FakeEncoder("judge@111111111111"))]
    identity = identity_from_picture(noise(), packs, name="maria")
    assert isinstance(identity, Identity) and identity.name == "maria"
    assert set(identity.embeddings) == {"loop@000000000000", "judge@111111111111"}
    for embedding in identity.embeddings.values():
        assert embedding.shape == (2,) and float(embedding.norm()) == pytest.approx(1)
    assert identity.portrait is not None and identity.portrait.shape == (3, 192, 192)
    assert len(identity.sha256) == 64
    assert len(packs[1].asked) == 0  # one detector says where the face is


def test_the_same_pixels_are_the_same_reference():
    picture = noise()
    kinds = [
        picture,
        Image.fromarray(picture),
        torch.from_numpy(picture).permute(2, 0, 1).float() / 255,
        picture.astype(np.float32) / 255,
    ]
    digests = {identity_from_picture(kind, [FakePack([(100, 120)])]).sha256 for kind in kinds}
    assert len(digests) == 1
    assert identity_from_picture(255 - picture, [FakePack([(100, 120)])]).sha256 not in digests


def test_a_file_gives_its_name(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "maria.png")
    for path in (tmp_path / "maria.png", str(tmp_path / "maria.png")):
        identity = identity_from_picture(path, [FakePack([(100, 120)])])
        assert (identity.name, identity.source) == ("maria", "maria.png")


def refused(match: str, pack: FakePack, picture: object = None, **options: object) -> str:
    with pytest.raises(InputError, match=match) as caught:
        identity_from_picture(noise() if picture is None else picture, [pack], **options)
    message = str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in message and message.endswith(".")
    return message


def test_no_face():
    refused("no face was found", FakePack([]))


def test_several_faces_are_listed_from_left_to_right():
    pack = FakePack([(200, 100), (50, 90), (120, 95)], height=60)
    message = refused("3 faces were found", pack)
    assert "0: 60 pixels high around x=50, y=90; 1: 60 pixels high around x=120, y=95; 2:" in message
    assert "--face-index N" in message


@pytest.mark.parametrize(("face", "x"), [(0, 50), (1, 120), (2, 200)])
def test_a_face_is_chosen_from_left_to_right(face, x):
    identity = identity_from_picture(noise(), [FakePack([(200, 100), (50, 100), (120, 100)])], face=face)
    expected = torch.tensor([x, 100.0])
    assert torch.allclose(identity.embeddings["loop@000000000000"], expected / expected.norm())


@pytest.mark.parametrize("face", [1, -1, 7])
def test_a_face_that_is_not_there(face):
    assert f"no face {face}" in refused("1 face was found", FakePack([(100, 100)]), face=face)


def test_a_small_face():
    message = refused("too small", FakePack([(100, 100)], height=50), minimum_face=64)
    assert "50 pixels" in message and "64" in message
    identity_from_picture(noise(), [FakePack([(100, 100)], height=50)], minimum_face=24)


@pytest.mark.parametrize("yaw", [-75, 70])
def test_a_face_turned_away(yaw):
    assert "60" in refused("turned away", FakePack([(100, 100)], yaw=yaw))


@pytest.mark.parametrize("yaw", [-50, 0, 50])
def test_a_face_turned_a_little(yaw):
    identity_from_picture(noise(), [FakePack([(100, 100)], yaw=yaw)])


def test_a_blurred_face():
    soft = cv2.GaussianBlur(noise(), (0, 0), 5)
    refused("blurred", FakePack([(100, 100)]), soft, minimum_sharpness=100)
    identity_from_picture(noise(), [FakePack([(100, 100)])], minimum_sharpness=100)


def test_large_pictures_are_reduced_and_measured_in_their_own_pixels():
    pack = FakePack([(1000, 1000)], height=30)
    message = refused("too small", pack, noise(2 * LONGEST_SIDE + 10, 300), minimum_face=100)
    assert "90 pixels" in message  # 30 in the picture reduced by 3
    assert max(pack.asked[0]) <= LONGEST_SIDE


def test_a_face_that_fills_the_picture_is_found_at_a_second_look():
    pack = FakePack([(228, 238)], sees_from=300)
    identity = identity_from_picture(noise(200, 200), [pack])
    assert pack.asked == [(200, 200), (400, 400)]
    expected = torch.tensor([128.0, 138.0])  # in the picture itself
    assert torch.allclose(identity.embeddings["loop@000000000000"], expected / expected.norm())


@pytest.mark.parametrize(
    "picture",
    [
        3,
        None,
        np.zeros((64, 64)),
        np.zeros((0, 0, 3)),
        np.full((64, 64, 3), np.nan),
        np.full((64, 64, 3), 200.0),
    ],
)
def test_what_is_no_picture(picture):
    with pytest.raises(InputError):
        identity_from_picture(picture, [FakePack([(100, 100)])])


def test_transparent_and_turned_pil_pictures():
    clear = Image.new("RGBA", (128, 128), (10, 20, 30, 0))
    identity = identity_from_picture(clear, [FakePack([(60, 60)], height=60)])
    assert torch.allclose(identity.portrait, torch.tensor(1.0), atol=1e-5)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(noise(128, 256))
    turned.info["exif"] = exif.tobytes()
    pack = FakePack([(60, 60)], height=60)
    identity_from_picture(turned, [pack])
    assert pack.asked == [(256, 128)]


@pytest.fixture(scope="module")
def real():
    if not (BUNDLED / "detector.onnx").exists() or not (SAMPLES / "maria.png").exists():
        pytest.skip("no bundled pack or samples in this checkout")
    return load_pack(
        "onnx_pack", detector=BUNDLED / "detector.onnx", encoder=BUNDLED / "recogniser.onnx",
        name="miniature/recogniser", thresholds=THRESHOLDS,
    )  # fmt: skip


def sample(name: str) -> np.ndarray:
    return np.array(Image.open(SAMPLES / f"{name}.png").convert("RGB"))


def cosine(pack, left: Identity, right: Identity) -> float:
    return float(left.embeddings[pack.encoder.id] @ right.embeddings[pack.encoder.id])


def test_the_samples_are_different_people_and_themselves_at_any_size(real):
    people = {name: identity_from_picture(sample(name), [real]) for name in ("aisha", "leo", "maria", "tom")}
    for name, person in people.items():
        for size in (96, 256, 1500):
            resized = cv2.resize(sample(name), (size, size), interpolation=cv2.INTER_AREA)
            assert cosine(real, identity_from_picture(resized, [real]), person) > THRESHOLDS.far_1e4
        for other, stranger in people.items():
            if other != name:
                assert cosine(real, person, stranger) < THRESHOLDS.far_1e3


def test_two_people_in_one_picture(real):
    both = np.concatenate([sample("maria"), sample("tom")], 1)
    with pytest.raises(InputError, match="2 faces were found"):
        identity_from_picture(both, [real])
    for face, name in enumerate(("maria", "tom")):
        chosen = identity_from_picture(both, [real], face=face)
        assert cosine(real, chosen, identity_from_picture(sample(name), [real])) > THRESHOLDS.far_1e4


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_an_empty_picture_shows_nobody(real, shade):
    with pytest.raises(InputError, match="no face"):
        identity_from_picture(np.full((256, 256, 3), shade, np.uint8), [real])


def test_noise_shows_nobody(real):
    with pytest.raises(InputError, match="no face"):
        identity_from_picture(noise(), [real])
