"""The ledger: who is where, how alike, and no row is ever dropped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from facelock import appearance
from facelock.errors import FaceLockError
from facelock.ledger import NOBODY, Judge, ReadabilityLimits, assign, judge_status, measure, thumbnails
from facelock.types import CropSpec, Faces, Identity, LedgerRow, Status, Thresholds

TEMPLATE = ((38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2))
THRESHOLDS = Thresholds(far_1e2=0.2, far_1e3=0.3, far_1e4=0.4)
SIDE = 160


@dataclass(frozen=True)
class Spot:
    """A face that the fake detector finds: its frame, centre, height, and what it embeds to."""

    frame: int
    x: float
    who: tuple[float, ...]
    height: float = 80.0
    nose: float = 0.0


@dataclass
class FakeEncoder:
    id: str = "judge@000000000000"
    crop: CropSpec = field(default_factory=lambda: CropSpec("arcface", 112, TEMPLATE))
    thresholds: Thresholds = THRESHOLDS

    def embed_crops(self, crops: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass
class FakePack:
    """Finds the spots whose frame is in the batch (frames carry their number in the first pixel)."""

    spots: Sequence[Spot]
    encoder: FakeEncoder = field(default_factory=FakeEncoder)

    def _inside(self, frames: Tensor) -> list[tuple[int, Spot]]:
        numbers = [round(float(frame[0, 0, 0]) * 100) for frame in frames]
        return [
            (place, spot)
            for place, number in enumerate(numbers)
            for spot in self.spots
            if spot.frame == number
        ]

    def detect(self, frames: Tensor) -> Faces:
        found = self._inside(frames)
        points = np.array(TEMPLATE) / 112 - 0.5
        landmarks, boxes = [], []
        for _, spot in found:
            placed = points * spot.height + (spot.x, SIDE / 2)
            placed[2, 0] += spot.nose
            landmarks.append(placed)
            half = spot.height / 2
            boxes.append((spot.x - 0.8 * half, SIDE / 2 - half, spot.x + 0.8 * half, SIDE / 2 + half))
        return Faces(
            torch.tensor([place for place, _ in found], dtype=torch.int64),
            torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            torch.tensor(np.array(landmarks).reshape(-1, 5, 2), dtype=torch.float32),
            torch.full((len(found),), 0.9),
        )

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        vectors = torch.tensor([spot.who for _, spot in self._inside(frames)], dtype=torch.float32).reshape(
            -1, 3
        )
        return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-9)


def clip(count: int, seed: int = 0) -> Tensor:
    frames = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    for number, frame in enumerate(frames):
        frame[0, 0, 0] = number / 100
    return frames


def identity(name: str, *vector: float) -> Identity:
    return Identity(name, {FakeEncoder().id: torch.tensor(vector)})


MARIA, OTTO = identity("maria", 1.0, 0.0, 0.0), identity("otto", 0.0, 1.0, 0.0)
ALIKE, WEAKLY, STRANGER = (1.0, 0.0, 0.2), (0.35, 0.0, 1.0), (0.0, 0.0, 1.0)


def statuses(spots: Sequence[Spot], cast: Sequence[Identity], frames: int = 1, **options: ReadabilityLimits):
    return [row.status for row in measure(clip(frames), FakePack(spots), cast, **options)]


def test_every_frame_and_character_has_a_row():
    spots = [Spot(0, 80, ALIKE), Spot(2, 80, ALIKE)]
    rows = measure(clip(4), FakePack(spots), [MARIA, OTTO], start=100)
    assert [(row.frame, row.character) for row in rows] == [
        (100 + frame, name) for frame in range(4) for name in ("maria", "otto")
    ]
    assert [row.status for row in rows if row.character == "otto"] == [Status.ABSENT] * 4
    assert rows[0].status is Status.VERIFIED
    assert rows[2].similarity is None


def test_a_row_holds_what_was_seen():
    row = measure(clip(1), FakePack([Spot(0, 80, ALIKE)]), [MARIA])[0]
    assert row.similarity == pytest.approx(1 / np.sqrt(1.04), abs=1e-6)
    assert row.margin is None
    assert row.face_height == pytest.approx(80)
    assert row.box == pytest.approx((48, 40, 112, 120))
    assert len(row.landmarks) == 5
    assert row.roll == pytest.approx(0, abs=1)
    assert row.sharpness > 100
    assert 0.5 < row.mouth < 1.5
    assert row.score == pytest.approx(0.9)


def test_statuses():
    assert statuses([Spot(0, 80, ALIKE)], [MARIA]) == [Status.VERIFIED]
    assert statuses([Spot(0, 80, WEAKLY)], [MARIA]) == [Status.WEAK]
    assert statuses([Spot(0, 80, STRANGER)], [MARIA]) == [Status.WRONG]
    assert statuses([Spot(0, 80, ALIKE, height=20)], [MARIA]) == [Status.UNREADABLE]
    assert statuses([Spot(0, 158, ALIKE)], [MARIA], limits=ReadabilityLimits(minimum_visible=0.6)) == [
        Status.UNREADABLE
    ]
    assert statuses([Spot(0, 80, ALIKE)], [MARIA], limits=ReadabilityLimits(minimum_sharpness=1e9)) == [
        Status.UNREADABLE
    ]
    assert statuses([Spot(0, 80, ALIKE, nose=40.0)], [MARIA], limits=ReadabilityLimits(maximum_yaw=20)) == [
        Status.UNREADABLE
    ]


def test_thresholds_are_inclusive_and_the_margin_decides():
    assert judge_status(0.4, None, True, THRESHOLDS) is Status.VERIFIED
    assert judge_status(0.2, None, True, THRESHOLDS) is Status.WEAK
    assert judge_status(0.19, None, True, THRESHOLDS) is Status.WRONG
    assert judge_status(0.9, -0.01, True, THRESHOLDS) is Status.WRONG
    assert judge_status(0.9, None, False, THRESHOLDS) is Status.UNREADABLE


def test_two_faces_go_to_their_owners_wherever_they_stand():
    for left, right in (((1, 0.1, 0), (0.1, 1, 0)), ((0.1, 1, 0), (1, 0.1, 0))):
        rows = measure(clip(1), FakePack([Spot(0, 40, left), Spot(0, 120, right)]), [MARIA, OTTO])
        assert [row.status for row in rows] == [Status.VERIFIED] * 2
        assert all(row.margin > 0.8 for row in rows)


def test_a_double_of_one_character_is_wrong_for_the_other():
    rows = measure(clip(1), FakePack([Spot(0, 40, (1, 0.45, 0)), Spot(0, 120, (1, 0.5, 0))]), [MARIA, OTTO])
    assert rows[0].status is Status.VERIFIED
    assert rows[1].status is Status.WRONG
    assert rows[1].similarity > THRESHOLDS.far_1e4
    assert rows[1].margin < 0


def test_a_stranger_cannot_hide_behind_an_unreadable_face():
    spots = [Spot(0, 40, ALIKE, height=20), Spot(0, 110, STRANGER)]
    assert statuses(spots, [MARIA]) == [Status.WRONG]


def test_assignment_is_optimal_not_greedy():
    similarity = np.array([[0.9, 0.8], [0.7, 0.1]])
    assert assign(similarity, np.ones(2, dtype=bool)) == [1, 0]
    assert assign(similarity[:0], np.ones(0, dtype=bool)) == [NOBODY, NOBODY]


def test_a_frame_measures_the_same_alone_and_in_any_batch():
    frames = clip(5)
    pack = FakePack([Spot(frame, 60 + 10 * frame, (1.0, 0.1 * frame, 0.3)) for frame in range(5)])
    together = measure(frames, pack, [MARIA])
    for frame in range(5):
        alone = measure(frames[frame : frame + 1], pack, [MARIA], start=frame)[0]
        with_residual = together[frame]
        assert alone.residual is None
        assert alone.similarity == with_residual.similarity
        assert (alone.sharpness, alone.mouth, alone.yaw) == (
            with_residual.sharpness,
            with_residual.mouth,
            with_residual.yaw,
        )


def test_the_frame_before_gives_the_seam_its_residual():
    frames = clip(6)
    pack = FakePack([Spot(frame, 80, ALIKE) for frame in range(6)])
    whole = measure(frames, pack, [MARIA])
    seam = measure(frames[3:], pack, [MARIA], start=3, before=frames[2])
    assert whole[0].residual is None
    assert seam == whole[3:]


def test_a_judge_looks_once_at_a_frame_between_two_chunks():
    frames, looked = clip(9), []

    class Counting(FakePack):
        def detect(self, frames):
            looked.append(len(frames))
            return super().detect(frames)

    spots = [Spot(frame, 60 + 5 * frame, ALIKE if frame % 2 else (0.2, 1.0, 0.0)) for frame in range(9)]
    judge, whole = Judge(Counting(spots)), measure(frames, FakePack(spots), [MARIA])
    rows = [
        *judge.measure(frames[:4], [MARIA]),
        *judge.measure(frames[4:], [MARIA], start=4, before=frames[3].clone()),
    ]
    assert tuple(rows) == whole and looked == [4, 5]
    judge.measure(frames[:1], [MARIA])
    again = judge.measure(frames[4:], [MARIA], start=4, before=frames[3])  # it was seen too long ago
    assert again == whole[4:] and looked == [4, 5, 1, 1, 5]
    other = Identity("leo", {"judge@000000000000": torch.tensor([0.0, 1.0, 0.0])})
    assert judge.measure(frames[:2], [other], before=frames[8]) and looked[-2:] == [1, 2]  # for somebody else
    assert judge.measure(frames[:1], [other], before=(frames[1] * 255).byte()) and looked[-2:] == [1, 1]


def test_a_judge_remembers_the_chunk_with_and_without_the_lock():
    """The pipeline measures each chunk twice; neither look may make it forget the other's last frame."""
    frames, looked = clip(8), []

    class Counting(FakePack):
        def detect(self, frames):
            looked.append(len(frames))
            return super().detect(frames)

    judge = Judge(Counting([Spot(frame, 80, ALIKE) for frame in range(8)]))
    final, plain = frames, frames * 0.5 + torch.rand(frames.shape) * 0.1
    for start in (0, 4):
        for shown in (final, plain):
            before = shown[start - 1].clone() if start else None
            judge.measure(shown[start : start + 4], [MARIA], start=start, before=before)
    assert looked == [4, 4, 4, 4]


