"""Stillness, flicker, honesty: each raises its alarm when, and only when, it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from facelock.report.comparison import flicker, honesty, motion_signals, stillness
from facelock.report.figures import Series
from facelock.types import LedgerRow, Status

FPS = 12.0


def lively(frames: int = 120, motion: float = 1.0, absent: tuple[int, ...] = ()) -> Series:
    """A face that turns, nods, talks and blinks; ``motion`` scales all of it."""
    rows = []
    for frame in range(frames):
        if frame in absent:
            rows.append(LedgerRow(frame, "m", Status.ABSENT))
            continue
        swing = motion * np.sin(frame / 9)
        shift = np.array([8 * swing, 3 * motion * np.cos(frame / 7)])
        points = np.array([(100, 100), (140, 100), (120, 120), (105, 140), (135, 140)]) + shift
        rows.append(
            LedgerRow(
                frame,
                "m",
                Status.VERIFIED,
                similarity=0.8 + 0.01 * (-1) ** frame,
                yaw=15 * swing,
                pitch=6 * swing,
                roll=4 * swing,
                mouth=0.9 + 0.1 * motion * np.sin(frame / 3),
                eyes=0.7 + 0.1 * motion * np.sin(frame / 11),
                landmarks=tuple((float(x), float(y)) for x, y in points),
                residual=0.02,
            )
        )
    return Series.from_rows(rows, frames=frames)


def compare(ours: Series, theirs: Series):
    return stillness(motion_signals(ours), motion_signals(theirs), fps=FPS)


def test_a_clip_is_as_lively_as_itself():
    result = compare(lively(), lively())
    assert result.value == pytest.approx(1.0)
    assert set(result.ratios) == {"yaw", "pitch", "roll", "mouth", "eyes", "landmarks"}
    assert result.frames == 120


def test_a_frozen_face_is_noticed():
    result = compare(lively(motion=0.7), lively())
    assert result.value == pytest.approx(0.49, abs=0.03)


def test_a_frozen_mouth_alone_is_seen_in_its_ratio():
    still = replace(lively(), mouth=np.full(120, 0.9))
    result = compare(still, lively())
    assert result.ratios["mouth"] < 0.01
    assert result.value < 0.95


def test_jitter_is_not_taken_for_life():
    rng = np.random.default_rng(0)
    base = lively(motion=0.0)
    jittering = replace(base, yaw=base.yaw + rng.normal(size=120) * 0.5)
    assert compare(base, jittering).ratios["yaw"] is None


def test_only_shared_frames_are_compared():
    result = compare(lively(absent=tuple(range(20, 60))), lively())
    assert result.frames == 80
    assert result.value == pytest.approx(1.0)


@pytest.mark.parametrize("frames", [1, 5])
def test_short_clips_give_a_reason(frames: int):
    result = compare(lively(frames), lively(frames))
    assert result.value is None
    assert result.reason


def test_still_clips_give_a_reason():
    assert "hardly moves" in compare(lively(motion=0.0), lively(motion=0.0)).reason


def test_flicker_relative_to_the_unlocked_clip():
    calm, restless = lively(), lively()
    restless = replace(
        restless, residual=restless.residual * 1.5, similarity=0.8 + (restless.similarity - 0.8) * 2
    )
    result = flicker(restless, calm)
    assert result.residual == pytest.approx(0.03)
    assert result.residual_ratio == pytest.approx(1.5)
    assert result.jitter_ratio == pytest.approx(2.0)
    assert flicker(calm, None).residual_ratio is None
    assert "no unlocked" in flicker(calm, None).reason


def test_flicker_without_frames():
    assert flicker(lively(1), lively(1)).reason
    nobody = lively(12, absent=tuple(range(12)))
    assert flicker(nobody, nobody).residual is None


def test_honesty_is_the_judges_gain_over_the_loops():
    before, nothing = np.full(10, 0.4), np.full(10, np.nan)
    result = honesty(before, before + 0.24, before, before + 0.3)
    assert result.ratio == pytest.approx(0.8)
    fooled = honesty(before, before + 0.05, before, before + 0.5)
    assert fooled.ratio == pytest.approx(0.1)
    assert honesty(before, before + 0.24, before, before + 0.3, control_gain=0.12).ratio == pytest.approx(0.4)
    assert honesty(before, before, before, before).ratio is None
    assert honesty(nothing, before, before, before).reason
