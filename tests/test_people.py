"""Who is who in a clip: people put together, parts given, and nobody else touched."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from real import ASSETS, needs_assets
from test_closed_loop import BLUE, ENCODER, GREEN, RED, SIDE, Aligner, Pack, locker, person
from torch import Tensor
from torch.nn.functional import normalize

from facelock.closed_loop import Cast, assign
from facelock.errors import InputError
from facelock.footage.people import Seen, cluster, find_cast, look_around, sampled
from facelock.types import Faces, Identity, Thresholds

WIDTH = 256


class Encoder:
    """Thresholds as those of a real recogniser."""

    id = ENCODER
    thresholds = Thresholds(0.25, 0.32, 0.4)


def direction(seed: int) -> Tensor:
    return normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)


def faces_of(who: Tensor, count: int, spread: float = 0.6, seed: int = 0) -> Tensor:
    """Unit rows around a person, as alike as a real person's pictures are."""
    noise = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return normalize(who + spread * normalize(noise, dim=1), dim=1)


def seen(*people: tuple[Tensor, list[int], float]) -> Seen:
    """People as (rows, frames, horizontal place)."""
    frame = torch.tensor([f for _, frames, _ in people for f in frames])
    box = torch.tensor([(x, 5.0, x + 20.0, 30.0) for _, frames, x in people for _ in frames])
    rows = torch.cat([rows for rows, _, _ in people])
    order = frame.argsort(stable=True)
    return Seen(frame[order], box[order], rows[order])


def identity(row: Tensor, name: str = "maria") -> Identity:
    return Identity(name, {ENCODER: row})


A, B, C = direction(1), direction(2), direction(3)


def groups(scene: Seen) -> list[set[int]]:
    return [set(scene.frame[rows].tolist()) for rows in cluster(scene, Encoder)]


def test_frames_to_look_at_are_spread_over_the_clip():
    assert sampled(5) == [0, 1, 2, 3, 4] and sampled(1) == [0]
    places = sampled(10_000)
    assert len(places) == 200 and places[0] == 0 and places[-1] == 9999
    assert max(b - a for a, b in pairwise(places)) <= 51


def test_two_people_who_take_turns_are_two():
    scene = seen(
        (faces_of(A, 20), list(range(20)), 10.0), (faces_of(B, 12, seed=5), list(range(20, 32)), 10.0)
    )
    assert groups(scene) == [set(range(20)), set(range(20, 32))]
    assert len(groups(seen((faces_of(A, 20), list(range(0, 60, 3)), 10.0)))) == 1


def test_somebody_a_little_alike_is_the_same_only_in_the_same_place():
    other = normalize(B + 0.28 * A, dim=0)  # as alike as one stranger in a hundred is
    for place, people in ((12.0, 1), (300.0, 2)):
        parts = [
            (A.expand(20, -1), list(range(20)), 10.0),
            (other.expand(20, -1), list(range(20, 40)), place),
        ]
        assert len(groups(seen(*parts))) == people


def test_a_face_that_drifts_into_another_stays_one_person():
    path = normalize(torch.lerp(A, B, torch.linspace(0, 1, 40)[:, None]), dim=1)
    scene = seen((path, list(range(40)), 10.0))
    assert float(path[0] @ path[-1]) < 0.1
    assert groups(scene) == [set(range(40))]


def test_two_faces_of_one_frame_are_never_one_person():
    twins = faces_of(A, 40, 0.2)
    scene = seen((twins[:20], list(range(20)), 10.0), (twins[20:], list(range(20)), 90.0))
    people = cluster(scene, Encoder)
    assert [len(rows) for rows in people] == [20, 20]
    for rows in people:
        assert len(set(scene.frame[rows].tolist())) == 20


def two() -> Seen:
    return seen((faces_of(A, 20), list(range(20)), 10.0), (faces_of(B, 15, seed=5), list(range(15)), 90.0))


def nearest(rows: Tensor, who: Tensor) -> bool:
    return bool((rows @ who > 0.5).all())


def test_the_one_who_resembles_the_reference_has_the_part():
    for who, other in ((A, B), (B, A)):
        casting = find_cast(two(), [identity(faces_of(who, 1, seed=9)[0])], Encoder)
        assert nearest(casting.cast.own[0], who) and nearest(casting.cast.others, other)
        assert casting.people == 2 and casting.notes == ()
        assert casting.cast.floor == Encoder.thresholds.far_1e3
        assert len(casting.cast.own[0]) <= 16
    both = find_cast(two(), [identity(B, "b"), identity(A, "a")], Encoder)
    assert nearest(both.cast.own[0], B) and nearest(both.cast.own[1], A) and not len(both.cast.others)


