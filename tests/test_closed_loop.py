"""The closed loop with toy networks: independent of time, honest about what it did, never worse than it found it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from facelock.closed_loop import Cast, assign
from facelock.errors import InputError
from facelock.geometry import ARCFACE112, INSWAPPER128, similarity_from_landmarks, warp_crops
from facelock.lock_loop import Locker
from facelock.restore_loop import RestoreLoop
from facelock.types import CropSpec, Faces, Identity, Thresholds

SIDE = 64
ENCODER = "toy@000000000000"
RED, GREEN, BLUE = (
    normalize(torch.tensor(c), dim=0) for c in ((1.0, 0.1, 0.1), (0.1, 1.0, 0.1), (0.1, 0.1, 1.0))
)
EYES = torch.tensor(ARCFACE112.template) * (20 / 112)
"""A face of about 20 pixels, at the origin."""


@dataclass
class Encoder:
    """The mean colour of the crop's middle."""

    id: str = ENCODER
    crop: CropSpec = ARCFACE112
    thresholds: Thresholds = Thresholds(0.7, 0.8, 0.9)  # noqa: RUF009 - frozen

    def embed_crops(self, crops: Tensor) -> Tensor:
        return normalize(crops[..., 30:80, 30:80].mean((2, 3)) + 1e-3, dim=1)


@dataclass
class Pack:
    """Finds a face at each of ``places`` whose middle is bright; places are in shares of the frame."""

    places: tuple[tuple[float, float], ...] = ((0.5, 0.5),)
    encoder: Encoder = field(default_factory=Encoder)

    def detect(self, frames: Tensor) -> Faces:
        side = frames.shape[-1]
        scale = side / SIDE
        frame, points = [], []
        for index, picture in enumerate(frames):
            for x, y in self.places:
                if float(picture[:, int(y * side), int(x * side)].max()) > 0.2:
                    frame.append(index)
                    points.append((EYES - 10) * scale + torch.tensor([x, y]) * side)
        marks = torch.stack(points) if points else torch.zeros(0, 5, 2)
        low, high = marks.amin(1) - 4 * scale, marks.amax(1) + 4 * scale
        return Faces(
            torch.tensor(frame, dtype=torch.long), torch.cat([low, high], 1), marks, torch.ones(len(marks))
        )

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        crops = warp_crops(frames, faces.frame, similarity_from_landmarks(faces.landmarks, ARCFACE112), 112)
        return self.encoder.embed_crops(crops)


@dataclass
class Aligner:
    """Mixes the embedding, taken as a colour, into the crop; ``calls`` remembers strengths and counts."""

    mix: float = 0.6
    calls: list[tuple[float, int]] = field(default_factory=list)
    crop: CropSpec = INSWAPPER128
    encoder: str = ENCODER

    def align(self, crops: Tensor, identity: Tensor, strength: float, *, references=()) -> Tensor:
        self.calls.append((strength, len(crops)))
        share = min(1.0, self.mix * strength)
        return (crops * (1 - share) + share * identity.clamp(0, 1)[..., None, None]).clamp(0, 1)


def person(name: str, colour: Tensor) -> Identity:
    return Identity(name, {ENCODER: colour})


def clip(count: int = 7, colour: Tensor = GREEN) -> Tensor:
    """Frames of one colour that varies from frame to frame, with texture."""
    draw = torch.Generator().manual_seed(1)
    shade = 0.4 + 0.5 * torch.rand(count, 1, 1, 1, generator=draw)
    return (colour.view(3, 1, 1) * shade + 0.1 * torch.rand(count, 3, SIDE, SIDE, generator=draw)).clamp(0, 1)


def locker(pack=None, aligner=None, ladder=(1.0, 1.4), target=0.9) -> Locker:
    return Locker(pack or Pack(), aligner or Aligner(), ladder=ladder, target=target)


def test_locking_is_a_function_of_each_frame_alone():
    frames, lock = clip(), locker().lock
    whole, records = lock(frames, [person("red", RED)])
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert torch.equal(lock(frames[order], [person("red", RED)])[0], whole[order])
    for index in range(7):
        alone, (record,) = lock(frames[index : index + 1], [person("red", RED)], start=index)
        assert torch.equal(alone[0], whole[index])
        assert record == records[index]
    assert torch.equal(torch.cat([lock(part, [person("red", RED)])[0] for part in frames.split(3)]), whole)