def test_frames_may_be_bytes():
    pictures = (clip(3) * 255).round().byte()
    pictures[:, 0, 0, 0] = torch.tensor([0, 3, 5])  # their numbers, in hundredths
    pack = FakePack([Spot(frame, 80, ALIKE) for frame in range(3)])
    rows = measure(pictures.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), pack, [MARIA])
    assert rows == measure(pictures.float() / 255, pack, [MARIA])
    assert thumbnails(pictures, rows) == thumbnails(pictures.float() / 255, rows)


def test_an_empty_clip_and_no_faces():
    assert measure(clip(0), FakePack([]), [MARIA]) == ()
    assert statuses([], [MARIA], frames=3) == [Status.ABSENT] * 3


def test_embeddings_of_another_encoder_are_refused():
    other = Identity("maria", {"else@123": torch.ones(3)})
    with pytest.raises(FaceLockError, match="judge@000000000000"):
        measure(clip(1), FakePack([]), [other])


def test_nan_from_the_judge_is_an_error_not_a_weak_face():
    with pytest.raises(FaceLockError, match="NaN"):
        measure(clip(1), FakePack([Spot(0, 80, (float("nan"), 0, 0))]), [MARIA])


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_thumbnails_show_the_cast_one_above_the_other():
    rows = measure(clip(3), FakePack([Spot(0, 40, ALIKE), Spot(0, 120, (0, 1, 0))]), [MARIA, OTTO], start=7)
    pictures = thumbnails(clip(3), rows, start=7, at=[7, 9, 50])
    assert sorted(pictures) == [7, 9]
    side = appearance.THUMBNAIL_SIDE
    assert opened(pictures[7]).size == (side, 2 * side)
    assert opened(pictures[9]).size == (side, 2 * side)


