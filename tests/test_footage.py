"""A clip of any origin, locked: what changes, what does not, and what a kill costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import lock_toys
import pytest
import torch
from footage_files import SOUND, audio_packets, ffmpeg, video
from test_closed_loop import GREEN, Encoder, Pack, locker, person

import facelock
from facelock import footage
from facelock.errors import ConfigError, InputError, InterruptedRunError
from facelock.footage import parts as lock_parts
from facelock.footage.parts import LockParts, SameSize
from facelock.video.reading import Look, probe, read_stills

HERE = Path(__file__).resolve().parent
PTS = [0, 1000, 2000, 2500, 3000, 6000, 6001, 7000, 9000, 9500]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(footage, "FRAMES", 4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Ten frames at their own times, with sound; the last one shows nobody."""
    folder = tmp_path_factory.mktemp("clip")
    look = Look(matrix=6, primaries=6, transfer=6, sar=Fraction(4, 3))
    silent = video(folder / "silent.mp4", lock_toys.frames(), pts=PTS, look=look)
    return ffmpeg(
        folder / "clip.mp4",
        "-i",
        silent,
        *SOUND,
        "-map",
        0,
        "-map",
        1,
        "-c:v",
        "copy",
        "-metadata",
        "title=A scene",
    )


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory):
    """The clip locked without a break: file and report."""
    path = tmp_path_factory.mktemp("whole") / "fixed.mp4"
    return path, lock_toys.lock(clip).save(path)


def pixels(path):
    return torch.stack([still.pixels for still in read_stills(path)])


def times(path):
    info = probe(path)
    return [still.pts * info.time_base for still in read_stills(path)]


def final(**options):
    return torch.cat([chunk.frames for chunk in lock_toys.lock(**options)])


# ------------------------------------------------------------------ what changes


def test_only_the_character_changes(clip):
    source, out = pixels(clip), final(video=clip)
    assert out.shape == source.shape
    assert torch.equal(out[-1], source[-1])  # nobody there: bit for bit
    assert torch.equal(out[..., 40:], source[..., 40:])  # somebody else, on the right
    changed = (out[:-1] - source[:-1]).abs().amax((1, 2, 3))
    assert float(changed.min()) > 0.2
    assert float(out[:-1, 0, 32, 16].mean()) > float(source[:-1, 0, 32, 16].mean()) + 0.2  # redder


def test_no_frame_depends_on_another(clip, monkeypatch):
    whole = final(video=clip)
    for length in (1, 3, 24):
        monkeypatch.setattr(lock_toys.footage, "FRAMES", length)
        made = footage.Footage(lock_toys.parts(), clip, [lock_toys.wish()], replace=[person("green", GREEN)])
        assert torch.equal(torch.cat([chunk.frames for chunk in made]), whole)


def test_nobody_meant_is_an_error_before_anything_is_written(clip, tmp_path):
    for options, reason in [
        ({"replace": ()}, "2 people are seen"),
        ({"replace": (), "swap": False}, "somebody who is"),
    ]:
        with pytest.raises(InputError, match=reason):
            lock_toys.lock(clip, **options).save(tmp_path / "out.mp4")
        assert list(tmp_path.iterdir()) == []


def test_the_restoration_works_at_the_clips_own_size(clip):
    class Darker:
        crop, encoder = lock_toys.parts().locker.crop, "toy@000000000000"

        def restore(self, crops, identity):
            return crops * 0.5 + 0.5 * identity.clamp(0, 1)[..., None, None]

    pack = Pack(lock_toys.PLACES)
    loop = lock_parts.RestoreLoop(pack, SameSize(), Darker(), ladder=(1.0,), target=0.99, consistency=1.0)
    plain, restored = final(video=clip), final(video=clip, parts=lock_toys.parts(restorer=loop))
    assert restored.shape == plain.shape and not torch.equal(restored, plain)
    assert torch.equal(restored[-1], plain[-1]) and torch.equal(restored[..., 40:], plain[..., 40:])


# ------------------------------------------------------------------ what stays


def test_times_size_colours_and_sound_stay(clip, whole):
    path, _ = whole
    before, after = probe(clip), probe(path)
    assert times(path) == times(clip) == [Fraction(pts, 10_000) for pts in PTS]
    assert (after.width, after.height, after.look) == (before.width, before.height, before.look)
    assert after.look.matrix == 6 and after.look.sar == Fraction(4, 3)
    assert audio_packets(path) == audio_packets(clip)


