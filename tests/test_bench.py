"""The benchmarks: held-out people, prompts that are understood, and figures that follow what is put in."""

from __future__ import annotations

import json
import os
import subprocess

import psutil
import pytest
import torch
import toys
from PIL import Image

from facelock.bench import cast, drift, pairs, speed
from facelock.bench.stills import COLUMNS, Stills
from facelock.bench.tables import interval, number, publish, table
from facelock.miniature import data
from facelock.miniature.parameters import identity_vector
from facelock.miniature.vocabulary import unknown_words
from facelock.types import Identity, LedgerRow, Status


def test_the_cast_is_held_out_and_its_prompts_are_understood():
    people = [cast.member(i) for i in range(40)]
    assert len({p.prompt for p in people}) > 25
    assert all(not unknown_words(p.prompt) for p in people)
    vectors = torch.cat([identity_vector(p.face) for p in people])
    for split in ("train", "judge"):
        known = identity_vector(data.identities(split, 6000))
        assert float(torch.cdist(vectors, known).min()) > 0.3
    assert torch.equal(cast.member(7).face["skull_w"], people[7].face["skull_w"])


def test_a_true_clip_moves_but_stays_the_person():
    clip, now = cast.true_clip(cast.member(1), 9, 64, 0)
    assert clip.shape == (9, 3, 64, 64)
    assert float(clip.diff(dim=0).abs().mean()) > 0
    assert len(now["yaw"]) == 9


@pytest.fixture
def toy(monkeypatch):
    parts = toys.Parts(judge=toys.Judge(wrong={20, 21, 22}))
    pipeline = toys.pipeline(parts)
    monkeypatch.setattr(drift.Pipeline, "from_recipe", lambda *_: pipeline)
    monkeypatch.setattr(drift, "PlainSwap", lambda _: lambda frames, identity: frames * 0.95)
    monkeypatch.setattr(cast, "identity", lambda who, parts: toys.identity(who.name))
    monkeypatch.setattr(cast, "ceiling", lambda *_: 0.9)
    return pipeline


def test_drift_sets_three_arms_side_by_side(toy, tmp_path):
    seen = []
    results = drift.run(
        seconds=3, identities=3, out=tmp_path, jobs=1, progress=lambda *step: seen.append(step)
    )
    assert seen[-1] == ("characters", 3, 3)
    assert list(results["arms"]) == ["B0", "B2", "FaceLock"]
    for arm in results["arms"].values():
        assert arm["clips"] == 3 and len(arm["per_character"]) == 3
        assert arm["coverage"]["value"] == 1.0
        assert arm["above_far_1e3"]["value"] == pytest.approx(33 / 36)
        assert arm["drift"]["low"] is not None
    stored = json.loads((tmp_path / "drift.json").read_text())
    assert stored["command"] == "facelock bench drift --seconds 3 --identities 3 --seed 0"
    text = (tmp_path / "drift.md").read_text()
    assert stored["date"] in text and "slope per minute" in text and "cores" in text
    sheet = Image.open(tmp_path / "drift-00.png")
    assert sheet.width > COLUMNS * 144


def test_both_chains_start_from_the_same_locked_chunk(toy):
    identity = toys.identity()
    chunks = list(drift._own_chain(toy, "a woman", identity, 14, 5))
    ours = [m.tail.context for m in toy.run(drift.Job("a woman", 14 / 12, 5), [identity])]
    assert torch.equal(chunks[0][-2:], ours[0])
    assert not torch.equal(chunks[1][-2:], ours[1])  # from here B0 goes on by itself
    assert [len(c) for c in chunks] == [6, 4, 4]


def test_stills_are_spread_along_the_clip(tmp_path):
    stills = Stills(33, 12.0)
    for start in range(0, 33, 5):
        stills.see("arm", torch.full((min(5, 33 - start), 3, 8, 8), start / 40), start)
    assert sorted(stills.kept["arm"]) == stills.wanted and stills.wanted[-1] == 32
    stills.save(tmp_path / "a" / "sheet.png", torch.rand(3, 16, 16))
    assert (tmp_path / "a" / "sheet.png").exists()


def test_tables():
    assert table(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert number(None) == "–" and number(0.12345) == "0.123"
    assert interval({"value": 0.1, "low": 0.0, "high": 0.2}) == "+0.100 [+0.000, +0.200]"
    assert interval({"value": None}) == "–"
    assert publish("x", "cmd", "body", {"a": 1}, None)["a"] == 1


def test_two_people_who_change_places_are_counted():
    left, right = (0.0, 0.0, 20.0, 20.0), (40.0, 0.0, 60.0, 20.0)
    rows = [
        LedgerRow(frame, name, Status.VERIFIED, 0.9, 0.8, box)
        for frame, boxes in enumerate([(left, right), (right, left), (left, None)])
        for name, box in zip("ab", boxes, strict=True)
    ]
    figures = pairs._figures(rows)
    assert figures["frames"] == 3 and figures["frames_with_places_changed"] == 1


def test_an_identity_is_read_from_the_picture_alone(monkeypatch):
    class Parts:
        def identity(self, picture, *, name, face):
            assert picture.size == (512, 512) and face is None
            return Identity(name, {})

    assert cast.identity(cast.member(3), Parts()).name == "heldout-03"


def test_memory_of_a_child_that_is_not_yet_another_program_is_not_counted_twice():
    process = psutil.Process()
    own = process.memory_info().rss
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.read(reader, 1)
        os._exit(0)
    try:
        assert speed._resident(process) < 1.2 * own
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)
    with subprocess.Popen(["sleep", "9"]) as sleeper:
        while psutil.Process(sleeper.pid).exe() == process.exe():
            pass
        held = psutil.Process(sleeper.pid).memory_info().rss
        total, own = speed._resident(process), process.memory_info().rss
        sleeper.kill()
    assert held > 0 and total == pytest.approx(own + held, abs=2**22)