def test_a_drifted_face_is_recognised_by_how_it_began():
    path = normalize(torch.lerp(A, C, torch.linspace(0, 1, 40)[:, None]), dim=1)
    scene = seen((path, list(range(40)), 10.0), (faces_of(B, 40), list(range(40)), 90.0))
    own = find_cast(scene, [identity(A)], Encoder).cast.own[0]
    assert float((own @ C).max()) > 0.9 and not nearest(own, A)


def test_the_only_person_is_given_a_strangers_face_and_that_is_said():
    scene = seen((faces_of(B, 30), list(range(30)), 10.0), (faces_of(C, 2), [3, 4], 90.0))  # C passes by
    casting = find_cast(scene, [identity(A)], Encoder)
    assert nearest(casting.cast.own[0], B) and nearest(casting.cast.others, C)
    assert casting.people == 1 and "nobody in the clip resembles maria" in casting.notes[0]
    with pytest.raises(InputError, match=r"resembles maria\. Give a picture of somebody who is in it"):
        find_cast(scene, [identity(A)], Encoder, swap=False)


def test_who_is_meant_must_be_said_among_several():
    with pytest.raises(InputError, match=r"maria, and 2 people are seen\. .* --replace PICTURE"):
        find_cast(two(), [identity(C)], Encoder)
    casting = find_cast(two(), [identity(C)], Encoder, replace=[identity(faces_of(B, 1, seed=8)[0], "actor")])
    assert nearest(casting.cast.own[0], B) and nearest(casting.cast.others, A)
    with pytest.raises(InputError, match="Nobody in the clip resembles the picture"):
        find_cast(two(), [identity(A)], Encoder, replace=[identity(C)])
    with pytest.raises(InputError, match="2 pictures of whom to replace are given for 1 faces"):
        find_cast(two(), [identity(A)], Encoder, replace=[identity(A), identity(B)])


def test_as_many_strangers_as_characters_from_left_to_right():
    casting = find_cast(two(), [identity(C, "c"), identity(direction(4), "d")], Encoder)
    assert nearest(casting.cast.own[0], A) and nearest(casting.cast.own[1], B)
    assert "from left to right" in casting.notes[0]
    mixed = find_cast(two(), [identity(C, "c"), identity(A, "a")], Encoder)
    assert nearest(mixed.cast.own[0], B) and nearest(mixed.cast.own[1], A)


def test_a_clip_without_faces_is_refused():
    empty = Seen(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), torch.zeros(0, WIDTH))
    with pytest.raises(InputError, match="No face is seen"):
        find_cast(empty, [identity(A)], Encoder)


# ------------------------------------------------------------------ each frame decides alone


def faces(boxes: list[tuple[float, float, float, float]], frame: list[int] | None = None) -> Faces:
    box = torch.tensor(boxes)
    return Faces(
        torch.tensor(frame or [0] * len(boxes)), box, torch.zeros(len(boxes), 5, 2), torch.ones(len(boxes))
    )


def test_a_face_goes_to_whom_it_is_nearest_and_strangers_to_nobody():
    cast = Cast((faces_of(A, 8),), faces_of(B, 8), 0.3)
    rows = torch.cat([faces_of(A, 1, seed=3), faces_of(B, 1, seed=3), direction(7)[None]])
    found = faces([(0, 0, 9, 9)] * 3)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2], [2]):
        index, who = assign(found.select(torch.tensor(order)), rows[order], C[None], 0.25, 100, cast)
        assert [order[i] for i in index.tolist()] == [0] * (0 in order)
        assert who.tolist() == [0] * len(index)
    index, _ = assign(
        found, rows, B[None], 0.25, 100, cast
    )  # who looks like the reference itself is the character too
    assert float(rows[1] @ B) > float((faces_of(B, 8) @ rows[1]).max()) and index.tolist() in ([0], [1])


def scene(
    count: int = 4, left: Tensor = GREEN, right: Tensor = BLUE, places=((0.25, 0.5), (0.75, 0.5))
) -> Tensor:
    """Frames with two faces, coloured like people; the last one is empty."""
    draw = torch.Generator().manual_seed(2)
    frames = 0.05 + 0.02 * torch.rand(count, 3, SIDE, SIDE, generator=draw)
    for colour, (x, _) in zip((left, right), places, strict=True):
        column = slice(max(0, int((x - 0.2) * SIDE)), int((x + 0.2) * SIDE))
        frames[:-1, :, 16:48, column] = colour.view(3, 1, 1) * (
            0.6 + 0.3 * torch.rand(count - 1, 1, 1, 1, generator=draw)
        )
    return frames


def casting(frames: Tensor, pack: Pack, who: Identity, **options: object):
    seen = look_around([(list(range(len(frames))), frames)], pack)
    return find_cast(seen, [who], pack.encoder, **options)


