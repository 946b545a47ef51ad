"""Figures: what is put into a curve comes back out, with intervals that are honest about it."""

from __future__ import annotations

import numpy as np
import pytest

from facelock.bootstrap import over_clips
from facelock.errors import FaceLockError
from facelock.report.figures import (
    Series,
    ceiling_figure,
    clip_figures,
    corrected_slope,
    drift,
    longest_below,
    mean_similarity,
    pool,
    slope,
    spans,
)
from facelock.types import LedgerRow, Status, Thresholds

FPS = 12.0
THRESHOLDS = Thresholds(far_1e2=0.2, far_1e3=0.3, far_1e4=0.4)


def frame_noise(count: int, rng: np.random.Generator, sd: float = 0.06, fps: float = FPS) -> np.ndarray:
    """Noise as real frames have it (evidence.md): SD .06, correlation over 2 s."""
    keep = np.exp(-1 / (2 * fps))
    steps = rng.normal(size=count) * sd * np.sqrt(1 - keep**2)
    steps[0] = rng.normal() * sd
    noise = np.empty(count)
    state = 0.0
    for frame, step in enumerate(steps):
        state = keep * state + step if frame else step
        noise[frame] = state
    return noise


def curve(seconds: float, per_minute: float = 0.0) -> np.ndarray:
    time = np.arange(int(seconds * FPS)) / FPS / 60
    return 0.8 + per_minute * time


def rows_of(similarity: np.ndarray, *, start: int = 0, name: str = "maria") -> list[LedgerRow]:
    """Rows as the judge would write them; NaN is a frame without a face."""
    rows = []
    for frame, value in enumerate(similarity.tolist(), start):
        if np.isnan(value):
            rows.append(LedgerRow(frame, name, Status.ABSENT))
            continue
        status = Status.VERIFIED if value >= 0.4 else Status.WEAK if value >= 0.2 else Status.WRONG
        rows.append(LedgerRow(frame, name, status, similarity=value, yaw=0.0, pitch=0.0, face_height=60.0))
    return rows


def figures_of(similarity: np.ndarray, **options: float):
    series = Series.from_rows(rows_of(similarity), frames=len(similarity))
    return clip_figures(series, THRESHOLDS, fps=FPS, **options)


def test_a_known_drift_without_noise_comes_back_exactly():
    falling = curve(60, -0.1)
    assert slope(falling, fps=FPS).value == pytest.approx(-0.1, abs=1e-9)
    # the middles of the first and the last 15 % lie 85 % of the clip apart
    assert drift(falling, fps=FPS).value == pytest.approx(0.1 * 0.85, abs=1e-3)
    assert mean_similarity(falling, fps=FPS).value == pytest.approx(falling.mean())


@pytest.mark.parametrize("seconds", [10, 60])
def test_intervals_cover_a_known_drift_in_noise(seconds: int):
    rng = np.random.default_rng(3)
    per_minute, covered = -0.08, np.zeros(2)
    clips = 60
    for clip in range(clips):
        noisy = curve(seconds, per_minute) + frame_noise(int(seconds * FPS), rng)
        change = -per_minute * 0.85 * seconds / 60
        covered += [
            slope(noisy, fps=FPS, seed=clip).contains(per_minute),
            drift(noisy, fps=FPS, seed=clip).contains(change),
        ]
    assert (covered / clips >= 0.87).all(), covered / clips


def test_a_real_drift_is_not_mistaken_for_none():
    rng = np.random.default_rng(5)
    found = [slope(curve(60, -0.3) + frame_noise(720, rng), fps=FPS) for _ in range(20)]
    assert sum(not each.contains(0.0) and each.value < 0 for each in found) >= 19


def test_forty_minutes_of_clips_state_sixteen_thousandths():
    rng = np.random.default_rng(7)
    pooled = pool([figures_of(curve(60) + frame_noise(720, rng)) for _ in range(40)])
    assert pooled.slope.contains(0.0)
    half = (pooled.slope.high - pooled.slope.low) / 2
    assert half == pytest.approx(0.016, rel=0.35)
    assert pooled.clips == 40
    assert pooled.coverage.value == 1.0


def test_intervals_are_seeded():
    noisy = curve(60) + frame_noise(720, np.random.default_rng(0))
    assert slope(noisy, fps=FPS, seed=4) == slope(noisy, fps=FPS, seed=4)
    assert slope(noisy, fps=FPS, seed=4) != slope(noisy, fps=FPS, seed=5)


def test_corrected_slope_takes_out_what_the_pose_does():
    rng = np.random.default_rng(1)
    count = 1440
    yaw = np.linspace(0, 30, count) + 5 * np.sin(np.arange(count) / 40)
    similarity = 0.8 - 0.01 * yaw + rng.normal(size=count) * 0.005
    covariates = np.stack([yaw, np.full(count, 3.0)], 1)
    assert slope(similarity, fps=FPS).value < -0.1
    fair = corrected_slope(similarity, covariates, fps=FPS)
    assert fair.value == pytest.approx(0.0, abs=0.005)
    assert fair.contains(0.0)


