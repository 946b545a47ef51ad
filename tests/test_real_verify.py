"""verify on real footage: the libraries' own numbers, no false alarm, and turned heads told from strangers."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from real import ASSETS, needs_assets

from facelock import api
from facelock.bench import real, real_photos
from facelock.cli import main
from facelock.errors import InputError, ModelError
from facelock.identity import identity_from_picture
from facelock.images import read_picture
from facelock.lanes import ahead
from facelock.ledger import Judge, ReadabilityLimits, measure
from facelock.perception import open_perception
from facelock.report.figures import Series, clip_figures
from facelock.types import LedgerRow, Status, Thresholds, Unreadable
from facelock.video.writing import SegmentWriter, join_segments, read_chunks

YUNET = ASSETS / "detectors" / "face_detection_yunet_2023mar.onnx"
GUIDE = ASSETS / "recognisers" / "arcface_mbf_y1_ms1m.onnx"
JUDGE = ASSETS / "recognisers" / "w600k_mbf_dequant_fp32.onnx"
PAIR = f"{YUNET}+{GUIDE}"
OWN = ASSETS / "videos" / "liveportrait_d19.mp4"
OTHER = ASSETS / "videos" / "liveportrait_d12.mp4"
FRAMES = 60
FPS = 30.0
LIMITS = Thresholds(0.2, 0.3, 0.4)


def first(video, count: int, side: int = 480) -> torch.Tensor:
    frames = torch.cat([chunk.frames for chunk in islice(read_chunks(video, count), 1)])
    return torch.nn.functional.interpolate(frames, (side, side), mode="area")


def write(path, frames: torch.Tensor):
    part = path.with_suffix(".mkv")
    with SegmentWriter(part, size=tuple(frames.shape[-2:]), fps=Fraction(30), crf=10) as segment:
        segment.write(frames)
    join_segments([part], path, fps=Fraction(30))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture
def log_as_it_was():
    """The command line sends the library's log to stderr; the next test wants it back."""
    log = logging.getLogger("facelock")
    before = (log.handlers, log.propagate, log.level)
    yield
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture(scope="module")
def perception():
    return open_perception(PAIR, str(JUDGE))


