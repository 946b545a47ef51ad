"""The renderer: separate parameters, exact landmarks, direct crops, determinism, captions in the vocabulary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from facelock.miniature import data, world
from facelock.miniature.motion import clip_nuisance
from facelock.miniature.parameters import (
    ACTIONS,
    APPEARANCE,
    IDENTITY,
    MOTIONS,
    NUISANCE,
    identity_vector,
    sample_appearance,
    sample_identity,
    sample_nuisance,
    siblings,
    take,
    to_device,
)
from facelock.miniature.vocabulary import caption, random_keep, unknown_words, vocabulary, words


@pytest.fixture(scope="module")
def people():
    g = torch.Generator().manual_seed(1)
    face = sample_identity(4, g)
    return face, sample_appearance(4, g, face["feminine"]), sample_nuisance(4, g)


def test_groups_of_parameters_are_disjoint():
    assert not set(IDENTITY) & set(APPEARANCE)
    assert not set(IDENTITY) & set(NUISANCE)
    assert not set(APPEARANCE) & set(NUISANCE)


def test_a_picture_is_a_picture_and_reproducible(people):
    first, second = world.render(*people, 64), world.render(*people, 64)
    assert first.shape == (4, 3, 64, 64)
    assert first.dtype == torch.float32
    assert 0 <= float(first.min()) < float(first.max()) <= 1
    assert torch.equal(first, second)


def test_it_renders_on_the_device_of_its_parameters(people):
    """The meta device refuses to meet the CPU just as a GPU does: no table or grid may stay behind."""
    face, look, now = (to_device(p, "meta") for p in people)
    assert world.render(face, look, now, 64).device.type == "meta"
    assert all(found.device.type == "meta" for found in world.landmarks(face, now, 64))


def test_each_picture_depends_on_its_own_row_only(people):
    alone = world.render(*(take(p, slice(2, 3)) for p in people), 64)
    assert torch.allclose(world.render(*people, 64)[2:3], alone, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(IDENTITY) - {"feminine", "mole_x", "mole_y"}))
def test_every_identity_parameter_shows(people, name):
    face, look, now = people
    face = {k: v.clone() for k, v in face.items()}
    face["mole"][:] = -1
    look = look | {"beard": torch.full((4,), -1.0), "glasses": torch.full((4,), -1.0)}
    now = now | {"blink": torch.full((4,), -2.0)}
    lo, hi = IDENTITY[name]
    low, high = (world.render(face | {name: torch.full((4,), v)}, look, now, 64) for v in (lo, hi))
    assert float((low - high).abs().amax()) > 0.02


def test_landmarks_sit_on_dark_irises(people):
    """The pupils, painted black, are where the eye landmarks say, when looking straight ahead."""
    face, look, now = people
    now = {k: torch.zeros_like(v) for k, v in now.items()} | {
        "scale": torch.full((4,), 0.62),
        "blink": torch.full((4,), -2.0),
        "ambient": torch.full((4,), 0.9),
        "brow_raise": torch.zeros(4),
        "open": torch.full((4,), -0.5),
    }
    look = look | {"glasses": torch.full((4,), -1.0)}
    frames = world.render(face, look, now, 256)
    points, box = world.landmarks(face, now, 256)
    for i in range(4):
        for x, y in points[i, :2].round().long().tolist():
            assert float(frames[i, :, y, x].max()) < 0.25
        x1, y1, x2, y2 = box[i].tolist()
        assert all(x1 < x < x2 and y1 < y < y2 for x, y in points[i].tolist())


def test_a_crop_is_rendered_directly_where_warping_would_put_it(people):
    face, look, now = people
    frames = world.render(face, look, now, 256)
    points, _ = world.landmarks(face, now, 256)
    matrices = data.fit_similarity(points, data.crop_template())
    direct = world.render_rays(face, look, now, world.crop_rays(matrices, data.CROP, 256))
    line = torch.arange(data.CROP, dtype=torch.float32)
    gy, gx = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([gx, gy], -1).view(1, -1, 2) - matrices[:, None, :, 2]
    grid = torch.einsum("nij,nkj->nki", torch.inverse(matrices[:, :, :2]), grid).view(
        4, data.CROP, data.CROP, 2
    )
    warped = F.grid_sample(frames, (grid + 0.5) / 256 * 2 - 1, "bilinear", "border", False)
    assert float((direct - warped).abs().mean()) < 0.02


def test_siblings_differ_in_a_few_parameters_only(people):
    face = people[0]
    other = siblings(face, torch.Generator().manual_seed(2), changed=5)
    changed = sum((face[k] != other[k]).long() for k in IDENTITY)
    assert changed.tolist() == [5, 5, 5, 5]


def test_identity_splits_do_not_overlap():
    vectors = [identity_vector(data.identities(split, 64)) for split in data.SPLITS]
    for i, a in enumerate(vectors):
        for b in vectors[i + 1 :]:
            assert float(torch.cdist(a, b).min()) > 0.5


def test_identities_of_a_split_do_not_depend_on_how_many_are_drawn():
    assert torch.equal(data.identities("heldout", 3)["jaw"], data.identities("heldout", 100)["jaw"][:3])


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
@pytest.mark.parametrize("action", range(len(ACTIONS)))
def test_motion_is_smooth_alive_and_stationary(people, action, motion):
    base = take(people[2], slice(0, 2))
    g = torch.Generator().manual_seed(3)
    now = clip_nuisance(base, torch.full((2,), action), torch.full((2,), motion), 600, g)
    yaw = now["yaw"].view(2, 600)
    assert float((yaw[:, 1:] - yaw[:, :-1]).abs().max()) < 0.15
    assert float(yaw.abs().max()) < 0.8
    assert float((yaw[:, :300].mean() - yaw[:, 300:].mean()).abs()) < 0.1
    assert float(now["blink"].max()) > 0.8


def half_a_minute(base, action, seed):
    """Of four people who do not turn or nod."""
    g = torch.Generator().manual_seed(seed)
    return clip_nuisance(base, torch.full((4,), action), torch.zeros(4, dtype=torch.long), 360, g)


def test_actions_differ_by_a_pixel_of_the_blueprints_frames(people):
    """In the mouths of one person, in the mean over half a minute: what an eye cannot tell, no prompt can ask for."""
    face, _, now = people
    base = take(now, slice(0, 4)) | {"yaw": torch.zeros(4), "roll": torch.zeros(4)}
    mouths = {}
    for action, name in enumerate(ACTIONS):
        moving = half_a_minute(base, action, 5)
        mouths[name] = {k: moving[k].view(4, 360).clamp(min=-0.3).mean(1) for k in ("open", "smile")}
    points = {}
    for name, at in mouths.items():
        still = base | {k: torch.zeros(4) for k in ("pitch", "tx", "ty")} | at
        points[name] = world.landmarks(face, still, 64)[0][:, 3:]  # corners of the mouth
    lift = (points["silent"] - points["smiling"])[..., 1].mean()
    wider = [(points[n][:, 1] - points[n][:, 0])[:, 0] for n in ("silent", "smiling")]
    assert float(lift) > 0.5
    assert float((wider[1] - wider[0]).min()) > 1.0
    assert float((mouths["laughing"]["open"] - mouths["talking"]["open"]).min()) > 0.3


def test_the_whole_head_smiles_and_laughs(people):
    """Eyes narrow in a smile and more in a laugh, which throws the head back: the mouth alone is a few pixels."""
    base = take(people[2], slice(0, 4))
    eyes, heads = {}, {}
    for action, name in enumerate(ACTIONS):
        moving = half_a_minute(base, action, 5)
        eyes[name] = moving["blink"].view(4, 360).clamp(0, 1).median(1).values
        heads[name] = world.landmarks(
            take(people[0], slice(0, 4)), {k: moving[k].view(4, 360).mean(1) for k in moving}, 64
        )[0][:, :2, 1].mean(1)
    assert float(eyes["silent"].max()) == float(eyes["talking"].max()) == 0
    assert float(eyes["smiling"].min()) > 0.2
    assert float((eyes["laughing"] - eyes["smiling"]).min()) > 0.1
    assert float((heads["smiling"] - heads["laughing"]).min()) > 1.0  # pixels, upwards


def test_the_portraits_that_recognisers_learn_from_reach_what_clips_show(people):
    """Poses apart: a clip's nods go on where a portrait's end."""
    base = take(people[2], slice(0, 4))
    for action in range(len(ACTIONS)):
        now = half_a_minute(base, action, 6)
        for name in ("open", "smile", "blink"):
            low, high = NUISANCE[name]
            assert low <= float(now[name].min()) <= float(now[name].max()) <= high, name


def test_captions_use_known_words_only(people):
    for i in range(4):
        for action in range(len(ACTIONS)):
            text = caption(*people, action, i, i)
            assert unknown_words(text) == []
            assert set(words(text)) <= set(vocabulary())


def test_captions_leave_out_all_but_what_has_no_word_for_its_absence():
    g = torch.Generator().manual_seed(4)
    kept = torch.tensor([random_keep(g) for _ in range(400)]).float().mean(0)
    assert kept[2] == kept[3] == 1  # glasses and beard: a prompt without them means none
    others = torch.cat([kept[:2], kept[4:]])
    assert ((others > 0.75) & (others < 0.95)).all()


def test_unknown_words_are_named_with_the_closest_known_ones():
    assert unknown_words("a woman in a forrest")[0][1][0] == "forest"
    assert unknown_words("a woman with red hair talking in a forest") == []
    assert [w for w, _ in unknown_words("xylophone xylophone")] == ["xylophone"]