def test_records_say_what_was_done():
    frames = clip(3)
    _, records = locker().lock(frames, [person("red", RED)], start=40)
    assert [r.frame for r in records] == [40, 41, 42]
    assert all(r.character == "red" and r.after > r.before and r.consistency is None for r in records)
    assert all(r.met == (r.after >= 0.9) for r in records)


def test_only_faces_below_the_target_climb():
    frames = torch.cat([clip(2, GREEN), clip(2, normalize(RED + 0.8 * GREEN, dim=0))])
    aligner = Aligner(mix=0.45)
    _, records = locker(aligner=aligner, ladder=(1.0, 1.5, 2.0)).lock(frames, [person("red", RED)])
    counts = [count for _, count in aligner.calls]
    assert [strength for strength, _ in aligner.calls] == [1.0, 1.5, 2.0][: len(counts)]
    assert counts[0] == 4 and sorted(counts, reverse=True) == counts and counts[-1] < 4
    assert records[2].rung == 0 and records[0].rung > 0


def test_the_best_rung_is_kept_and_a_face_never_gets_worse():
    class Worse(Aligner):
        def align(self, crops, identity, strength, *, references=()):
            better = super().align(crops, identity, 1.0)
            return better if strength == 1.0 else crops * 0 + GREEN.view(3, 1, 1)

    _, records = locker(aligner=Worse(mix=0.3), target=2.0).lock(clip(2), [person("red", RED)])
    assert [r.rung for r in records] == [0, 0] and not any(r.met for r in records)
    frames = clip(2, RED)

    class Ruin(Aligner):
        def align(self, crops, identity, strength, *, references=()):
            return crops * 0 + GREEN.view(3, 1, 1)

    locked, records = locker(aligner=Ruin(), target=2.0).lock(frames, [person("red", RED)])
    assert torch.equal(locked, frames)
    assert all(r.rung == -1 and r.after == r.before for r in records)


def test_frames_without_a_face_and_everything_around_one_stay_bit_for_bit():
    frames = clip(3)
    frames[1] = 0.05
    locked, records = locker().lock(frames, [person("red", RED)])
    assert torch.equal(locked[1], frames[1]) and [r.frame for r in records] == [0, 2]
    change = (locked - frames).abs().amax((0, 1))
    assert float(change[20:44, 20:44].max()) > 0.05
    border = torch.ones(SIDE, SIDE, dtype=torch.bool)
    border[14:50, 14:50] = False
    assert float(change[border].max()) == 0


def test_no_frames_and_nobody_found():
    empty, records = locker().lock(torch.zeros(0, 3, SIDE, SIDE), [person("red", RED)])
    assert empty.shape == (0, 3, SIDE, SIDE) and records == []
    black = torch.zeros(2, 3, SIDE, SIDE)
    locked, records = locker().lock(black, [person("red", RED)])
    assert torch.equal(locked, black) and records == []


def test_an_identity_of_another_encoder_is_refused():
    with pytest.raises(InputError, match=r"has no embedding by toy@.*facelock identity create"):
        locker().lock(clip(1), [Identity("anna", {"other@1": RED})])


TWO = ((0.27, 0.5), (0.73, 0.5))