def test_thumbnails_by_default_are_few_and_include_the_worst():
    spots = [Spot(frame, 80, STRANGER if frame == 5 else ALIKE) for frame in range(12)]
    rows = Judge(FakePack(spots)).measure(clip(12), [MARIA], start=24)
    assert sorted(Judge(FakePack(spots)).thumbnails(clip(12), rows, start=24)) == [24, 29, 30]


def test_a_face_at_the_border_has_a_thumbnail():
    assert appearance.face_tile(clip(1)[0], (-20.0, -20.0, 10.0, 30.0)).shape == (96, 96, 3)
    assert appearance.face_tile(clip(1)[0], (5.0, 5.0, 5.0, 5.0)).shape == (96, 96, 3)
    assert appearance.face_tile(torch.zeros(3, 3, 5), None).shape == (96, 96, 3)


def textured(shift: int) -> Tensor:
    """A smooth random texture, moved right by ``shift`` pixels."""
    noise = torch.rand(1, 3, 20, 40, generator=torch.Generator().manual_seed(3))
    wide = torch.nn.functional.interpolate(noise, (112, 224), mode="bicubic", antialias=True).clamp(0, 1)[0]
    return wide[:, :, 50 - shift : 162 - shift]


def test_the_residual_forgives_motion_but_not_flicker():
    still = appearance.residual(textured(0), textured(0))
    moved = appearance.residual(textured(0), textured(6))
    uncompensated = float((textured(0) - textured(6)).abs().mean())
    flicker = appearance.residual(textured(0), (textured(0) + 0.1).clamp(0, 1))
    assert still < 0.002
    assert moved < 0.3 * uncompensated
    assert flicker > 0.06