def test_the_file_says_what_was_done(clip, whole):
    path, report = whole
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "A scene"
        assert container.metadata["comment"].startswith("AI-modified video: faces locked by FaceLock")
        assert "recipe toy, aligner toy" in container.metadata["comment"]
    assert report.kind == "lock" and report.frames == 10
    assert [row.time for row in report.ledger] == [pts / 10_000 for pts in PTS]
    assert len(report.ledger_unlocked) == 10 and report.settings["people"] == 2
    assert all(row.lock is not None and row.lock.met for row in report.ledger[:-1])
    assert report.ledger[-1].lock is None
    stored = json.loads(path.with_name("fixed.report.json").read_text())
    assert stored["kind"] == "lock" and sorted(p.name for p in path.parent.iterdir()) == [
        "fixed.mp4",
        "fixed.report.html",
        "fixed.report.json",
    ]


def test_a_rotated_clip_is_locked_upright(clip, tmp_path):
    turned = ffmpeg(tmp_path / "turned.mp4", "-display_rotation", 270, "-i", clip, "-c", "copy")
    out = tmp_path / "out.mp4"

    class Upright(Pack):
        def detect(self, frames):
            assert tuple(frames.shape[-2:]) == (64, 64)
            return super().detect(frames)

    pack = Upright(((0.5, 0.25), (0.5, 0.75)))
    made = lock_toys.lock(turned, parts=lock_toys.parts(pack=pack, locker=locker(pack)))
    made.save(out)
    after = probe(out)
    assert after.turn == 0 and after.look.sar == Fraction(3, 4)
    assert float((pixels(out)[-1] - torch.rot90(pixels(clip)[-1], 3, (1, 2))).abs().mean()) < 0.03
    assert times(out) == times(clip)


# ------------------------------------------------------------------ a run that is cut


def test_a_stopped_run_goes_on_to_the_same_bytes(clip, whole, tmp_path):
    path = tmp_path / "fixed.mp4"
    looks = []
    for stop in [("judge", 4), ("lock", 8)]:

        def progress(stage, done, total, stop=stop):
            looks.append(stage)
            if (stage, done) == stop:
                raise InterruptedRunError("Interrupted.")

        with pytest.raises(InterruptedRunError):
            lock_toys.lock(clip, progress=progress).save(path)
        assert (tmp_path / "fixed.mp4.partial" / "survey.json").exists()
    count = looks.count("survey")
    lock_toys.lock(clip, progress=lambda stage, *_: looks.append(stage)).save(path)
    assert looks.count("survey") == count  # the clip is looked at once, not at every start
    assert path.read_bytes() == whole[0].read_bytes()
    rows = [json.loads(p.with_name("fixed.report.json").read_text())["ledger"] for p in (path, whole[0])]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("after", [17])
def test_a_killed_run_goes_on_to_the_same_bytes(clip, whole, tmp_path, after):
    path = tmp_path / "fixed.mp4"
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    command = [sys.executable, str(HERE / "lock_toys.py"), str(clip), str(path), str(after)]
    killed = subprocess.run(command, env=environment, capture_output=True)
    assert killed.returncode == -9 and not path.exists()
    lock_toys.lock(clip).save(path)
    assert path.read_bytes() == whole[0].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "fixed.mp4",
        "fixed.report.html",
        "fixed.report.json",
    ]


def test_changed_inputs_are_refused_unless_restarted(clip, whole, tmp_path):
    def stop(stage, done, total):
        if stage == "judge" and done > 4:
            raise InterruptedRunError("Interrupted.")

    path = tmp_path / "fixed.mp4"
    with pytest.raises(InterruptedRunError):
        lock_toys.lock(clip, progress=stop).save(path)
    with pytest.raises(InputError, match="restore: was false"):
        lock_toys.lock(clip, parts=lock_toys.parts(restorer=lock_parts.RestoreLoop(
            Pack(lock_toys.PLACES), SameSize(), None, ladder=(), target=1, consistency=1))).save(path)  # fmt: skip
    other = ffmpeg(tmp_path / "other.mp4", "-i", clip, "-c", "copy", "-metadata", "title=B")
    with pytest.raises(InputError, match=r"inputs\.video: was"):
        lock_toys.lock(other).save(path)
    lock_toys.lock(clip).save(path, restart=True)
    assert path.read_bytes() == whole[0].read_bytes()


