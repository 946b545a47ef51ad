"""Several photos become one identity: who is meant, which photos count, and what is said of the others."""

from __future__ import annotations

import itertools
import uuid

import numpy as np
import pytest
import torch
from album import JUDGE, LOOP, Album, Face, shot, somebody
from PIL import Image
from real import ASSETS, needs_assets

from facelock.assets import asset_dir
from facelock.errors import ConfigError, InputError
from facelock.identity import recrop
from facelock.identity.consensus import centre, groups, to_the_others, unlike
from facelock.identity.enrol import create_identity
from facelock.identity.findings import MOST_CROPS, MOST_PHOTOS, Outcome
from facelock.miniature import data, world
from facelock.miniature.parameters import sample_appearance, sample_nuisance, take
from facelock.perception import open_perception
from facelock.types import Consent, Spread

SAMPLES = asset_dir("models").parent / "samples" / "faces"
ANNA, BELA, CARO = (somebody(k) for k in range(3))


@pytest.fixture
def album():
    return Album()


def enrol(album, photos, **options):
    return create_identity(photos, album.perception, name="anna", **options)


def outcomes(enrolment):
    return [str(finding.outcome) for finding in enrolment.findings]


def refused(album, photos, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        enrol(album, photos, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_one_photo(album):
    row = shot(ANNA, 0.8, 0)
    made = enrol(album, [album.photo(Face(row))], consent=Consent("fictional"))
    identity = made.identity
    assert outcomes(made) == ["used"] and made.remarks == ()
    assert torch.equal(identity.embeddings[LOOP], torch.tensor(row, dtype=torch.float32))
    assert set(identity.embeddings) == {LOOP, JUDGE} and identity.embeddings[LOOP].dtype == torch.float32
    assert identity.spread == {LOOP: Spread(1, 1.0, 1.0), JUDGE: Spread(1, 1.0, 1.0)}
    assert identity.crops.shape == (1, 3, 384, 384) and identity.portrait.shape == (3, 192, 192)
    assert identity.name == "anna" and identity.perception == ("album", "judge")
    assert identity.consent.kind == "fictional" and str(uuid.UUID(identity.uuid)) == identity.uuid
    assert enrol(album, [album.photo(Face(row))]).identity.uuid != identity.uuid


def test_many_photos_come_nearer_to_the_person_than_any_of_them(album):
    made = enrol(album, album.shots(ANNA, 12, 0.8))
    for row in (made.identity.embeddings[LOOP], made.identity.embeddings[JUDGE].flip(0)):
        assert float(row.norm()) == pytest.approx(1, abs=1e-6)
        assert float(row.double().numpy() @ ANNA) > 0.95
    natural = made.identity.spread[LOOP]
    assert natural.count == 12 and natural.low <= natural.mean < 0.8
    likeness = [finding.similarity[LOOP] for finding in made.findings]
    assert natural.low == pytest.approx(min(likeness)) and natural.mean == pytest.approx(np.mean(likeness))
    assert made.identity.crops.shape[0] == MOST_CROPS


def test_the_spread_of_two_is_their_likeness(album):
    rows = [shot(ANNA, 0.8, k) for k in range(2)]
    made = enrol(album, [album.photo(Face(row)) for row in rows])
    expected = float(rows[0] @ rows[1])
    assert made.identity.spread[LOOP] == Spread(2, pytest.approx(expected), pytest.approx(expected))


def test_the_order_of_the_photos_does_not_matter(album):
    photos = [*album.shots(ANNA, 5, 0.75), album.photo(Face(BELA, 60), Face(shot(ANNA, 0.7, 9), 190))]
    photos += [album.photo(Face(CARO)), album.photo(Face(ANNA, height=30))]
    first = enrol(album, photos)
    said = {finding.photo: finding for finding in first.findings}
    order = np.random.default_rng(0)
    for _ in range(6):
        turn = order.permutation(len(photos))
        again = enrol(album, [photos[k] for k in turn])
        for encoder in (LOOP, JUDGE):
            assert torch.equal(again.identity.embeddings[encoder], first.identity.embeddings[encoder])
        assert again.identity.spread == first.identity.spread
        assert torch.equal(again.identity.crops, first.identity.crops)
        assert again.identity.sha256 == first.identity.sha256
        for place, k in enumerate(turn):
            before, now = said[f"photo {k + 1}"], again.findings[place]
            assert (now.outcome, now.quality, now.similarity) == (
                before.outcome,
                before.quality,
                before.similarity,
            )


@pytest.mark.parametrize("place", range(3))
def test_another_person_among_three_photos_is_named(album, place):
    photos = album.shots(ANNA, 2)
    photos.insert(place, album.photo(Face(BELA)))
    made = enrol(album, photos)
    assert [finding.outcome is Outcome.STRANGER for finding in made.findings] == [
        k == place for k in range(3)
    ]
    assert made.remarks == (f"photo {place + 1}: left out: shows another person",)
    assert made.findings[place].similarity[LOOP] < 0.4 < made.identity.spread[LOOP].low
    assert made.identity.spread[LOOP].count == 2


def test_one_stranger_in_several_photos_is_one_stranger(album):
    made = enrol(album, [*album.shots(ANNA, 4), *album.shots(BELA, 2, first=50), album.photo(Face(CARO))])
    assert outcomes(made) == ["used"] * 4 + ["another person"] * 3
    assert made.findings[4].reason == "shows another person, the same as photo 6"
    assert made.findings[6].reason == "shows another person"


@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (1, 1, 1), (3, 3, 1)])
def test_nobody_in_particular(album, counts):
    cast = list(zip((ANNA, BELA, CARO), counts, strict=False))
    people = [album.shots(who, count, first=20 * k) for k, (who, count) in enumerate(cast)]
    message = refused(album, list(itertools.chain(*people)), "people equally often")
    assert f"show {counts.count(max(counts))} people" in message and "1: photo 1" in message
    assert f"2: photo {counts[0] + 1}" in message


