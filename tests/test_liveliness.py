"""The gains that let a locked clip move as much as its blueprint."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from facelock.miniature import liveliness
from facelock.miniature.alignment import stretch
from facelock.miniature.model_aligner import OUTPUTS, Reader
from facelock.miniature.vocabulary import unknown_words
from facelock.types import Identity, LedgerRow, Status


def test_gains_make_up_for_what_is_missing_and_for_nothing_else():
    found = liveliness.gains({"yaw": 1.2}, {"yaw": 0.81, "pitch": 1.4, "tilt": 0.01, "roll": 1.0})
    assert found == {"yaw": pytest.approx(1.2 / 0.9**0.5, abs=1e-3), "pitch": 1.0, "tilt": 2.0, "roll": 1.0}


def test_gains_are_kept_beside_the_reader(tmp_path):
    assert liveliness.read_gains(tmp_path) == {}
    liveliness.write_gains(tmp_path, {"yaw": 1.5})
    assert liveliness.read_gains(tmp_path) == {"yaw": 1.5}


@torch.no_grad()
def test_a_stretched_reader_swings_further_about_its_mean():
    reader, crops = Reader().eval(), torch.rand(3, 3, 128, 128)
    reader.get_buffer("mean").fill_(0.3)
    before = reader(crops)
    stretch(reader, {"yaw": 1.5})
    after, yaw = reader(crops), OUTPUTS.index("yaw")
    assert torch.allclose(after[:, yaw] - 0.3, 1.5 * (before[:, yaw] - 0.3), atol=1e-5)
    rest = [i for i in range(len(OUTPUTS)) if i != yaw]
    assert torch.equal(after[:, rest], before[:, rest])


def test_prompts_are_of_the_vocabulary():
    for index in range(24):
        assert not unknown_words(liveliness.prompt(index, index % 2 == 0))


def _row(frame: int, swing: float) -> LedgerRow:
    turn = math.sin(frame / 3) * swing
    points = tuple(
        (x + turn, y) for x, y in ((38.0, 52.0), (73.0, 52.0), (56.0, 72.0), (41.0, 92.0), (71.0, 92.0))
    )
    box = (20.0, 20.0, 90.0, 110.0)
    return LedgerRow(
        frame, "a", Status.VERIFIED, 0.9, box=box, yaw=turn, pitch=turn, roll=turn, landmarks=points
    )


def test_motion_is_measured_before_and_after_the_lock(toy_pipeline, monkeypatch):
    """A lock that halves every turn keeps a quarter of the variance."""
    run = toy_pipeline.run

    def half(*args, **kwargs):
        for made in run(*args, **kwargs):
            frames = range(made.span.start, made.span.start + made.span.length)
            ledger, raw = (tuple(_row(f, swing) for f in frames) for swing in (5.0, 10.0))
            yield replace(made, records=replace(made.records, ledger=ledger, ledger_unlocked=raw))

    monkeypatch.setattr(toy_pipeline, "run", half)
    monkeypatch.setattr(liveliness, "character", lambda *_: (Identity("a", {}), "a woman"))
    kept = liveliness.measure(2, 4.0, toy_pipeline)
    assert kept["yaw"] == pytest.approx(0.25, rel=0.05) and kept["roll"] == pytest.approx(0.25, rel=0.05)