def toy_pack(places=((0.25, 0.5), (0.75, 0.5))) -> Pack:
    return Pack(places)


def test_other_peoples_faces_keep_every_pixel():
    frames, pack = scene(), toy_pack()
    cast = casting(frames, pack, person("green", GREEN)).cast
    wish = person("red", RED)
    out, records = locker(pack).lock(frames, [wish], cast=cast)
    found = pack.detect(frames)
    for frame, box in zip(found.frame.tolist(), found.box.tolist(), strict=True):
        left, top, right, bottom = (int(side) for side in box)
        same = torch.equal(out[frame, :, top:bottom, left:right], frames[frame, :, top:bottom, left:right])
        assert same == (left > SIDE // 2)
    assert torch.equal(out[-1], frames[-1])  # nobody there: bit for bit
    assert [record.frame for record in records] == [0, 1, 2]


def test_a_face_beside_keeps_its_pixels_even_where_the_paste_reaches_it():
    places = ((0.38, 0.5), (0.62, 0.5))
    frames, pack = scene(places=places), toy_pack(places)
    cast = casting(frames, pack, person("green", GREEN)).cast
    out, _ = locker(pack).lock(frames, [person("red", RED)], cast=cast)
    unspared, _ = locker(pack).lock(frames, [person("red", RED)])
    box = pack.detect(frames[:1]).box[1]
    left, top, right, bottom = int(box[0]), int(box[1]), int(box[2]) + 1, int(box[3]) + 1
    assert torch.equal(out[0, :, top:bottom, left:right], frames[0, :, top:bottom, left:right])
    assert not torch.equal(unspared[0, :, top:bottom, left:right], frames[0, :, top:bottom, left:right])


def test_locking_a_cast_is_a_function_of_each_frame_alone():
    frames, pack = scene(6), toy_pack()
    cast = casting(frames, pack, person("green", GREEN)).cast
    lock, wish = locker(pack, Aligner()).lock, [person("red", RED)]
    whole, records = lock(frames, wish, cast=cast)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(lock(frames[order], wish, cast=cast)[0], whole[order])
    for index in range(6):
        alone, record = lock(frames[index : index + 1], wish, start=index, cast=cast)
        assert torch.equal(alone[0], whole[index])
        assert record == [each for each in records if each.frame == index]


# ------------------------------------------------------------------ real people


@pytest.fixture(scope="module")
def looked_at():
    """What a dozen frames of three real clips show: the same woman in two of them, a man in the third."""
    from facelock.faces import load_pack
    from facelock.video.reading import probe, read_stills

    pack = load_pack(
        "onnx_pack",
        detector=ASSETS / "detectors" / "det_500m.onnx",
        encoder=ASSETS / "recognisers" / "w600k_mbf_dequant_fp32.onnx",
        name="w600k",
        thresholds=Thresholds(0.2, 0.25, 0.3),
        detection_size=320,
    )
    result = {}
    for name in ("retalk_2", "retalk_3", "WDA_AlexandriaOcasioCortez_000"):
        path = ASSETS / "videos" / f"{name}.mp4"
        stills = read_stills(path, only=sampled(probe(path).frames, 12))
        shown = [([still.index], still.pixels[None]) for still in stills if still.pixels is not None]
        result[name] = look_around(shown, pack)
    return pack.encoder, result


def joined(*parts: Seen, together: bool = False) -> Seen:
    """Clips one after the other, or side by side."""
    starts = [sum(int(p.frame.max()) + 1 for p in parts[:n]) for n in range(len(parts))]
    places = [
        torch.arange(len(p.frame)) if together else p.frame + at for p, at in zip(parts, starts, strict=True)
    ]
    frame = torch.cat(places)
    order = frame.argsort(stable=True)
    box = torch.cat([p.box + 2000.0 * n * together for n, p in enumerate(parts)])
    return Seen(frame[order], box[order], torch.cat([p.embedding for p in parts])[order])


@needs_assets
def test_real_people_are_told_apart_and_found_again(looked_at):
    encoder, clips = looked_at
    man, woman, again = clips.values()
    for alone in clips.values():
        assert [len(rows) for rows in cluster(alone, encoder)] == [12]
    assert [len(rows) for rows in cluster(joined(woman, again), encoder)] == [24]  # another recording of her
    for together in (False, True):
        scene = joined(man, woman, together=together)
        assert [len(rows) for rows in cluster(scene, encoder)] == [12, 12]
        for mine, other in ((man, woman), (woman, man)):
            cast = find_cast(scene, [Identity("x", {encoder.id: mine.embedding[5]})], encoder).cast
            assert float((cast.own[0] @ mine.embedding.T).amax(1).min()) > 0.99
            assert float((cast.others @ other.embedding.T).amax(1).min()) > 0.99