def test_of_several_faces_the_one_that_agrees_is_taken(album):
    group = album.photo(Face(BELA, 50, 60), Face(shot(ANNA, 0.8, 7), 128, 60), Face(CARO, 210, 60))
    made = enrol(album, [group, *album.shots(ANNA, 2)])
    assert outcomes(made) == ["used"] * 3
    assert made.remarks == ("photo 1: of 3 faces, the one of --face-index 1 agrees with the other photos",)
    assert float(made.identity.embeddings[LOOP].double().numpy() @ BELA) < 0.4


def test_one_photo_of_several_people_needs_a_choice(album):
    group = album.photo(Face(BELA, 50, 60), Face(ANNA, 190, 60))
    assert "--face-index N" in refused(album, [group], "shows 2 people")
    again = album.photo(Face(shot(BELA, 0.8, 1), 60), Face(shot(ANNA, 0.8, 2), 190))
    assert "1: photo 1" in refused(album, [group, again], "equally often")
    made = enrol(album, [group], face=1)
    assert torch.allclose(made.identity.embeddings[LOOP], torch.tensor(ANNA, dtype=torch.float32))
    assert enrol(album, [group, *album.shots(BELA, 1)], face=[0]).used[0].photo == "photo 1"
    refused(album, [group], "no face 2", face=2)
    refused(album, [group], "2 faces are chosen for 1 photos", face=[0, 1])


def test_a_face_in_the_background_does_not_ask_for_a_choice(album):
    made = enrol(album, [album.photo(Face(BELA, 40, 30), Face(ANNA, 150))])
    assert made.remarks == (
        "photo 1: of 2 faces, the one of --face-index 1 is the only one that can be used",
    )
    assert torch.allclose(made.identity.embeddings[LOOP], torch.tensor(ANNA, dtype=torch.float32))


POOR = {
    "too small": (Face(shot(ANNA, 0.8, 90), height=40), lambda p: p),
    "turned away": (Face(shot(ANNA, 0.8, 90), yaw=75), lambda p: p),
    "too dark": (Face(shot(ANNA, 0.8, 90)), lambda p: p * 0.04),
    "too bright": (Face(shot(ANNA, 0.8, 90)), lambda p: np.clip(p * 10.0, 0, 255)),
    "blurred": (Face(shot(ANNA, 0.8, 90)), lambda p: 127 + 100 * np.sin(np.indices(p.shape)[1] / 40)),
}


@pytest.mark.parametrize("what", POOR)
def test_a_poor_photo_is_left_out_and_said(album, what):
    face, edit = POOR[what]
    photos = [*album.shots(ANNA, 2), album.photo(face, edit=edit)]
    made = enrol(album, photos)
    assert outcomes(made) == ["used", "used", "poor"] and what in made.remarks[0], made.remarks
    assert made.findings[2].quality is not None and made.findings[2].similarity[LOOP] > 0.4
    assert what in refused(album, photos[2:], "^photo 1: the face is")


def test_the_reasons_of_all_photos_are_said_when_none_is_left(album, tmp_path):
    photos = [album.photo(face, edit=edit) for face, edit in POOR.values()]
    (tmp_path / "notes. txt.jpg").write_text("hello")
    message = refused(album, [*photos, tmp_path / "notes. txt.jpg", album.photo()], "No photo can be used")
    for what in POOR:
        assert what in message
    assert "notes. txt.jpg: is text, not a picture" in message and "photo 7: no face was found" in message