def test_a_damaged_note_of_the_survey_is_made_again(clip, whole, tmp_path):
    def stop(stage, done, total):
        if stage == "judge" and done > 4:
            raise InterruptedRunError("Interrupted.")

    path = tmp_path / "fixed.mp4"
    with pytest.raises(InterruptedRunError):
        lock_toys.lock(clip, progress=stop).save(path)
    (tmp_path / "fixed.mp4.partial" / "survey.json").write_text("{")
    lock_toys.lock(clip).save(path)
    assert path.read_bytes() == whole[0].read_bytes()


def test_a_clip_is_never_written_onto_itself(clip, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    (tmp_path / "link.mp4").symlink_to(copy)
    for name in ("copy.mp4", "link.mp4"):
        with pytest.raises(InputError, match="is the clip itself"):
            lock_toys.lock(copy).save(tmp_path / name, overwrite=True)
    assert copy.read_bytes() == clip.read_bytes()


def test_a_clip_cut_short_leaves_no_output(clip, tmp_path):
    fast = ffmpeg(tmp_path / "fast.mp4", "-i", clip, "-c", "copy", "-movflags", "+faststart")
    fast.write_bytes(fast.read_bytes()[: fast.stat().st_size // 2])
    with pytest.raises(InputError, match="cut short"):
        lock_toys.lock(fast).save(tmp_path / "out.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["fast.mp4"]


# ------------------------------------------------------------------ which stages


def test_a_judge_that_the_lock_optimises_is_refused():
    judge = lock_parts.Judge(Pack())
    with pytest.raises(ConfigError, match="its word would prove nothing"):
        lock_parts._independent(judge, Pack())


def test_the_recipes_aligner_is_not_for_other_recognisers(monkeypatch):
    class Seen:
        faces, judge = Pack(), Pack(encoder=Encoder(id="judge@000000000000"))
        names, packs = ("other", "judge"), (faces, judge)

    monkeypatch.setattr(lock_parts, "open_perception", lambda *_, **__: Seen())
    with pytest.raises(ConfigError, match="Give --aligner warp"):
        lock_parts.open_parts("miniature", "cpu", aligner="inswapper", packs="other")
    with pytest.raises(ConfigError, match="no aligner is called 'nothing'"):
        lock_parts.open_parts("miniature", "cpu", aligner="nothing", packs="other")


def test_the_public_function_says_what_is_wrong_first(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        facelock.lock(tmp_path / "none.mp4", "nobody.png")


# ------------------------------------------------------------------ the real small networks


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Two characters side by side, moving; in the middle of the clip nobody."""
    from PIL import Image

    from facelock.bench import cast

    folder = tmp_path_factory.mktemp("rendered")
    left, right = (cast.true_clip(cast.member(index), 9, 128, index)[0] for index in (0, 9))
    frames = torch.cat([left, right], 3)
    frames[4] = 0.4
    for index in (0, 9):
        picture = (cast.portrait(cast.member(index), 256)[0].permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(picture).save(folder / f"{index}.png")
    return video(folder / "two.mp4", frames), folder / "0.png", folder / "9.png"


MARIA = HERE.parent / "samples" / "faces" / "maria.png"


def test_one_of_two_rendered_people_becomes_maria(rendered, tmp_path):
    clip, one, other = rendered
    with pytest.raises(InputError, match="2 people are seen"):
        facelock.lock(clip, MARIA, device="cpu").survey()
    made = facelock.lock(clip, MARIA, device="cpu", replace=other)
    assert isinstance(made.parts, LockParts) and made.parts.restorer is not None
    source = pixels(clip)
    out = torch.cat([chunk.frames for chunk in made])
    assert torch.equal(out[..., :128], source[..., :128]) and torch.equal(out[4], source[4])
    report = made.save(tmp_path / "maria.mp4")
    seen = [row for row in report.ledger if row.frame != 4]
    plain = [row for row in report.ledger_unlocked if row.frame != 4]
    assert all(row.similarity > report.judge.far_1e4 for row in seen)
    assert all(row.similarity < report.judge.far_1e2 for row in plain)
    assert facelock.lock(clip, one, device="cpu").survey().casting.notes == ()