def test_corrected_slope_says_when_pose_and_time_are_one():
    time = np.linspace(0, 1, 240)
    result = corrected_slope(0.8 - 0.1 * time, time[:, None], fps=FPS)
    assert result.value is None
    assert "time" in result.reason


def test_shares_and_runs_below_the_thresholds():
    similarity = np.full(120, 0.8)
    similarity[24:36] = 0.35  # one second below FAR 1e-4 alone
    similarity[60:66] = 0.1
    similarity[62] = np.nan  # an unreadable frame does not end the run
    figures = figures_of(similarity)
    assert figures.longest_below.far_1e4 == pytest.approx(1.0)
    assert figures.longest_below.far_1e2 == pytest.approx(0.5)
    assert figures.share_above.far_1e4 == pytest.approx(1 - 17 / 119)
    assert figures.share_above.far_1e2 == pytest.approx(1 - 5 / 119)
    assert figures.minimum == pytest.approx(0.1)
    assert figures.coverage == pytest.approx(119 / 120)
    assert figures.statuses.absent == 1
    assert sum(figures.statuses.model_dump().values()) == 120


def test_a_long_absence_ends_a_run():
    similarity = np.array([0.1] * 6 + [np.nan] * 24 + [0.1] * 3)
    assert longest_below(similarity, 0.2, fps=FPS) == pytest.approx(0.5)
    assert longest_below(np.full(5, np.nan), 0.2, fps=FPS) is None


@pytest.mark.parametrize("fps", [12.0, 24.0])
def test_a_wrong_person_of_half_a_second_is_found(fps: float):
    rng = np.random.default_rng(11)
    found = 0
    for _ in range(200):
        similarity = 0.7 + frame_noise(int(20 * fps), rng, fps=fps)
        begin = int(rng.integers(0, len(similarity) - int(fps / 2)))
        similarity[begin : begin + round(fps / 2)] = 0.03 + 0.08 * rng.normal(size=round(fps / 2))
        result = spans(similarity < 0.2, np.ones(len(similarity), dtype=bool), fps=fps)
        overlapping = [each for each in result if each.start < begin / fps + 0.5 and each.end > begin / fps]
        found += bool(overlapping)
    assert found / 200 >= 0.99


def test_ten_minutes_of_the_right_person_raise_no_alarm():
    rng = np.random.default_rng(12)
    similarity = 0.45 + frame_noise(int(600 * FPS), rng)  # poor, with single frames below the threshold
    assert (similarity < 0.3).sum() > 5
    assert len(spans(similarity < 0.2, np.ones(len(similarity), dtype=bool), fps=FPS)) <= 1


def test_unreadable_frames_are_nobody():
    assert spans(np.zeros(60, dtype=bool), np.zeros(60, dtype=bool), fps=FPS) == ()
    assert spans(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), fps=FPS) == ()


def test_copy_paste_alarm():
    assert ceiling_figure(0.8, 0.82).copy_paste is False
    assert ceiling_figure(0.9, 0.82).copy_paste is True
    assert ceiling_figure(0.9, None).copy_paste is None
    assert figures_of(np.full(120, 0.8), ceiling=0.85).ceiling.fraction == pytest.approx(0.8 / 0.85)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_very_short_clips_give_null_with_a_reason(count: int):
    figures = figures_of(np.full(count, 0.8))
    assert figures.slope.value is None
    assert figures.slope.reason
    assert figures.drift.low is None
    assert figures.drift.reason
    assert (figures.mean.value is None) == (count == 0)


def test_a_clip_without_a_face_gives_null_with_a_reason():
    figures = figures_of(np.full(240, np.nan))
    assert figures.coverage == 0.0
    assert figures.mean.value is None and figures.minimum is None and figures.share_above.far_1e3 is None
    assert figures.reason == "no readable face in the clip"
    assert pool([figures]).mean.value is None


def test_unreadable_similarities_do_not_count_but_their_rows_do():
    rows = [
        LedgerRow(0, "m", Status.VERIFIED, similarity=0.9),
        LedgerRow(1, "m", Status.UNREADABLE, similarity=0.1),
    ]
    figures = clip_figures(Series.from_rows(rows, frames=2), THRESHOLDS, fps=FPS)
    assert figures.mean.value == pytest.approx(0.9)
    assert figures.coverage == 0.5


@pytest.mark.parametrize("broken", ["missing", "twice", "outside"])
def test_a_lost_row_is_an_error(broken: str):
    rows = rows_of(np.full(4, 0.8))
    rows = {
        "missing": rows[:2] + rows[3:],
        "twice": rows[:3] + rows[2:3],
        "outside": rows_of(np.full(4, 0.8), start=1),
    }[broken]
    with pytest.raises(FaceLockError, match="rows"):
        Series.from_rows(rows, frames=4)


def test_over_clips_says_what_is_missing():
    assert over_clips([]).value is None
    assert over_clips([0.5]).low is None
    result = over_clips([0.1, None, 0.3])
    assert result.value == pytest.approx(0.2)
    assert "1 of 3" in result.reason
    assert result.contains(0.2)


def test_over_clips_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = [over_clips(rng.normal(0.5, 0.1, 12).tolist(), seed=seed).contains(0.5) for seed in range(200)]
    assert np.mean(covered) >= 0.92