def test_two_characters_are_told_apart_by_similarity():
    frame = torch.zeros(1, 3, SIDE, SIDE)
    frame[..., : SIDE // 2], frame[..., SIDE // 2 :] = GREEN.view(3, 1, 1), RED.view(3, 1, 1)
    cast = [person("red", RED), person("green", GREEN)]
    for frames, left in ((frame, "green"), (frame.flip(-1), "red")):
        locked, records = locker(Pack(TWO)).lock(frames, cast)
        assert {r.character for r in records} == {"red", "green"}
        first = min(records, key=lambda r: r.character != left)
        assert first.character == left and first.before > 0.9
        assert float((locked - frames).abs().max()) < 0.3


def test_who_is_drawn_in_a_column_is_told_by_it_however_alike_to_the_other():
    frame = torch.zeros(1, 3, SIDE, SIDE)
    frame[..., : SIDE // 2], frame[..., SIDE // 2 :] = GREEN.view(3, 1, 1), RED.view(3, 1, 1)
    cast = [person("red", RED), person("green", GREEN)]
    placed = Locker(Pack(TWO), Aligner(), ladder=(1.0,), target=0.9, columns=2)
    _, records = placed.lock(frame, cast)
    assert all(r.before < 0.5 for r in records) and len(records) == 2  # red stands where green was drawn
    _, records = placed.lock(frame, cast[::-1])
    assert all(r.before > 0.9 for r in records)
    # one person of two that are drawn: likeness tells which
    _, (record,) = placed.lock(frame, cast[:1])
    assert record.before > 0.9


def test_both_faces_of_a_frame_are_kept_beside_frames_with_one():
    both, left = Pack(places=((0.28, 0.5), (0.72, 0.5))), Pack(places=((0.28, 0.5),))
    frames = clip(2)
    frames[1, :, :, SIDE // 2 :] = 0  # the second frame's right face is not there
    cast = [person("red", RED), person("blue", BLUE)]
    locked, records = locker(both).lock(frames, cast)
    assert [r.frame for r in records] == [0, 0, 1]
    for half in (locked[0, ..., : SIDE // 2], locked[0, ..., SIDE // 2 :], locked[1, ..., : SIDE // 2]):
        assert not any(
            torch.equal(half, part) for part in (*frames[0].split(SIDE // 2, -1), frames[1][..., : SIDE // 2])
        )
    one, _ = locker(left).lock(frames[:1], cast[:1])
    assert torch.equal(one[0, ..., : SIDE // 2], locked[0, ..., : SIDE // 2])


def test_assignment_is_optimal_and_strangers_go_left_to_right():
    faces = Faces(
        torch.tensor([0, 0, 0]),
        torch.tensor([[40.0, 0, 60, 20], [0, 0, 20, 20], [20, 0, 26, 6]]),
        torch.zeros(3, 5, 2),
        torch.ones(3),
    )
    own = normalize(torch.tensor([[1.0, 0.9, 0], [1.0, 0.2, 0], [0, 0, 1.0]]), dim=1)
    cast = normalize(torch.tensor([[1.0, 0.3, 0], [0.9, 1.0, 0.0]]), dim=1)
    index, who = assign(faces, own, cast, 0.5, 60)
    assert dict(zip(who.tolist(), index.tolist(), strict=True)) == {0: 1, 1: 0}
    index, who = assign(faces, own, cast, 1.1, 60)  # nobody resembles anybody: the two largest, left to right
    assert dict(zip(who.tolist(), index.tolist(), strict=True)) == {0: 1, 1: 0}
    index, who = assign(faces.select(torch.tensor([2])), own[2:], cast, 1.1, 60)
    assert index.tolist() == [0] and who.tolist() == [0]
    nobody = faces.select(torch.zeros(0, dtype=torch.long))
    assert [len(t) for t in assign(nobody, own[:0], cast, 0.5, 60)] == [0, 0]


def test_a_face_that_resembles_nobody_is_told_by_its_place_and_one_that_does_is_not():
    left, right = [0.0, 0, 20, 20], [40.0, 0, 60, 20]
    own = normalize(torch.tensor([[1.0, 0.0, 0], [0, 0, 1.0]]), dim=1)
    cast = normalize(torch.tensor([[0, 1.0, 0], [1.0, 0.1, 0]]), dim=1)

    def who(boxes: list, rows: Tensor, strangers: float) -> list[int]:
        found = Faces(
            torch.zeros(len(boxes), dtype=torch.long),
            torch.tensor(boxes),
            torch.zeros(len(boxes), 5, 2),
            torch.ones(len(boxes)),
        )
        index, who = assign(found, rows, cast, strangers, 60)
        return [who.tolist()[index.tolist().index(i)] for i in range(len(boxes))]

    assert who([right], own[:1], 1.1) == [1] and who([left], own[:1], 1.1) == [0]
    assert who([left, right], own, 1.1) == [0, 1] and who([right, left], own, 1.1) == [1, 0]
    # both left of the middle: still in order
    assert who([[0.0, 0, 8, 8], [12.0, 0, 20, 8]], own, 1.1) == [0, 1]
    # the face on the left is the second character's, whatever its place; the other is left with the first
    assert who([left, right], own, 0.5) == [1, 0] and who([left], own[:1], 0.5) == [1]


# ------------------------------------------------------------------ restoration


@dataclass
class Upscaler:
    scale: int = 2

    def upscale(self, frames: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(frames, scale_factor=self.scale)


@dataclass
class Restorer:
    """Mixes a colour into the crop: the identity's, or ``paint``."""

    mix: float = 0.2
    paint: Tensor | None = None
    crop: CropSpec = INSWAPPER128
    encoder: str = ENCODER

    def restore(self, crops: Tensor, identity: Tensor) -> Tensor:
        colour = identity if self.paint is None else self.paint.expand(len(crops), 3)
        return crops * (1 - self.mix) + self.mix * colour.clamp(0, 1)[..., None, None]


def loop(restorer, consistency=0.2, ladder=(1.0, 0.5), target=0.99) -> RestoreLoop:
    return RestoreLoop(Pack(), Upscaler(), restorer, ladder=ladder, target=target, consistency=consistency)


def test_restoring_enlarges_and_is_a_function_of_each_frame_alone():
    frames, restore = clip(5), loop(Restorer()).restore
    whole, records = restore(frames, [person("red", RED)], start=3)
    assert whole.shape == (5, 3, 2 * SIDE, 2 * SIDE)
    assert [r.frame for r in records] == [3, 4, 5, 6, 7]
    assert all(r.rung >= 0 and r.after > r.before and 0 < r.consistency <= 0.2 for r in records)
    assert torch.equal(restore(frames.flip(0), [person("red", RED)])[0], whole.flip(0))
    assert torch.equal(restore(frames[2:3], [person("red", RED)])[0][0], whole[2])


def test_a_face_that_no_longer_agrees_with_its_frame_is_not_accepted():
    frames, cast = clip(2), [person("red", RED)]
    plain = Upscaler().upscale(frames)
    strict, records = loop(Restorer(mix=0.9), consistency=0.01).restore(frames, cast)
    assert torch.equal(strict, plain) and all(r.rung == -1 for r in records)
    _, full = loop(Restorer(mix=0.9), consistency=1.0).restore(frames, cast)
    limit = full[0].consistency * 0.75  # the whole is too much, half of it is not
    _, half = loop(Restorer(mix=0.9), consistency=limit).restore(frames[:1], cast)
    assert full[0].rung == 0 and half[0].rung == 1 and half[0].consistency <= limit


def test_a_face_that_is_less_the_character_is_not_accepted():
    frames, cast = clip(2, RED), [person("red", RED)]
    out, records = loop(Restorer(mix=0.5, paint=GREEN), consistency=1.0, target=2.0).restore(frames, cast)
    assert torch.equal(out, Upscaler().upscale(frames))
    assert all(r.rung == -1 and r.after == r.before for r in records)


def test_without_a_restorer_frames_are_enlarged_and_measured():
    frames = clip(2)
    out, records = loop(None).restore(frames, [person("red", RED)])
    assert torch.equal(out, Upscaler().upscale(frames))
    assert [r.rung for r in records] == [-1, -1] and records[0].before == records[0].after


class Beside:
    """Says that it may be called from several threads."""

    side_by_side = True


class PackBeside(Beside, Pack):
    """A pack for lanes."""


class AlignerBeside(Beside, Aligner):
    """An aligner for lanes."""


class RestorerBeside(Beside, Restorer):
    """A restorer for lanes."""


def test_lanes_change_nothing():
    """With two threads, frames go through some beside others; frames, records and spared faces are the same."""
    frames = clip(11)
    frames[4] = 0.05
    cast = [person("red", RED), person("blue", BLUE)]
    told = Cast((GREEN[None], GREEN[None] * 0 + RED), BLUE[None], 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for places, given in ((((0.5, 0.5),), None), (TWO, None), (TWO, told)):
            plain = locker(Pack(places), Aligner(mix=0.3)).lock(frames, cast, cast=given, start=5)
            aligner = AlignerBeside(mix=0.3)
            lanes = locker(PackBeside(places), aligner).lock(frames, cast, cast=given, start=5)
            assert torch.equal(plain[0], lanes[0]) and plain[1] == lanes[1]
            assert len(aligner.calls) > 4  # it was cut into groups
        ours, theirs = (
            RestoreLoop(pack, Upscaler(), made, ladder=(1.0, 0.5), target=2.0, consistency=0.2).restore(
                frames, cast
            )
            for pack, made in ((Pack(TWO), Restorer()), (PackBeside(TWO), RestorerBeside()))
        )
        assert torch.equal(ours[0], theirs[0]) and ours[1] == theirs[1]
    finally:
        torch.set_num_threads(before)


def test_frames_that_were_looked_at_in_groups_are_not_copied():
    frames = clip(7)
    for pack in (Pack(), PackBeside()):
        assert locker(pack).take(frames, [person("red", RED)]).frames is frames


@dataclass
class Poisoned(Aligner):
    """Gives NaN for the faces of the frames ``bad``, told by their colour, at strengths up to ``until``."""

    bad: tuple[float, ...] = ()
    until: float = 9.0

    def align(self, crops: Tensor, identity: Tensor, strength: float, *, references=()) -> Tensor:
        out = super().align(crops, identity, strength, references=references)
        hit = torch.tensor([any(abs(float(c[1].mean()) - b) < 1e-6 for b in self.bad) for c in crops])
        if strength <= self.until:
            out[hit] = float("nan")
        return out


def test_a_face_whose_alignment_is_not_finite_keeps_its_pixels_and_ends_no_run(caplog):
    frames, cast = clip(5), [person("red", RED)]
    plain = locker().take(frames, cast).crops[:, 1].flatten(1).mean(1).tolist()
    sane, before = locker(target=0.99).lock(frames, cast)
    lock = locker(aligner=Poisoned(bad=(plain[1], plain[3])), target=0.99)
    with caplog.at_level(logging.WARNING, "facelock"):
        out, records = lock.lock(frames, cast)
        again, _ = lock.lock(frames[:2], cast)
    assert bool(out.isfinite().all()) and torch.equal(out[[1, 3]], frames[[1, 3]])
    assert torch.equal(out[[0, 2, 4]], sane[[0, 2, 4]]) and torch.equal(again, out[:2])
    for index, record in enumerate(records):
        if index in (1, 3):
            assert (record.rung, record.met, record.after) == (-1, False, record.before)
        else:
            assert record == before[index]
    assert lock.not_finite == 3  # two of the clip, one of them again
    assert caplog.text.count("the aligner gave NaN or infinity for 2 faces") == caplog.text.count("NaN") == 1


class Strict(Pack):
    """Refuses pictures that are no numbers, as the real packs do, and likes whatever was pasted."""

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        assert bool(frames.isfinite().all())
        seen = super().embed(frames, faces)
        self.looks = getattr(self, "looks", 0) + 1
        return normalize(seen + RED, dim=1) if self.looks > 1 else seen


def test_what_is_not_finite_is_neither_measured_nor_kept_however_well_the_input_would_do():
    frames, cast = clip(3), [person("red", RED)]
    plain = locker().take(frames, cast).crops[:, 1].flatten(1).mean(1).tolist()
    out, records = locker(Strict(), Poisoned(bad=(plain[1],)), ladder=(1.0,)).lock(frames, cast)
    assert [record.rung for record in records] == [0, -1, 0] and torch.equal(out[1], frames[1])


def test_a_face_that_fails_at_one_strength_may_succeed_at_the_next(caplog):
    frames, cast = clip(2), [person("red", RED)]
    plain = locker().take(frames, cast).crops[:, 1].flatten(1).mean(1).tolist()
    lock = locker(aligner=Poisoned(bad=(plain[1],), until=1.0), target=0.99)
    _, records = lock.lock(frames, cast)
    assert records[1].rung == 1 and lock.not_finite == 0 and "NaN" not in caplog.text


class Askew(Pack):
    """Finds a face that is not red yet six pixels aside, where it looks like nobody."""

    def detect(self, frames: Tensor) -> Faces:
        found = super().detect(frames)
        middles = frames[found.frame, :, SIDE // 2, SIDE // 2]
        aside = (middles[:, 0] < middles[:, 1]).float() * 6
        return replace(
            found, landmarks=found.landmarks + aside[:, None, None], box=found.box + aside[:, None]
        )

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        right = (faces.landmarks.mean(1) - SIDE / 2).abs().amax(1) < 3
        return torch.where(right[:, None], super().embed(frames, faces), BLUE)


def test_a_face_that_was_found_aside_is_looked_at_twice():
    frames, red = clip(), [person("red", RED)]
    lock = locker(pack=Askew(), aligner=Aligner(mix=0.9)).lock
    locked, records = lock(frames, red, start=40)
    assert [record.met for record in records] == [True] * 7
    assert [record.frame for record in records] == list(range(40, 47))
    assert all(record.before < 0.3 < 0.9 < record.after and record.rung == 0 for record in records)
    assert bool((locked[:, 0, SIDE // 2, SIDE // 2] > locked[:, 1, SIDE // 2, SIDE // 2]).all())
    for index in range(7):
        assert torch.equal(lock(frames[index : index + 1], red)[0][0], locked[index])


def test_a_second_look_that_gains_nothing_leaves_every_bit():
    frames, red = clip(), [person("red", RED)]
    aligner = Aligner(mix=0.0)
    locked, records = locker(pack=Askew(), aligner=aligner).lock(frames, red)
    assert torch.equal(locked, frames) and all(record.rung == -1 for record in records)
    looks = len(aligner.calls)
    known = Cast(
        (BLUE[None],), torch.zeros(0, 3), 0.2
    )  # in a clip of somebody else's making nothing is tried twice
    locker(pack=Askew(), aligner=aligner).lock(frames, red, cast=known)
    assert len(aligner.calls) - looks < looks