def test_a_person_who_is_there_but_poorly_is_not_called_another(album):
    mixed = album.photo(Face(BELA, 60), Face(shot(ANNA, 0.8, 8), 190, height=40))
    made = enrol(album, [mixed, *album.shots(ANNA, 2)])
    assert outcomes(made)[0] == "poor" and "too small" in made.remarks[0]


def test_a_photo_far_from_the_others_does_not_count(album):
    made = enrol(album, [*album.shots(ANNA, 6, 0.95), album.photo(Face(shot(ANNA, 0.48, 60)))])
    assert outcomes(made) == ["used"] * 6 + ["unlike"]
    assert made.identity.spread[LOOP].low > 0.85 and "unlike" in made.remarks[0]


def test_the_same_photo_twice_counts_once(album, tmp_path):
    photos = album.shots(ANNA, 2)
    Image.fromarray(photos[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    made = enrol(album, [tmp_path / "a.png", tmp_path / "b.png", photos[1]])
    assert outcomes(made) == ["used", "duplicate", "used"]
    assert made.remarks == ("b.png: left out: is the same picture as a.png",)


def test_files_of_one_name_are_told_apart(album, tmp_path):
    for folder, pixels in zip("ab", album.shots(ANNA, 2), strict=True):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "me.png")
    made = enrol(album, [tmp_path / "a" / "me.png", tmp_path / "b" / "me.png"])
    assert [finding.photo for finding in made.findings] == [str(tmp_path / f / "me.png") for f in "ab"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": " "}, "name"), ({"name": "a\nb"}, "name"), ({"name": "x" * 101}, "name"),
        ({"consent": Consent("perhaps")}, "perhaps"), ({"consent": Consent(expires="tomorrow")}, "tomorrow"),
        ({"pictures": []}, "No photo is given"), ({"pictures": [3] * (MOST_PHOTOS + 1)}, "at most"),
    ],
)  # fmt: skip
def test_bad_arguments(album, options, match):
    arguments = {"pictures": [3], "name": "anna", **options}
    with pytest.raises(InputError, match=match):
        create_identity(arguments.pop("pictures"), album.perception, **arguments)


def test_progress_is_told_photo_by_photo(album):
    seen = []
    enrol(album, album.shots(ANNA, 3), progress=lambda *step: seen.append(step))
    assert seen == [("photos", k, 3) for k in (1, 2, 3)]


def test_the_centre_withstands_strangers_where_a_mean_does_not():
    rows = np.stack([shot(ANNA, 0.9, k) for k in range(6)] + [shot(BELA, 0.99, 40 + k) for k in range(4)])
    mean = rows.mean(0) / np.linalg.norm(rows.mean(0))
    assert centre(rows) @ ANNA > 0.93 > 0.85 > mean @ ANNA
    assert np.array_equal(centre(rows[:1]), rows[0] / np.linalg.norm(rows[0]))


def test_far_out_needs_four_and_a_low_value():
    assert not unlike(np.array([0.9, 0.9, 0.1]), 0.5).any()
    assert unlike(np.array([0.9, 0.88, 0.91, 0.1]), 0.5).tolist() == [False, False, False, True]
    assert not unlike(np.array([0.9, 0.88, 0.91, 0.6]), 0.5).any()
    assert to_the_others(np.stack([ANNA, ANNA, BELA]))[2] == pytest.approx(ANNA @ BELA)


def test_two_faces_of_one_photo_are_two_people():
    score = np.full((3, 3), 0.9)
    assert groups(score, [0, 0, 1]) == [[0, 2], [1]]
    assert groups(-score, [0, 1, 2]) == [[0], [1], [2]]


# The miniature world.


@pytest.fixture(scope="module")
def miniature():
    return open_perception()


def renders(person: int, count: int, seed: int) -> list[torch.Tensor]:
    """Pictures of one held-out character: other light, pose, expression and place, the same hair."""
    g = data.seeded(77, seed)
    face = take(data.identities("heldout", person + 1), torch.full((count,), person))
    look = take(sample_appearance(1, g, face["feminine"][:1]), torch.zeros(count, dtype=torch.long))
    now = sample_nuisance(count, g)
    now = {key: value * (0.5 if key in ("yaw", "pitch", "roll") else 1) for key, value in now.items()}
    now["scale"] = torch.full((count,), 0.6)
    return list(world.render(face, look, now, 256).clamp(0, 1))


@pytest.fixture(scope="module")
def cast(miniature):
    return {who: renders(who, 7, who) for who in (3, 11)}


def test_a_rendered_stranger_is_named(miniature, cast):
    photos = [*cast[3], cast[11][0]]
    made = create_identity(photos, miniature, name="three")
    assert outcomes(made)[-1] == "another person", made.remarks
    assert len(made.used) >= 4 and all(f.outcome is not Outcome.STRANGER for f in made.findings[:-1])


