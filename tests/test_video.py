"""Segments, joining and reading with the real ffmpeg; what a damaged or hostile file does."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import wave
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from facelock.errors import EncoderError, FaceLockError, InputError, StorageError
from facelock.video.writing import (
    SegmentWriter,
    check_audio,
    count_frames,
    find_ffmpeg,
    join_segments,
    probe,
    read_chunks,
)

SIZE = (64, 96)
FPS = Fraction(12)


def frames(count, seed=0):
    """Smooth moving colours."""
    draw = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 6, generator=draw)
    return torch.nn.functional.interpolate(small, SIZE, mode="bicubic", align_corners=False).clamp(0, 1)


def segment(path, pictures, fps=FPS, **options):
    with SegmentWriter(path, tuple(pictures.shape[-2:]), fps, **options) as writer:
        writer.write(pictures)
    return path


def clip(folder, counts=(9, 11, 3), fps=FPS, **options):
    parts = [segment(folder / f"{i}.mkv", frames(n, i), fps) for i, n in enumerate(counts)]
    join_segments(parts, folder / "clip.mp4", fps=fps, **options)
    return folder / "clip.mp4"


def sound(path, seconds):
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 22050, 0, "NONE", ""))
        count = int(22050 * seconds)
        out.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(i / 10))) for i in range(count)))
    return path


def decoded(path, length=7):
    return torch.cat([chunk.frames for chunk in read_chunks(path, length)])


def test_a_segment_keeps_colours_and_is_the_same_every_time(tmp_path):
    flat = torch.zeros(4, 3, *SIZE)
    flat[0, 0], flat[1, 1], flat[2, 2], flat[3] = 1, 1, 1, 0.5
    path = segment(tmp_path / "a.mkv", flat)
    assert float((decoded(path) - flat).abs().max()) < 0.02
    again = segment(tmp_path / "b.mkv", flat)
    assert path.read_bytes() == again.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv"]
    pictures = frames(8)
    assert float((decoded(segment(tmp_path / "c.mkv", pictures, crf=8)) - pictures).abs().mean()) < 0.02


def test_what_the_stream_says_of_itself(tmp_path):
    with av.open(str(clip(tmp_path))) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert context.name == "h264" and context.pix_fmt == "yuv420p"
        assert (context.color_range, context.colorspace, context.color_primaries, context.color_trc) == (
            1,
            1,
            1,
            1,
        )
        assert stream.average_rate == FPS


@pytest.mark.parametrize("fps", [Fraction(12), Fraction(24000, 1001), Fraction(25), Fraction(16)])
def test_joined_clips_have_every_frame_at_its_exact_time(tmp_path, fps):
    path = clip(tmp_path, fps=fps)
    info = probe(path)
    assert (info.width, info.height, info.fps, info.frames, info.has_audio) == (96, 64, fps, 23, False)
    assert info.seconds == pytest.approx(23 / float(fps))
    with av.open(str(path)) as container:
        times = [p.pts * p.time_base for p in container.demux(video=0) if p.size]
    assert times == [i / fps for i in range(23)]


def test_joining_copies_the_pictures(tmp_path):
    whole = decoded(clip(tmp_path))
    assert torch.equal(whole, torch.cat([decoded(tmp_path / f"{i}.mkv") for i in range(3)]))
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is loaded
    assert not list(tmp_path.glob("*.part"))


def test_metadata_is_in_the_file(tmp_path):
    path = clip(tmp_path, metadata={"title": "Ä 'x' = 1", "comment": "AI-generated; seed=0"})
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "Ä 'x' = 1"
        assert container.metadata["comment"] == "AI-generated; seed=0"


@pytest.mark.parametrize("seconds", [0.5, 5.0])
def test_sound_is_padded_or_cut_to_the_pictures(tmp_path, seconds):
    sound(tmp_path / "a.wav", seconds)
    check_audio(tmp_path / "a.wav")
    path = clip(tmp_path, audio=tmp_path / "a.wav")
    assert probe(path).has_audio and probe(path).frames == 23
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        heard = torch.cat([torch.from_numpy(f.to_ndarray()) for f in container.decode(audio=0)], 1)
    length = heard.shape[1] / 48000
    assert 23 / 12 - 0.03 < length < 23 / 12 + 0.06
    loud = heard.abs().amax(0) > 0.05
    assert bool(loud[4000:20000].any()) and bool(loud[-20000:-4000].any()) == (seconds > 2)
    assert torch.equal(decoded(path), torch.cat([decoded(tmp_path / f"{i}.mkv") for i in range(3)]))


def test_sound_that_is_none_is_refused(tmp_path):
    silent = clip(tmp_path)
    (tmp_path / "a.txt").write_text("words")
    for path, reason in [
        (silent, "no sound"),
        (tmp_path / "a.txt", "damaged"),
        (tmp_path / "none.wav", "no such"),
    ]:
        with pytest.raises(InputError, match=reason):
            check_audio(path)


def test_frames_that_are_no_pictures_are_refused_and_leave_nothing(tmp_path):
    bad = frames(2)
    bad[1, 0, 0, 0] = float("nan")
    for pictures in (bad, frames(2)[:, :, ::2]):
        with pytest.raises(FaceLockError), SegmentWriter(tmp_path / "a.mkv", SIZE, FPS) as writer:
            writer.write(pictures)
    assert list(tmp_path.iterdir()) == []


def script(folder, text):
    path = folder / "fake-ffmpeg"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("exit 1", EncoderError, "exit code 1"),
        ("echo 'no such encoder' >&2; exit 8", EncoderError, "no such encoder"),
        ("head -c 2000 >/dev/null; kill -9 $$", EncoderError, "SIGKILL"),
        ("cat >/dev/null; echo 'x: No space left on device' >&2; exit 1", StorageError, "disk is full"),
    ],
)
def test_an_ffmpeg_that_dies(tmp_path, monkeypatch, text, error, reason):
    monkeypatch.setenv("FACELOCK_FFMPEG", script(tmp_path, text))
    with pytest.raises(error, match=reason) as caught:
        segment(tmp_path / "a.mkv", frames(200))
    assert caught.value.exit_code == 3
    assert [p.name for p in tmp_path.iterdir()] == ["fake-ffmpeg"]


def test_an_ffmpeg_killed_from_outside(tmp_path):
    with pytest.raises(EncoderError, match="SIGKILL"), SegmentWriter(tmp_path / "a.mkv", SIZE, FPS) as writer:
        writer.write(frames(4))
        writer._process._child.kill()
        writer.write(frames(400))
    assert list(tmp_path.iterdir()) == []


def test_which_ffmpeg(tmp_path, monkeypatch):
    mine = script(tmp_path, "exit 0")
    monkeypatch.setenv("FACELOCK_FFMPEG", mine)
    assert find_ffmpeg() == mine
    monkeypatch.setenv("FACELOCK_FFMPEG", str(tmp_path / "none"))
    with pytest.raises(EncoderError, match="FACELOCK_FFMPEG"):
        find_ffmpeg()
    monkeypatch.delenv("FACELOCK_FFMPEG")
    Path(mine).rename(tmp_path / "ffmpeg")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_ffmpeg() == str(tmp_path / "ffmpeg")
    monkeypatch.setenv("PATH", "")
    assert "imageio_ffmpeg" in find_ffmpeg()
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    with pytest.raises(EncoderError, match="ffmpeg is missing"):
        find_ffmpeg()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_joining_onto_a_full_disk(tmp_path, monkeypatch):
    parts = [segment(tmp_path / "0.mkv", frames(5))]
    (tmp_path / "clip.mp4.part").symlink_to("/dev/full")
    with pytest.raises((StorageError, EncoderError)) as caught:
        join_segments(parts, tmp_path / "clip.mp4", fps=FPS)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "clip.mp4").exists()


def test_reading_in_chunks(tmp_path):
    path = clip(tmp_path)
    chunks = list(read_chunks(path, 10))
    assert [(c.start, len(c), c.fps) for c in chunks] == [(0, 10, FPS), (10, 10, FPS), (20, 3, FPS)]
    assert chunks[0].frames.dtype == torch.float32
    assert count_frames(path) == count_frames(tmp_path / "0.mkv") + 14 == 23


def smuggled(folder, real, text):
    path = folder / "clip2.mp4"
    path.write_text(text.format(real=real))
    return path


def test_files_that_cannot_be_read(tmp_path):
    real = clip(tmp_path)
    data = real.read_bytes()
    cases = {
        "is empty": b"",
        "cut short": data[: len(data) * 2 // 3],
        "damaged": b"junk" * 500,
    }
    for reason, content in cases.items():
        (tmp_path / "bad.mp4").write_bytes(content)
        with pytest.raises(InputError, match=reason) as caught:
            decoded(tmp_path / "bad.mp4")
        assert "bad.mp4" in str(caught.value) and "\n" not in str(caught.value)
    for name in ("none.mp4", "."):
        with pytest.raises(InputError):
            probe(tmp_path / name)
    with pytest.raises(InputError, match="no pictures"):
        join = sound(tmp_path / "a.wav", 0.2)
        command = [find_ffmpeg(), "-v", "error", "-i", join, tmp_path / "sound.mp4"]
        subprocess.run(command, check=True)
        probe(tmp_path / "sound.mp4")


def test_a_file_cannot_open_another_one(tmp_path):
    real = clip(tmp_path)
    for text in (
        "ffconcat version 1.0\nfile '{real}'\n",
        "#EXTM3U\n#EXTINF:1,\n{real}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n",
    ):
        path = smuggled(tmp_path, real, text)
        for work in (probe, decoded, check_audio, count_frames):
            with pytest.raises(InputError):
                work(path)
    for name in (f"concat:{real}", "http://127.0.0.1:9/a.mp4", f"file://{real}"):
        with pytest.raises(InputError, match="no such file"):
            probe(name)


def test_bits_that_flipped_never_crash(tmp_path):
    data = bytearray(clip(tmp_path).read_bytes())
    draw = torch.Generator().manual_seed(0)
    path = tmp_path / "flipped.mp4"
    for _ in range(25):
        copy = bytearray(data)
        for place in torch.randint(len(data), (8,), generator=draw).tolist():
            copy[place] ^= 1 << int(torch.randint(8, (1,), generator=draw))
        path.write_bytes(bytes(copy))
        try:
            decoded(path)
        except InputError as error:
            assert "\n" not in str(error)