def test_an_open_mouth_and_a_closed_eye_move_their_signals():
    spec = CropSpec("arcface", 112, TEMPLATE)
    face = torch.full((1, 3, 112, 112), 0.7)
    talking, blinking = face.clone(), face.clone()
    talking[:, :, 90:102, 48:64] = 0.1
    for x, y in TEMPLATE[:2]:
        blinking[:, :, round(y) - 3 : round(y) + 4, round(x) - 6 : round(x) + 7] = 0.2
    (mouth, eyes), (open_mouth, _), (_, dark_eyes) = (
        appearance.mouth_and_eyes(each, spec) for each in (face, talking, blinking)
    )
    assert open_mouth < 0.85 * mouth
    assert dark_eyes < 0.85 * eyes
    assert appearance.mouth_and_eyes(face * 0.5, spec)[0] == pytest.approx(float(mouth), abs=1e-4)


def test_sharpness_falls_with_blur():
    sharp = textured(0)[None]
    blurred = torch.nn.functional.avg_pool2d(sharp, 9, 1, 4)
    assert appearance.sharpness(blurred) < 0.3 * appearance.sharpness(sharp)
    assert appearance.sharpness(torch.full((1, 3, 8, 8), 0.5)).item() == 0.0


def test_limits_default_to_the_miniatures():
    assert Judge(FakePack([])).limits.minimum_face == 24.0
    assert Judge(FakePack([])).thresholds == THRESHOLDS
    assert isinstance(measure(clip(1), FakePack([]), [MARIA])[0], LedgerRow)
