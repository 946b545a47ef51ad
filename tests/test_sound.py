"""Sound that a backbone writes: from the chunk through the journal into the clip, and into the film."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import toys
from torch import Tensor

from facelock.errors import FaceLockError, InterruptedRunError
from facelock.journal import Journal
from facelock.output import ClipFiles
from facelock.protocols import Backbone, SpeakingBackbone
from facelock.sound import extended, fitted, interleaved, joined, packed, sample_at, unpacked
from facelock.types import Sound
from facelock.video.joining import Soundtrack
from facelock.video.writing import SegmentWriter, join_segments, probe, read_chunks

RATE, SECONDS = 16_000, 15 / 12  # 15 frames: 6 + 4 + 4 + 1


@dataclass
class Speaking(toys.Backbone):
    """The toy that hums: a chord of the seed's and the context's, a little longer than its frames."""

    sample_rate: int = RATE
    lead: int = 300
    dies_at: int = -1
    spoils: float = 0.0

    def extend_with_sound(self, prompt, context, *, seed, references=()) -> tuple[Tensor, Sound]:
        if len(self.calls) == self.dies_at:
            raise InterruptedRunError("Stopped. Give the same command again.")
        frames = self.extend(prompt, context, seed=seed, references=references)
        lead = 0 if context is None else self.lead
        count = lead + math.ceil(len(frames) / self.fps * RATE) + 50
        pitch = 200 + seed % 400 + (0 if context is None else float((context * 997).frac().mean()))
        wave = 0.5 * torch.sin(torch.arange(count) * 2 * math.pi * pitch / RATE)
        return frames, Sound(torch.stack([wave, 0.3 * wave + self.spoils]), RATE, lead)


def pipeline(**options):
    return toys.pipeline(toys.Parts(backbone=Speaking(**options)))


def clip(**options):
    return pipeline(**options).generate("a woman talking", toys.identity(), seconds=SECONDS, seed=3)


def heard(path: Path) -> np.ndarray:
    """(C, n) of the first audio track."""
    with av.open(str(path)) as file:
        return np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], 1)


def seconds_of_sound(path: Path) -> float:
    with av.open(str(path)) as file:
        track = file.streams.audio[0]
        return float(track.duration * track.time_base)


# ---------------------------------------------------------------------- pieces


def test_a_backbone_speaks_or_not() -> None:
    assert isinstance(Speaking(), SpeakingBackbone)
    assert isinstance(toys.Backbone(), Backbone)
    assert not isinstance(toys.Backbone(), SpeakingBackbone)
    frames, sound = extended(toys.Backbone())("a", None, seed=1)
    assert frames.shape[0] == 6
    assert sound is None
    assert fitted(None, start=0, frames=6, fps=Fraction(12)) is None


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30000, 1001), Fraction(12)])
def test_cut_lengths_add_up_to_the_frames(fps: Fraction) -> None:
    lengths = [17, 12, 12, 12, 5]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    cut = [
        fitted(Sound(torch.zeros(2, 30_000), RATE, 100), start=start, frames=length, fps=fps)
        for start, length in zip(starts, lengths, strict=True)
    ]
    total = sum(piece.samples.shape[1] - piece.lead for piece in cut)
    assert total == sample_at(58, fps, RATE)
    assert abs(total - 58 / fps * RATE) <= Fraction(1, 2)
    assert {piece.lead for piece in cut} == {100}


def test_sound_that_is_short_or_not_finite_is_refused() -> None:
    with pytest.raises(FaceLockError, match="too short for 12 frames"):
        fitted(Sound(torch.zeros(2, 15_999), RATE), start=12, frames=12, fps=Fraction(12))
    with pytest.raises(FaceLockError, match="too short"):
        fitted(Sound(torch.zeros(16_000), RATE), start=0, frames=1, fps=Fraction(12))
    with pytest.raises(FaceLockError, match="from 12 holds NaN"):
        fitted(Sound(torch.full((1, 16_000), math.nan), RATE), start=12, frames=1, fps=Fraction(12))


def test_pieces_meet_in_a_crossfade_of_the_lead() -> None:
    ones, twos = torch.full((1, 10), 0.5), torch.full((1, 4 + 10), -0.5)
    whole = torch.cat(list(joined([Sound(ones, RATE), Sound(twos, RATE, 4)])), 1)[0]
    assert whole.shape == (20,)
    assert torch.equal(whole[:6], ones[0, :6])
    assert torch.equal(whole[10:], twos[0, 4:])
    fade = whole[6:10]
    assert (fade.diff() < 0).all()
    assert float(fade[-1]) == pytest.approx(-0.5)
    expected = 0.5 * math.cos(math.pi / 8) - 0.5 * math.sin(math.pi / 8)
    assert float(fade[0]) == pytest.approx(expected, abs=1e-6)
    plain = list(joined([Sound(ones, RATE), Sound(ones, RATE)]))
    assert torch.equal(torch.cat(plain, 1), torch.cat([ones, ones], 1))
    assert list(joined([])) == []


def test_joining_holds_two_sounds_at_most() -> None:
    taken = 0

    def given():
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield Sound(torch.zeros(1, 12), RATE, 2)

    for number, _ in enumerate(joined(given())):
        assert taken <= number + 2


def test_stored_sound_comes_back_exactly(tmp_path: Path) -> None:
    sound = Sound(torch.rand(2, 99) - 0.5, RATE, 7)
    (tmp_path / "a").write_bytes(packed(sound))
    back = unpacked(tmp_path / "a")
    assert torch.equal(back.samples, sound.samples)
    assert (back.rate, back.lead) == (RATE, 7)
    assert packed(back) == packed(sound)
    (tmp_path / "b").write_bytes(packed(sound)[:-9])
    with pytest.raises(FaceLockError, match=r"b: cannot be read back"):
        unpacked(tmp_path / "b")


def test_a_soundtrack_is_cut_or_padded_to_the_pictures(tmp_path: Path) -> None:
    with SegmentWriter(tmp_path / "0.mkv", (32, 32), Fraction(12)) as writer:
        writer.write(torch.rand(24, 3, 32, 32))
    wave = torch.sin(torch.arange(RATE) * 0.3)[None].repeat(2, 1) * 0.5
    for seconds in (1, 3, 60):  # ffmpeg leaves before it was told all of a minute
        track = Soundtrack((interleaved(wave) for _ in range(seconds)), RATE, 2)
        join_segments([tmp_path / "0.mkv"], tmp_path / "out.mp4", fps=Fraction(12), soundtrack=track)
        assert abs(seconds_of_sound(tmp_path / "out.mp4") - 2) <= 1024 / 48_000
    sound = heard(tmp_path / "out.mp4")
    assert sound.shape[0] == 2
    assert np.abs(sound[:, 10_000:80_000]).max() > 0.3


# ---------------------------------------------------------------------- a clip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "clip.mp4"
    clip().save(path)
    return path


def test_iterating_gives_sound_as_long_as_the_frames() -> None:
    chunks = list(clip())
    assert [chunk.sound.samples.shape[1] - chunk.sound.lead for chunk in chunks] == [8000, 5333, 5334, 1333]
    assert [chunk.sound.lead for chunk in chunks] == [0, 300, 300, 300]
    silent = next(iter(toys.pipeline().generate("a", toys.identity(), seconds=1)))
    assert silent.sound is None


def test_the_clip_speaks_as_long_as_it_shows(whole: Path) -> None:
    assert probe(whole).audio == ("aac",)
    assert abs(seconds_of_sound(whole) - SECONDS) <= 1024 / 48_000
    sound = heard(whole)
    assert sound.shape[0] == 2
    expected = torch.cat(list(joined([chunk.sound for chunk in clip()])), 1)[0].numpy()
    sampled = np.interp(np.arange(expected.size) / RATE, np.arange(sound.shape[1]) / 48_000, sound[0])
    assert np.corrcoef(sampled[500:-500], expected[500:-500])[0, 1] > 0.98


def test_a_silent_backbone_leaves_no_track(tmp_path: Path) -> None:
    toys.pipeline().generate("a", toys.identity(), seconds=1).save(tmp_path / "clip.mp4")
    assert probe(tmp_path / "clip.mp4").audio == ()


@pytest.mark.parametrize("dies_at", [1, 3])
def test_resumed_equals_uninterrupted_sound_included(whole: Path, tmp_path: Path, dies_at: int) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(InterruptedRunError):
        clip(dies_at=dies_at).save(path)
    kept = sorted(file.name for file in (tmp_path / "clip.mp4.partial").glob("*.sound"))
    assert kept == [f"{index:05d}.sound" for index in range(dies_at)]
    clip().save(path)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "clip.mp4",
        "clip.report.html",
        "clip.report.json",
    ]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_sound_is_made_again(whole: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(InterruptedRunError):
        clip(dies_at=3).save(path)
    broken = tmp_path / "clip.mp4.partial" / "00002.sound"
    if damage == "gone":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[:-1] + b"\x7f")
    again = pipeline()
    again.generate("a woman talking", toys.identity(), seconds=SECONDS, seed=3).save(path)
    assert len(again.parts.backbone.calls) == 2  # chunks 2 and 3
    assert path.read_bytes() == whole.read_bytes()


def test_the_users_audio_wins(whole: Path, tmp_path: Path) -> None:
    clip().save(tmp_path / "clip.mp4", audio=whole)
    clip(spoils=0.2).save(tmp_path / "other.mp4", audio=whole)
    own = [heard(tmp_path / name) for name in ("clip.mp4", "other.mp4")]
    assert np.array_equal(*own)
    assert not np.array_equal(heard(whole)[:, : own[0].shape[1]], own[0][:, : heard(whole).shape[1]])


def test_not_finite_sound_names_the_chunk_and_keeps_what_is_made(tmp_path: Path) -> None:
    with pytest.raises(FaceLockError, match="frames from 0 holds NaN"):
        clip(spoils=math.nan).save(tmp_path / "clip.mp4")


def test_sound_of_a_silent_run_is_none(tmp_path: Path) -> None:
    files = replace(ClipFiles(tmp_path / "a.mp4"))
    assert list(Journal(files).sounds(3)) == []


def test_frames_are_those_of_the_silent_backbone(whole: Path, tmp_path: Path) -> None:
    toys.pipeline().generate("a woman talking", toys.identity(), seconds=SECONDS, seed=3).save(
        tmp_path / "a.mp4"
    )
    for one, other in zip(read_chunks(whole, 24), read_chunks(tmp_path / "a.mp4", 24), strict=True):
        assert torch.equal(one.frames, other.frames)