@pytest.fixture(scope="module")
def picture(folder):
    """The first frame, as a photo."""
    frame = first(OWN, 1)[0]
    path = folder / "who.png"
    Image.fromarray((frame.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def who(picture, perception):
    return identity_from_picture(picture, perception.packs)


@pytest.fixture(scope="module")
def clip(folder):
    """Two seconds of one person, with half a second of another in the middle."""
    frames = first(OWN, FRAMES)
    frames[24:39] = first(OTHER, 15)
    return write(folder / "cut.mp4", frames)


# -- the libraries' own numbers ----------------------------------------------------------------------------


@needs_assets
def test_similarity_per_frame_is_opencvs(perception):
    arm = real.opencv_arm(ASSETS)
    for video in (OWN, ASSETS / "videos" / "retalk_2.mp4"):
        theirs, reference = real.opencv_loop(YUNET, GUIDE, video, 24, None)
        mine = real.ours(arm.same, video, 24, reference)
        assert len(mine) == len(theirs) == 24 and np.isfinite(theirs).all()
        assert np.abs(np.array(mine) - theirs).max() <= 0.005
        assert np.ptp(theirs) > 0.02  # there was something to be equal in


@needs_assets
def test_similarity_per_frame_is_insightfaces():
    arm = real.insightface_arm(ASSETS)
    theirs, reference = arm.plain(OWN, 24, None)
    mine = real.ours(arm.same, OWN, 24, reference)
    assert np.abs(np.array(mine) - theirs).max() <= 0.005


# -- alarms ------------------------------------------------------------------------------------------------


@needs_assets
def test_a_real_person_does_not_drift_and_a_stranger_is_found(clip, picture):
    report = api.verify(clip, picture, packs=PAIR, judge=str(JUDGE), device="cpu")
    figures = report.characters[0].figures
    wrong = {row.frame for row in report.ledger if row.status is Status.WRONG}
    assert wrong == set(range(24, 39))  # all of them, and nobody else
    assert [(span.reason, round(span.start, 2), round(span.end, 2)) for span in figures.spans] == [
        ("wrong", 0.8, 1.3)
    ]
    assert report.outcome == "lost" and report.judge.encoder.startswith("insightface/w600k_mbf")
    assert report.settings["weights"]["judge.encoder"] == report.judge.encoder


@needs_assets
def test_no_alarm_on_a_whole_video(perception):
    judge = Judge(perception.judge)
    who = real.first_face(judge, OWN)
    rows = [row for rows in real.watch(judge, read_chunks(OWN, 24), who) for row in rows]
    figures = clip_figures(Series.from_rows(rows, frames=len(rows)), judge.thresholds, fps=FPS)
    assert figures.statuses.wrong == 0 and figures.readable == len(rows) == 250
    assert figures.slope.low is not None and figures.slope.contains(0.0)
    assert figures.spans == () and 0.4 < figures.minimum < 0.95


@needs_assets
def test_rows_do_not_depend_on_how_a_clip_is_cut(perception, who):
    frames = first(OWN, 12)
    whole = measure(frames, perception.judge, [who])
    parts = [*measure(frames[:5], perception.judge, [who]),
             *measure(frames[5:], perception.judge, [who], start=5, before=frames[4])]  # fmt: skip
    assert list(whole) == parts


@needs_assets
def test_a_turned_head_is_not_a_stranger(perception, who):
    """This person turns by up to 38 degrees: beyond a limit of 30 the rows are ``turned``, and never ``wrong``."""
    video = ASSETS / "videos" / "liveportrait_d12.mp4"
    judge = Judge(perception.faces, ReadabilityLimits(maximum_yaw=30.0))
    person = real.first_face(judge, video)
    rows = [row for rows in real.watch(judge, read_chunks(video, 24), person) for row in rows]
    turned = [row for row in rows if row.unreadable is Unreadable.TURNED]
    assert len(turned) >= 5 and all(abs(row.yaw) > 30 or abs(row.pitch) > 60 for row in turned)
    assert not any(row.status is Status.WRONG for row in rows)


# -- what is told apart (no assets) ------------------------------------------------------------------------


def row(frame: int, similarity: float = 0.6, why: Unreadable | None = None, status: Status = Status.VERIFIED):
    status = Status.UNREADABLE if why else status
    return LedgerRow(
        frame, "who", status, similarity, yaw=0.0, pitch=0.0, face_height=90.0, sharpness=50.0, unreadable=why
    )


def figures_of(rows):
    return clip_figures(Series.from_rows(rows, frames=len(rows)), LIMITS, fps=10.0)


def test_spans_tell_the_reasons_apart():
    rows = [row(frame) for frame in range(120)]
    for begin, why in (
        (10, Unreadable.TURNED),
        (30, Unreadable.SMALL),
        (50, Unreadable.BLURRED),
        (70, Unreadable.CROPPED),
    ):
        for frame in range(begin, begin + 8):
            rows[frame] = row(frame, 0.05, why)
    for frame in range(90, 97):
        rows[frame] = row(frame, 0.05, status=Status.WRONG)
    for frame in range(105, 111):
        rows[frame] = LedgerRow(frame, "who", Status.ABSENT)
    rows[3] = row(3, 0.05, Unreadable.TURNED)  # too short for a span
    found = [(span.reason, span.start, span.end) for span in figures_of(rows).spans]
    assert found == [
        ("turned", 1.0, 1.8), ("small", 3.0, 3.8), ("blurred", 5.0, 5.8), ("cropped", 7.0, 7.8),
        ("wrong", 9.0, 9.7), ("absent", 10.5, 11.1),
    ]  # fmt: skip


def test_a_profile_counts_neither_in_drift_nor_in_slope():
    steady = [row(frame, 0.6 + 0.01 * np.sin(frame)) for frame in range(300)]
    turned = [*steady[:240], *(row(frame, 0.02, Unreadable.TURNED) for frame in range(240, 300))]
    short, whole = figures_of(steady[:240]), figures_of(turned)
    assert whole.drift == short.drift and whole.slope == short.slope and whole.mean == short.mean
    assert whole.wrong_spans == () and whole.coverage == pytest.approx(0.8)
    assert [span.reason for span in whole.spans] == ["turned"]
    lost = figures_of([*steady[:240], *(row(frame, 0.02, status=Status.WRONG) for frame in range(240, 300))])
    assert lost.drift.value > 0.3  # the same similarity in a readable face does count


def test_old_ledgers_without_a_reason_are_unreadable():
    rows = [row(frame) for frame in range(20)]
    rows[5:12] = [LedgerRow(frame, "who", Status.UNREADABLE, 0.1) for frame in range(5, 12)]
    assert [span.reason for span in figures_of(rows).spans] == ["unreadable"]


# -- names, identities and errors --------------------------------------------------------------------------


@needs_assets
def test_an_identity_is_measured_by_what_it_was_made_with(clip, who, perception):
    carried = replace(who, perception=perception.names)
    report = api.verify(clip, carried)
    assert report.judge.encoder == perception.judge.encoder.id
    with pytest.raises(InputError, match=r"no embedding by miniature/judge@.*--faces and --judge"):
        api.verify(clip, who)
    with pytest.raises(InputError, match="no embedding by mobileface-id-v2@"):
        api.verify(clip, carried, judge=str(ASSETS / "recognisers" / "mobileface_id_v2.onnx"))
    with pytest.raises(InputError, match="different face packs"):
        api.verify(clip, [carried, replace(carried, perception=(PAIR, PAIR))])


@needs_assets
def test_the_command_line(clip, picture, folder, capsys, monkeypatch, log_as_it_was):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("INSIGHTFACE_HOME", str(folder))
    given = [
        "verify",
        str(clip),
        "--face",
        str(picture),
        "--faces",
        PAIR,
        "--judge",
        str(JUDGE),
        "-o",
        "seen",
    ]
    with pytest.raises(SystemExit) as left:
        main([*given, "--quiet", "--target", "0.7"])
    assert left.value.code == 0
    stored = json.loads((folder / "seen.report.json").read_text())
    assert {span["reason"] for span in stored["characters"][0]["figures"]["spans"]} == {"wrong"}
    with pytest.raises(SystemExit) as left:
        main([*given, "--quiet", "--target", "0.99"])
    assert left.value.code == 4
    for spec, code in (("insightface:buffalo_l", 3), ("nonsense", 2)):
        with pytest.raises(SystemExit) as left:
            main([*given[:4], "--faces", spec])
        assert left.value.code == code
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("facelock: error: ") and spec.removeprefix("insightface:") in said


def test_bench_real_without_assets_is_one_sentence(tmp_path, capsys, log_as_it_was):
    with pytest.raises(SystemExit) as left:
        main(["bench", "real", "--assets", str(tmp_path), "--quiet"])
    assert left.value.code == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("facelock: error: ") and "--assets" in said


@needs_assets
def test_photos_of_the_same_person_are_told_from_others():
    pack = real_photos.open_pack(ASSETS, JUDGE)
    people = {"df_img1", "Tony_Blair", "Ariel_Sharon", "obama"}
    chosen = [(person, path) for person, path in real_photos.photos(ASSETS) if person in people][:36]
    crops, names = [], []
    for person, path in chosen:
        frames = read_picture(path).frames
        faces = real_photos.principal(pack.detect(frames), frames)
        crops.append(pack.crops(frames, faces)[0])
        names.append(person)
    seen = real_photos.Seen(torch.stack(crops), tuple(names), tuple(path.name for _, path in chosen))
    figures = real_photos.separation(pack.encoder, seen)
    assert figures["auc"] > 0.999 and figures["same"]["p5"] > figures["different"]["p95"] + 0.1
    assert figures["below_far_1e2"] < 0.01
    measured = figures["thresholds"]
    assert measured["far_1e2"] <= measured["far_1e3"] <= measured["far_1e4"]
    assert abs(measured["far_1e3"] - pack.encoder.thresholds.far_1e3) < 0.06


def test_the_extrapolated_threshold_is_that_of_a_normal_tail():
    normal = np.random.default_rng(0).normal(0.05, 0.08, 4000)
    measured = real_photos.accept_thresholds(normal)
    assert measured["far_1e2"] == pytest.approx(0.05 + 0.08 * 2.326, abs=0.02)
    assert measured["far_1e4"] >= 0.05 + 0.08 * 3.719 - 0.02
    assert real_photos.area_under_curve(np.array([0.5, 0.2]), np.array([0.1, 0.3])) == 0.75


def test_reading_ahead_keeps_order_and_raises_what_was_raised():
    def items():
        yield 1
        yield 2
        raise ModelError("broken. Mend it.")

    got = []
    with pytest.raises(ModelError, match="broken"):
        got.extend(ahead(items()))
    assert list(ahead(iter([3, 1, 2]))) == [3, 1, 2]
    assert next(ahead(iter([7]))) == 7
