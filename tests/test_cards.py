"""Model cards: curves, side-by-side pictures, and an exam that gives bad answers bad marks."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from facelock.assets import asset_dir
from facelock.miniature import cards, curves, data, exam, heldout, sheets, siblings
from facelock.miniature.cards import CARDS, Findings
from facelock.miniature.recognition import FacePool
from facelock.miniature.train import trained
from facelock.miniature.workshop import ORDER

OLD = {"steps": 300, "last": {"loss": 0.5}}
NEW = {
    "steps": 1200,
    "last": {"loss": 0.25},
    "device": "NVIDIA H100",
    "seconds": 61.7,
    "samples": 76800,
    "curve": [[100 * i, {"loss": 1 / i, "psnr": 20.0 + i}] for i in range(1, 13)],
}


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


# ---- curves


def test_a_thinned_curve_keeps_the_end_and_the_means():
    history = [{"step": 100.0 * i, "loss": float(i)} for i in range(1, 126)]
    curve = curves.thinned(history)
    assert len(curve) <= curves.POINTS and curve[-1][0] == 12500
    assert curve[0] == [300, {"loss": 2.0}]
    assert curves.thinned([]) == [] and curves.thinned(history[:2])[1] == [200, {"loss": 2.0}]


def test_a_sitting_tells_what_its_state_knows():
    rows = [{"step": 100, "loss": 0.123456}, {"step": 200, "loss": 0.1}]
    meta = {"step": "230", "history": json.dumps(rows), "origin": "[]"}
    kept = curves.sitting(meta | {"spent": "12.34", "device": "NVIDIA H100", "samples": "920"})
    curve = [[100, {"loss": 0.1235}], [200, {"loss": 0.1}]]
    assert kept == {
        "steps": 230,
        "last": {"loss": 0.1},
        "device": "NVIDIA H100",
        "seconds": 12.3,
        "samples": 920,
        "curve": curve,
    }
    assert curves.sitting(meta) == {"steps": 230, "last": {"loss": 0.1}, "curve": curve}
    assert curves.sitting(meta | {"history": "[]"}) == {"steps": 230, "last": {}}


def test_a_curve_is_drawn_with_a_panel_per_figure_and_small():
    png = curves.draw([OLD, NEW])
    assert png is not None and len(png) < 30_000
    assert opened(png).size == (curves.WIDTH, 2 * curves.PANEL)


def test_a_curve_that_falls_is_drawn_falling_and_after_the_sitting_without_one():
    png = curves.draw([OLD, NEW])
    assert png is not None
    image = opened(png)
    blue = [
        (x, y)
        for x in range(curves.WIDTH)
        for y in range(curves.PANEL)
        if (p := image.getpixel((x, y)))[2] > p[0] + 80
    ]
    left, right = min(blue)[0], max(blue)[0]
    assert min(y for x, y in blue if x == left) < min(y for x, y in blue if x == right)
    width = curves.WIDTH - curves.LEFT - curves.RIGHT
    assert left == pytest.approx(curves.LEFT + width * 400 / 1500, abs=3)


@pytest.mark.parametrize("sittings", [[], [OLD], [NEW | {"curve": NEW["curve"][:1]}], [OLD | {"curve": []}]])
def test_without_two_points_nothing_is_drawn(sittings):
    assert curves.draw(sittings) is None


def test_a_flat_or_broken_curve_is_drawn_all_the_same():
    flat = {"steps": 3, "curve": [[1, {"a": 0.0}], [2, {"a": 0.0, "b": float("nan")}], [3, {"a": 0.0}]]}
    png = curves.draw([flat])
    assert png is not None and opened(png).size[1] == curves.PANEL


# ---- pictures


def test_a_sheet_keeps_to_its_limit_and_every_picture_to_its_place():
    rows = {"one": torch.zeros(3, 3, 20, 20), "two": torch.ones(3, 3, 20, 20)}
    rows["two"][1, 1:] = 0
    image = opened(sheets.sheet(rows, zoom=2))
    step = 40 + sheets.GAP
    assert image.size == (sheets.LABEL + 3 * step, 2 * step)
    assert image.getpixel((sheets.LABEL + 20, 20)) == (0, 0, 0)
    assert image.getpixel((sheets.LABEL + step + 20, step + 20)) == (255, 0, 0)
    noise = {"noise": torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))}
    full = len(sheets.sheet(noise))
    assert len(sheets.sheet(noise, limit=full // 2)) <= full // 2
    with pytest.raises(ValueError, match="do not fit"):
        sheets.sheet(noise, limit=100)


# ---- the exam


@pytest.fixture(scope="module")
def scenes() -> heldout.Scenes:
    return heldout.scenes(4)


@pytest.fixture(scope="module")
def truth(scenes) -> exam.Truth:
    return exam.truth_of(scenes.stranger)


def test_a_crop_is_the_clips_frame_and_a_stranger_shares_its_moment(scenes):
    crop, cut = scenes.shown.render(), scenes.cut(scenes.clips)
    assert exam.decibels((crop - cut).square().mean(1)) > 20
    assert exam.decibels((crop - cut.roll(1, 0)).square().mean(1)) < 15
    assert scenes.shown.now is scenes.stranger.now and scenes.shown.look is scenes.stranger.look
    moved = (scenes.shown.landmarks() - scenes.stranger.landmarks()).norm(dim=-1)
    assert 0.5 < float(moved.mean()) < 20
    assert not set(scenes.shown.face["jaw"].tolist()) & set(scenes.stranger.face["jaw"].tolist())


def test_a_box_is_rendered_as_it_is_in_the_whole_picture(truth):
    part = truth.faces.render(box=exam.EYES)
    assert torch.allclose(part, heldout.cut_box(truth.picture, exam.EYES), atol=1e-5)


def test_a_smaller_crop_shows_the_same_place(truth):
    small = truth.faces.render(64)
    same = exam.decibels((small - F.avg_pool2d(truth.picture, 2)).square().mean(1))
    aside = exam.decibels((small - F.avg_pool2d(truth.picture.roll((1, 1), (2, 3)), 2)).square().mean(1))
    assert same > 30 and same > aside + 3


def test_finer_drawing_and_the_right_place_count(truth):
    coarse, fine, aside = exam.bounds(truth).values()
    assert fine > 45 and 20 < coarse < fine and aside < coarse


def test_marks_fall_with_what_is_wrong(truth, scenes):
    perfect = exam.likeness(truth.picture, truth)
    other = exam.likeness(scenes.shown.render(), truth)
    assert perfect["PSNR of the face, dB"] == float("inf") and other["PSNR of the face, dB"] < 25
    rim = truth.picture + 0.2 * truth.ring[:, None]
    marks = exam.likeness(rim, truth)
    assert marks["PSNR of the face, dB"] == float("inf") and marks["the latter ÷ the former"] > 100
    inside = exam.likeness(truth.picture + 0.2 * truth.face[:, None], truth)
    assert inside["the latter ÷ the former"] == 0


def test_a_face_is_where_no_hair_and_no_rim_is(truth):
    assert 0.2 < float(truth.face.mean()) < 0.6 and 0.05 < float(truth.ring.mean()) < 0.4
    assert not bool((truth.face * truth.ring).any())
    drawn, coverage = truth.faces.draw_face()
    assert float(coverage[:, 0][truth.face > 0].min()) > 0.99
    assert float(((drawn - truth.picture).abs().amax(1) * truth.face).max()) < 0.02


@pytest.mark.parametrize("probe", exam.PROBES, ids=lambda p: p.parameter)
def test_a_probe_reads_what_a_render_shows_even_two_pixels_aside(truth, probe):
    steps = [probe.values[0], probe.values[-1]]
    renders = exam.probe_renders(truth.faces, probe)
    for value in steps:
        faces = truth.faces.changed("glasses", -1.0).changed("blink", -1.0).changed(probe.parameter, value)
        fair = renders if probe.parameter == "glasses" else exam.probe_renders(faces, probe)
        shifted = faces.render().roll((2, -1), (2, 3))
        read = exam.reading(shifted, fair, probe)
        assert float((read == value).float().mean()) >= 0.75, (probe.parameter, read)


def test_agreement_is_of_the_frames_own_values(truth):
    glasses, gaze = (next(p for p in exam.PROBES if p.parameter == name) for name in ("glasses", "gaze_x"))
    right = torch.where(truth.faces.look["glasses"] > 0, 0.5, -0.5)
    assert (
        exam.agreement(right, truth.faces, glasses) == 1 and exam.agreement(-right, truth.faces, glasses) == 0
    )
    assert exam.agreement(truth.faces.now["gaze_x"], truth.faces, gaze) == pytest.approx(1)
    assert exam.agreement(-truth.faces.now["gaze_x"], truth.faces, gaze) == pytest.approx(-1)


def test_correlation_knows_of_what_was_not_found():
    a = torch.tensor([1.0, 2.0, float("nan"), 4.0])
    assert exam.correlation(a, torch.tensor([2.0, 4.0, 9.0, 8.0])) == pytest.approx(1)
    assert exam.correlation(a, torch.ones(4)) != exam.correlation(a, torch.ones(4))


def test_pose_is_read_off_the_picture(truth):
    class Sees:
        def __init__(self, points):
            self.points = points

        def detect(self, pictures):
            from facelock.types import Faces

            n = len(pictures)
            frame = torch.arange(1, n).repeat_interleave(2)  # none in the first, two in each other
            points = self.points[frame] + exam.MARGIN
            points[0::2] += 50
            score = torch.tensor([0.6, 0.9]).repeat(n - 1)
            return Faces(frame, torch.zeros(len(frame), 4), points, score)

    true = truth.faces.landmarks()
    marks = exam.pose(truth.picture, truth, Sees(true))
    assert marks["landmarks found beside the true ones, % of the eye distance"] == pytest.approx(0, abs=1e-3)
    assert marks["turn of the head: correlation with the frame's"] == pytest.approx(1)
    mirrored = true.clone()
    mirrored[:, 2] = 2 * true[:, :2].mean(1) - true[:, 2]
    assert (
        exam.pose(truth.picture, truth, Sees(mirrored))["turn of the head: correlation with the frame's"] < 0
    )


def test_resemblance_is_a_share_of_the_true_renders(truth, scenes):
    def embed(crops):
        return F.normalize(crops.flatten(1) - 0.5)

    args = (truth.picture, truth.picture, embed, "judge")
    assert exam.resemblance(truth.picture, *args)["judge: share of the true render's"] == pytest.approx(1)
    assert exam.resemblance(1 - truth.picture, *args)["judge: cosine to the reference"] == pytest.approx(-1)
    assert exam.resemblance(scenes.shown.render(), *args)["judge: share of the true render's"] < 1


@torch.no_grad()
def test_aligner_and_restorer_are_examined_on_all_that_they_meet(scenes, monkeypatch):
    asked = []

    def idle(part, crops, identities):
        asked.append((part, identities))
        return crops

    compared, whole = [], exam.probe_renders
    monkeypatch.setattr(cards, "_answer", idle)
    monkeypatch.setattr(exam, "probe_renders", lambda faces, p: (compared.append(faces), whole(faces, p))[1])
    two = heldout.Scenes(scenes.clips[:2], *(_first(f, 2) for f in (scenes.shown, scenes.stranger)))
    found = Findings()
    for part, same in (("aligner", False), ("restorer", True)):
        compared.clear()
        cards._swapper(part, two, two.clips, found, same=same)
        # an input shows whoever is in the frame, an answer the one who is wanted
        assert {id(f) for f in compared} == {id(two.shown), id(two.shown if same else two.stranger)}
    swap, restore = found.figures["aligner"], found.figures["restorer"]
    assert swap["PSNR of the face, dB | clean, out"] == swap["PSNR of the face, dB | clean, in"] < 30
    assert restore["PSNR of the face, dB | clean, out"] == float("inf")
    assert restore["judge: share of the true render's | clean, out"] == pytest.approx(1)
    # an idle aligner shows the stranger: what the recogniser says of it, against the wanted one's reference
    assert swap["recogniser: share of the true render's | clean, out"] < 0.6
    assert all(part in ("aligner", "restorer") and e.shape == (2, 512) for part, e in asked)
    assert opened(found.sheets["aligner_faces"]).size == opened(found.sheets["restorer_faces"]).size


def _first(faces: heldout.Faces, count: int) -> heldout.Faces:
    groups = ({k: v[:count] for k, v in g.items()} for g in (faces.face, faces.look, faces.now))
    return heldout.Faces(*groups, faces.matrices[:count])


# ---- siblings


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> FacePool:
    root, whole = tmp_path_factory.mktemp("pool"), dict(data.KINDS)
    data.KINDS["heldout"] = lambda i, dev: data.render_faces("heldout", i, 10, 8, data.CROP, dev)
    try:
        data.build("heldout", 1, root)
    finally:
        data.KINDS.update(whole)
    return FacePool("heldout", root)


def test_siblings_differ_from_their_person_in_as_much_as_was_asked(monkeypatch):
    seen = []
    whole = siblings.world.render_rays
    monkeypatch.setattr(siblings.world, "render_rays", lambda *a: (seen.append(a[0]), whole(*a))[1])
    crops, points, who = siblings.render_siblings(5, 3)
    assert crops.shape == (10, 3, 72, 72) and who.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    own = data.identities("heldout", 5)
    changed = sum((seen[0][k][::2] != own[k]).int() for k in own)
    assert changed.tolist() == [3] * 5
    assert bool(((points > 0) & (points < 72)).all())


def test_sibling_scores_pair_a_sibling_with_its_own_person_only():
    def embed(crops):
        return F.one_hot(torch.tensor([0, 0, 1, 1]), 2).float()

    known = torch.eye(2).repeat(3, 1), torch.tensor([0, 1] * 3)
    rendered = torch.rand(4, 3, 72, 72), torch.rand(4, 5, 2) * 72, torch.tensor([0, 0, 1, 1])
    scores = siblings.sibling_scores(embed, known, rendered, blur=False)
    assert scores.shape == (12,) and bool((scores == 1).all())
    assert siblings.same_scores(known).tolist() == [1.0] * 6


def test_the_fewer_parameters_differ_the_nearer_a_sibling(pool):
    def embed(crops):
        return F.normalize(F.avg_pool2d(crops, 7).flatten(1) - 0.5)

    figures = siblings.recognition_figures(embed, pool, 8, count=80)
    assert {k.rsplit(" | ", 1)[1] for k in figures} == {"clean", "degraded"}
    shares = [v for k, v in figures.items() if k.endswith("above far_1e3 | clean")]
    assert len(shares) == len(siblings.CHANGED) and all(0 <= v <= 1 for v in shares)
    assert figures["same | clean"] > figures["different | clean"]


# ---- the cards


def test_every_picture_that_a_card_links_is_there(tmp_path):
    for name in CARDS:
        (tmp_path / "miniature" / name).parent.mkdir(parents=True, exist_ok=True)
    found = Findings(
        {"aligner": {"bound": 2.5, "PSNR | in": 1.0, "PSNR | out": float("inf"), "gaze | out": 0.5}},
        {"aligner_faces": sheets.sheet({"a": torch.zeros(1, 3, 4, 4)})},
    )
    cards.write(tmp_path, {"reader": [OLD, NEW], "judge": [NEW], "vae": [OLD]}, found)
    links = set()
    for name, card in CARDS.items():
        path = tmp_path / "miniature" / name
        text = path.read_text()
        assert card.limits in text and "two CPU cores" not in text
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
            assert (path.parent / target).is_file()
            links.add((name, Path(target).name))
    assert links == {
        ("aligner.md", "reader.png"),
        ("aligner.md", "aligner_faces.png"),
        ("judge/README.md", "judge.png"),
    }


def test_a_card_says_what_a_part_went_through_and_what_it_can_do(tmp_path):
    for name in CARDS:
        (tmp_path / "miniature" / name).parent.mkdir(parents=True, exist_ok=True)
    figures = {"bound": 2.5, "PSNR | in": 1.0, "PSNR | out": float("inf"), "gaze | out": 0.51234}
    cards.write(tmp_path, {"reader": [OLD, NEW]}, Findings({"aligner": figures}))
    text = (tmp_path / "miniature" / "aligner.md").read_text()
    assert (
        "- `reader`: 300 steps, then from those weights 1200 steps (76,800 samples) in 62 s on NVIDIA H100; "
        "last logged: loss 0.25." in text
    )
    assert "| bound | 2.5 |" in text
    assert "| aligner | in | out |" in text
    assert "| PSNR | 1 | – |" in text and "| gaze | – | 0.5123 |" in text


def test_a_card_says_when_its_curve_is_of_the_same_training_run_again(tmp_path):
    for name in CARDS:
        (tmp_path / "miniature" / name).parent.mkdir(parents=True, exist_ok=True)
    cards.write(tmp_path, {"upscaler": [NEW | {"repeated": True}], "judge": [NEW]}, Findings())
    again = "curve was kept: the one below is of the same command, run again"
    assert again in (tmp_path / "miniature" / "upscaler.md").read_text()
    assert again not in (tmp_path / "miniature" / "judge" / "README.md").read_text()


def test_every_part_that_ships_has_a_curve():
    sittings = trained(asset_dir("models"))
    assert {part for part in ORDER if curves.draw(sittings.get(part, []))} == {*ORDER}


def test_parts_and_sheets_of_the_cards_exist():
    told = [part for card in CARDS.values() for part in card.parts]
    assert sorted(told) == sorted(ORDER)


def test_changing_a_parameter_leaves_the_others(scenes):
    changed = scenes.shown.changed("open", 0.5)
    assert changed.now["open"].tolist() == [0.5] * 4 and changed.now["yaw"] is scenes.shown.now["yaw"]
    assert replace(changed, now=scenes.shown.now) == scenes.shown


@torch.no_grad()
def test_what_the_blueprints_autoencoder_leaves_is_measured_on_the_one_that_ships():
    clips = torch.rand(1, 17, 3, 64, 64)
    left = cards._decoded(clips)
    assert left.shape == clips.shape and 0 < float((left - clips).abs().mean()) < 0.5
