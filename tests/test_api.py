"""The Python interface, as its documentation says."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import toys

import facelock
from facelock import api
from facelock.clip import require_target
from facelock.errors import ConfigError, IdentityMissedError, InputError, OutputBusyError
from facelock.journal import claim

TEXT = "a woman talking"


@pytest.fixture
def toy(monkeypatch):
    """Make every recipe a pipeline of toys; returns their parts."""
    toys.write_plainly(monkeypatch.setattr)
    parts = toys.Parts()

    def from_recipe(recipe="miniature", device="auto", commercial=False, used=None):
        return toys.pipeline(parts)

    monkeypatch.setattr("facelock.pipeline.Pipeline.from_recipe", from_recipe)
    return parts


def test_iterating_makes_chunks_and_writes_nothing(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    clip = facelock.generate(TEXT, toys.identity(), seconds=1, progress=lambda *step: seen.append(step))
    assert (clip.frames, clip.fps, clip.size) == (12, 12, (32, 32))
    assert toy.backbone.calls == []  # nothing is made before it is asked for
    chunks = list(clip)
    assert [chunk.start for chunk in chunks] == [0, 6, 10]
    assert sum(len(chunk) for chunk in chunks) == 12
    assert all(chunk.frames.min() >= 0 and chunk.frames.max() <= 1 for chunk in chunks)
    assert ("judge", 12, 12) in seen
    assert list(tmp_path.iterdir()) == []
    again = torch.cat([chunk.frames for chunk in clip])
    assert torch.equal(again, torch.cat([chunk.frames for chunk in chunks]))


def test_chunks_come_one_at_a_time(toy):
    iterator = iter(facelock.generate(TEXT, toys.identity(), seconds=3600))
    next(iterator)
    assert len(toy.backbone.calls) == 1


def test_saving_leaves_clip_and_report(toy, tmp_path):
    report = facelock.generate(TEXT, toys.identity(), seconds=1, seed=5).save(tmp_path / "clip.mp4")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["clip.mp4", "clip.report.html", "clip.report.json"]
    stored = json.loads((tmp_path / "clip.report.json").read_text())
    assert stored["kind"] == report.kind == "generate"
    assert stored["settings"]["inputs"]["seed"] == 5 and stored["settings"]["inputs"]["prompt"] == TEXT
    assert report.frames == 12 and len(report.ledger) == 12
    assert stored["judge"]["encoder"] == toys.ENCODER
    assert set(report.stage_seconds) == {"blueprint", "lock", "restore", "judge", "encode"}


def test_saved_frames_are_the_iterated_ones(toy, tmp_path):
    clip = facelock.generate(TEXT, toys.identity(), seconds=1)
    clip.save(tmp_path / "clip.mp4")
    frames = torch.cat([chunk.frames for chunk in clip])
    assert (tmp_path / "clip.mp4").read_bytes() == (frames * 255).round().byte().numpy().tobytes()


def test_references_of_every_kind(toy, tmp_path):
    picture = tmp_path / "maria.png"
    picture.write_bytes(b"red")
    clip = facelock.generate(TEXT, [str(picture), picture, toys.identity("omar")], seconds=1)
    assert [identity.name for identity in clip.identities] == ["maria", "maria-2", "omar"]
    with pytest.raises(InputError, match="no such picture"):
        facelock.generate(TEXT, tmp_path / "none.png", seconds=1)
    assert facelock.load_identity(picture, name="her").name == "her"


def test_several_characters_have_a_row_each(toy, tmp_path):
    cast = [toys.identity("maria"), toys.identity("omar")]
    report = facelock.generate(TEXT, cast, seconds=0.5).save(tmp_path / "two.mp4")
    assert [row.character for row in report.ledger[:2]] == ["maria", "omar"] and len(report.ledger) == 12


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prompt": " "}, InputError, "prompt is empty"),
        ({"seconds": 0}, InputError, "positive"),
        ({"seconds": -3}, InputError, "positive"),
        ({"seconds": float("nan")}, InputError, "length"),
        ({"seconds": 90_000}, InputError, "more than a day"),
        ({"seconds": 0.01}, InputError, "less than one frame"),
        ({"seed": -1}, InputError, "seed"),
        ({"size": 31}, ConfigError, "does not fit"),
        ({"size": (32, 16)}, ConfigError, "does not fit"),
        ({"identity": []}, InputError, "reference"),
    ],
)
def test_bad_arguments(toy, change, error, words):
    arguments = {"prompt": TEXT, "identity": toys.identity(), "seconds": 1, **change}
    with pytest.raises(error, match=words):
        facelock.generate(arguments.pop("prompt"), arguments.pop("identity"), **arguments)
    assert toy.backbone.calls == []


def test_existing_busy_and_audio_are_refused_before_any_work(toy, tmp_path):
    clip = facelock.generate(TEXT, toys.identity(), seconds=1)
    (tmp_path / "old.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="exists already"):
        clip.save(tmp_path / "old.mp4")
    with claim(tmp_path / "busy.mp4"), pytest.raises(OutputBusyError):
        clip.save(tmp_path / "busy.mp4")
    with pytest.raises(InputError, match="none"):
        clip.save(tmp_path / "new.mp4", audio=tmp_path / "none.wav")
    assert toy.backbone.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]


def test_no_space_is_found_before_any_work(toy, tmp_path, monkeypatch):
    from facelock.errors import StorageError

    asked = []

    def require(path, size):
        asked.append(size)
        raise StorageError("The disk is full. Make room.")

    monkeypatch.setattr("facelock.clip.require_space", require)
    with pytest.raises(StorageError):
        facelock.generate(TEXT, toys.identity(), seconds=60).save(tmp_path / "clip.mp4")
    assert toy.backbone.calls == [] and asked[0] > 720 * 32 * 32 * 0.1


def test_changed_inputs_and_restart(toy, tmp_path, monkeypatch):
    def stop(stage, done, total):
        if done >= 10 and stage == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        facelock.generate(TEXT, toys.identity(), seconds=1, progress=stop).save(tmp_path / "clip.mp4")
    other = facelock.generate(TEXT, toys.identity(), seconds=1, seed=1)
    with pytest.raises(InputError, match=r"inputs\.seed: was 0, now 1"):
        other.save(tmp_path / "clip.mp4")
    with pytest.raises(InputError, match=r"faces\.0\.sha256"):
        facelock.generate(TEXT, toys.identity(sha256="cd" * 32), seconds=1).save(tmp_path / "clip.mp4")
    monkeypatch.setattr(toy, "weights", {"lock.model": "1" * 64})
    with pytest.raises(InputError, match=r"weights\.lock\.model"):
        facelock.generate(TEXT, toys.identity(), seconds=1).save(tmp_path / "clip.mp4")
    monkeypatch.undo()
    other = toys.pipeline().generate(TEXT, toys.identity(), seconds=1, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        toys.write_plainly(patch.setattr)
        other.save(tmp_path / "clip.mp4", restart=True)
        other.save(tmp_path / "fresh.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "fresh.mp4").read_bytes()


def test_a_missed_target_is_said_but_the_clip_is_there(toy, tmp_path):
    toy.judge = toys.Judge(wrong=range(3, 6))
    report = facelock.generate(TEXT, toys.identity(), seconds=1).save(tmp_path / "clip.mp4", target=0.9)
    assert report.target == 0.9 and report.misses(0.9) == 3
    with pytest.raises(IdentityMissedError, match="3 of the clip's 12 frames") as caught:
        require_target(report, 0.9)
    assert caught.value.exit_code == 4
    require_target(report, 0.75)


def test_words_the_miniature_does_not_know_are_warned_of(toy, caplog, monkeypatch):
    bounded = toys.pipeline(toy, vocabulary="miniature")
    monkeypatch.setattr("facelock.pipeline.Pipeline.from_recipe", lambda *_: bounded)
    with caplog.at_level(logging.WARNING, "facelock"):
        facelock.generate("a woman talkin in a forest", toys.identity(), seconds=1)
    assert "'talkin'" in caplog.text and "talking" in caplog.text
    caplog.clear()
    facelock.generate("a woman talking in a forest", toys.identity(), seconds=1)
    assert caplog.text == ""


def test_a_pipeline_is_reused(toy):
    pipeline = facelock.Pipeline.from_recipe("miniature")
    for seed in (0, 1):
        clip = pipeline.generate(TEXT, toys.identity(), seconds=1, seed=seed)
        assert sum(len(chunk) for chunk in clip) == 12


def test_verify_measures_every_frame(toy, tmp_path, monkeypatch):
    from fractions import Fraction
    from types import SimpleNamespace

    from facelock.types import Chunk

    frames = torch.rand(50, 3, 32, 32)
    shown = [1 + Fraction(index * index, 100) for index in range(50)]  # ever slower, from one second on
    chunks = [
        Chunk(part, 24 * index, Fraction(25), tuple(shown[24 * index : 24 * index + len(part)]))
        for index, part in enumerate(frames.split(24))
    ]
    monkeypatch.setattr(
        api, "probe", lambda _: SimpleNamespace(fps=Fraction(25), frames=50, width=32, height=32)
    )
    monkeypatch.setattr(api, "read_chunks", lambda *_, **__: iter(chunks))
    toy.judge = toys.Judge(wrong=range(10, 20))
    seen = []
    report = facelock.verify("any.mp4", toys.identity(), progress=lambda *step: seen.append(step))
    assert report.kind == "verify" and report.clip.fps == "25/1"
    assert [row.frame for row in report.ledger] == list(range(50))
    assert [row.time for row in report.ledger] == [round(index * index / 100, 4) for index in range(50)]
    assert report.share_recognised == 0.8
    assert seen[-1] == ("judge", 50, 50)
    assert report.ledger[24].residual is not None  # across the two reads


def test_verify_does_not_replace_the_report_of_the_making(tmp_path):
    clip = tmp_path / "clip.mp4"
    assert [path.name for path in api.verify_paths(clip)] == ["clip.report.json", "clip.report.html"]
    (tmp_path / "clip.report.json").write_text('{"kind": "verify"}')
    assert api.verify_paths(clip)[0].name == "clip.report.json"
    (tmp_path / "clip.report.json").write_text('{"kind": "generate"}')
    names = [path.name for path in api.verify_paths(clip)]
    assert names == ["clip.verify.report.json", "clip.verify.report.html"]
    assert api.verify_paths(clip, tmp_path / "x")[1] == tmp_path / "x.report.html"
    with pytest.raises(InputError, match="cannot be written"):
        api.verify_paths(clip, tmp_path / "none" / "x")