def test_rendered_people_are_told_apart(miniature, cast):
    made = {
        who: create_identity(photos[:6], miniature, name=str(who)).identity for who, photos in cast.items()
    }
    for pack in miniature.packs:
        key, accept = pack.encoder.id, pack.encoder.thresholds
        assert float(made[3].embeddings[key] @ made[11].embeddings[key]) < accept.far_1e2
        for who, photos in cast.items():
            assert made[who].spread[key].mean > accept.far_1e3
            seen = create_identity(photos[6:], miniature, name="x").identity
            assert float(seen.embeddings[key] @ made[who].embeddings[key]) > accept.far_1e3


def test_kept_crops_show_the_same_face(miniature, cast):
    identity = create_identity(cast[3], miniature, name="three").identity
    for pack in miniature.packs:
        rows = pack.encoder.embed_crops(recrop(identity.crops, pack.encoder.crop))
        assert float((rows @ identity.embeddings[pack.encoder.id]).min()) > pack.encoder.thresholds.far_1e3


def test_gray_deep_and_turned_photos_are_the_same_person(miniature, tmp_path):
    with Image.open(SAMPLES / "maria.png") as image:
        colour = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    deep = np.asarray(colour.convert("L")).astype(np.uint16) * 257
    colour.save(tmp_path / "colour.png")
    colour.convert("L").save(tmp_path / "gray.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    colour.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    made = {path.stem: create_identity([path], miniature, name="x").identity for path in tmp_path.iterdir()}
    for key, row in made["colour"].embeddings.items():
        assert float(row @ made["turned"].embeddings[key]) > 0.999
        assert float(made["gray"].embeddings[key] @ made["deep"].embeddings[key]) > 0.99


# Real photos.


@pytest.fixture(scope="module")
def real():
    detector, recognisers = ASSETS / "detectors" / "det_500m.onnx", ASSETS / "recognisers"
    try:
        return open_perception(
            f"{detector}+{recognisers / 'w600k_mbf_dequant_fp32.onnx'}",
            str(recognisers / "arcface_mbf_y1_ms1m.onnx"),
        )
    except ConfigError:
        pytest.skip("facelock.perception cannot name files yet")


@pytest.fixture(scope="module")
def people(real):
    """Name → an identity of nine photos of each LFW person; the tenth is kept for testing."""
    folders = sorted((ASSETS / "photos" / "lfw").iterdir())
    return {f.name: create_identity(sorted(f.iterdir())[:9], real, name=f.name) for f in folders}


@needs_assets
def test_real_photos_all_count(people):
    for made in people.values():
        assert len(made.used) == 9, made.remarks
        for natural in made.identity.spread.values():
            assert natural.mean > 0.7 and natural.low > 0.5


@needs_assets
def test_real_people_are_told_apart(real, people):
    tenth = {name: sorted((ASSETS / "photos" / "lfw" / name).iterdir())[9] for name in people}
    for name, path in tenth.items():
        seen = create_identity([path], real, name="x", face=_middle(path, real)).identity
        for pack in real.packs:
            key = pack.encoder.id
            cosines = {
                who: float(seen.embeddings[key] @ made.identity.embeddings[key])
                for who, made in people.items()
            }
            own = cosines.pop(name)
            assert own > pack.encoder.thresholds.far_1e4 + 0.1, (name, own)
            assert max(cosines.values()) < pack.encoder.thresholds.far_1e3, (name, cosines)


def _middle(path, perception):
    """Which face of a news photo is in its middle: LFW's own."""
    from facelock.identity.photos import look

    box = look(path, perception.faces).faces.box
    return int((box[:, 0] + box[:, 2] - 250).abs().argmin())


@needs_assets
@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_real_stranger_is_named(real, count):
    lfw = ASSETS / "photos" / "lfw"
    stranger = lfw / "Hugo_Chavez" / "Hugo_Chavez_0003.jpg"
    photos = [*sorted((lfw / "Tony_Blair").iterdir())[:count], stranger]
    for order in (photos, photos[::-1]):
        made = create_identity(order, real, name="blair")
        named = [finding.photo for finding in made.findings if finding.outcome is Outcome.STRANGER]
        assert named == [stranger.name] and len(made.used) == count


@needs_assets
def test_one_each_of_two_real_people_is_no_identity(real):
    lfw = ASSETS / "photos" / "lfw"
    pair = [lfw / name / f"{name}_0002.jpg" for name in ("Tony_Blair", "Colin_Powell")]
    with pytest.raises(InputError, match="2 people equally often"):
        create_identity(pair, real, name="x")
