"""Reading anybody's video: every kind of good one as it is, every kind of bad one refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from footage_files import PICTURES, SOUND, audio_packets, ffmpeg, patched, ramps, video

from facelock.errors import InputError
from facelock.video import reading as footage_io
from facelock.video import worker as video_worker
from facelock.video.crossing import lifted
from facelock.video.reading import Look, check_audio, count_frames, probe, read_chunks, read_stills
from facelock.video.writing import SegmentWriter, Timing, join_segments, pixel_format


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder):
    return ffmpeg(folder / "plain.mp4", *PICTURES, *SOUND, "-pix_fmt", "yuv420p", "-movflags", "+faststart")


def pixels(path):
    return torch.stack([still.pixels for still in read_stills(path)])


# ------------------------------------------------------------------ good ones


def copied(path, out, frames=None):
    """What ``facelock lock`` does around its stages: read, write, join."""
    info, stills = probe(path), list(read_stills(path))
    shown = torch.stack([still.pixels for still in stills])
    segment = out.with_name(out.name + ".segment.mkv")
    with SegmentWriter(segment, (info.height, info.width), info.fps, look=info.look, crf=2) as writer:
        writer.write(shown)
    timing = Timing([still.pts for still in stills], info.time_base, stills[-1].duration)
    join_segments([segment], out, fps=info.fps, timing=timing, sound_of=path)
    return info, stills, probe(out), list(read_stills(out))


KINDS = {
    "ten bits, HDR tags": (
        "a.mp4",
        ["-pix_fmt", "yuv420p10le"],
        "setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084:range=tv",
        Look(10, (2, 2), 9, 9, 16),
    ),
    "4:4:4": ("b.mp4", ["-pix_fmt", "yuv444p"], "null", Look(8, (1, 1), 2, 2, 2)),
    "4:2:2": ("c.mkv", ["-pix_fmt", "yuv422p"], "null", Look(8, (2, 1), 2, 2, 2)),
    "full range": ("d.mp4", ["-pix_fmt", "yuvj420p"], "null", Look(8, (2, 2), 2, 2, 2, True)),
    "BT.601": (
        "e.mp4",
        ["-pix_fmt", "yuv420p"],
        "setparams=colorspace=smpte170m:color_primaries=smpte170m:color_trc=smpte170m",
        Look(8, (2, 2), 6, 6, 6),
    ),
    "wide pixels": (
        "f.mp4",
        ["-pix_fmt", "yuv420p"],
        "setsar=4/3",
        Look(8, (2, 2), 2, 2, 2, sar=Fraction(4, 3)),
    ),
    "RGB": ("g.mkv", ["-c:v", "ffv1", "-pix_fmt", "gbrp"], "null", Look(8, (1, 1), 1, 2, 2)),
    "odd size": (
        "h.mkv",
        ["-c:v", "ffv1", "-pix_fmt", "yuv444p"],
        "scale=97:63,setsar=1",
        Look(8, (1, 1), 2, 2, 2),
    ),
    "webm": ("i.webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p"], "null", Look(8, (2, 2), 2, 2, 2)),
    "a time base of a second": (
        "j.avi",
        ["-c:v", "mpeg4", "-pix_fmt", "yuv420p"],
        "null",
        Look(8, (2, 2), 2, 2, 2),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_comes_out_as_it_went_in(folder, kind):
    name, options, filters, look = KINDS[kind]
    path = ffmpeg(folder / name, *PICTURES, "-vf", filters, *options)
    info, stills, after, again = copied(path, folder / f"{name}.out.mp4")
    assert info.look == look == after.look
    assert (info.width, info.height) == (after.width, after.height)
    assert [s.pts * info.time_base for s in stills] == [s.pts * after.time_base for s in again]
    assert len(stills) == 10 and after.fps == info.fps
    difference = torch.stack([s.pixels for s in stills]) - torch.stack([s.pixels for s in again])
    assert float(difference.abs().mean()) < 0.02


def test_odd_sizes_are_kept_whatever_the_chroma(folder):
    assert pixel_format(Look(), (64, 96)) == "yuv420p"
    assert pixel_format(Look(), (63, 96)) == pixel_format(Look(), (64, 97)) == "yuv444p"
    assert pixel_format(Look(10, (2, 1)), (63, 96)) == "yuv422p10le"
    assert pixel_format(Look(8, (4, 1)), (64, 96)) == "yuv422p"
    path = video(folder / "odd.mp4", ramps(3, 33, 51))
    assert (probe(path).width, probe(path).height) == (51, 33)
    assert float((pixels(path) - ramps(3, 33, 51)).abs().mean()) < 0.01


def test_ten_bits_hold_more_than_eight(folder):
    steps = torch.linspace(0.4, 0.45, 96).view(1, 1, 1, 96).expand(2, 3, 64, 96)
    deep = video(folder / "deep.mp4", steps, look=Look(depth=10), crf=1)
    flat = video(folder / "flat.mp4", steps, crf=1)
    values = [len(pixels(path)[0, 1, 32].unique()) for path in (deep, flat)]
    assert values[0] > 35 > 20 > values[1]


@pytest.mark.parametrize(("size", "matrix"), [("96x64", "bt601"), ("1280x720", "bt709")])
def test_untagged_colours_are_read_as_players_do(folder, size, matrix):
    colour = f"color=c=0xC83C28:s={size}:r=10:d=0.2,format=rgb24,scale=out_color_matrix={matrix}:out_range=tv"
    path = ffmpeg(
        folder / f"{matrix}.mp4",
        "-f",
        "lavfi",
        "-i",
        f"{colour},format=yuv420p,setparams=colorspace=unknown",
        "-crf",
        1,
    )
    assert probe(path).look.matrix == 2
    middle = pixels(path)[0, :, 30, 40] * 255
    assert float((middle - torch.tensor([200.0, 60.0, 40.0])).abs().max()) < 2.5


@pytest.mark.parametrize(("size", "matrix"), [("96x64", "bt709"), ("1280x720", "smpte170m")])
def test_tagged_colours_are_read_by_their_tag(folder, size, matrix):
    colour = f"color=c=0xC83C28:s={size}:r=10:d=0.2,format=rgb24,scale=out_color_matrix={matrix}:out_range=tv"
    tagged = f"{colour},format=yuv420p,setparams=colorspace={matrix}"
    path = ffmpeg(folder / f"{matrix}-tagged.mp4", "-f", "lavfi", "-i", tagged, "-crf", 1)
    middle = pixels(path)[0, :, 30, 40] * 255
    assert float((middle - torch.tensor([200.0, 60.0, 40.0])).abs().max()) < 2.5


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotated_videos_are_read_upright_and_written_upright(folder, plain, turn):
    path = ffmpeg(folder / f"turned{turn}.mp4", "-display_rotation", turn, "-i", plain, "-c", "copy")
    info, stills, after, again = copied(path, folder / f"turned{turn}.out.mp4")
    upright = torch.rot90(pixels(plain), turn // 90, (2, 3))
    assert (info.height, info.width) == tuple(upright.shape[-2:]) == (after.height, after.width)
    assert torch.equal(torch.stack([s.pixels for s in stills]), upright)
    assert after.turn == 0 and float((again[0].pixels - upright[0]).abs().mean()) < 0.03


def test_a_turned_video_keeps_its_untagged_colours(folder):
    flat = torch.tensor([0.8, 0.2, 0.1]).view(1, 3, 1, 1).expand(2, 3, 576, 704)
    path = video(
        folder / "sd.mp4", flat, look=Look(matrix=2), crf=1
    )  # BT.601 by its size; upright it is taller
    path = ffmpeg(folder / "sd90.mp4", "-display_rotation", 90, "-i", path, "-c", "copy")
    _, stills, _, again = copied(path, folder / "sd90.out.mp4")
    assert float((stills[0].pixels - flat[0, :, :1, :1]).abs().max()) < 0.02
    assert float((stills[0].pixels - again[0].pixels).abs().max()) < 0.02


PTS = [0, 500, 1000, 1017, 4000, 4001, 9000]


def test_every_frame_keeps_its_own_time(folder):
    path = video(folder / "vfr.mp4", ramps(7, 64, 96), pts=PTS)
    info, stills, after, again = copied(path, folder / "vfr.out.mp4")
    assert [s.pts * info.time_base for s in stills] == [Fraction(pts, 10_000) for pts in PTS]
    assert [s.pts * after.time_base for s in again] == [Fraction(pts, 10_000) for pts in PTS]
    times = [time for chunk in read_chunks(path, 3) for time in chunk.times]
    assert times == [Fraction(pts, 10_000) for pts in PTS]


def test_usual_colours_are_those_of_everybodys_readers(folder, plain):
    deep = ffmpeg(folder / "deep.mp4", "-i", plain, "-pix_fmt", "yuv420p10le", "-c:v", "libx264")
    for path in (plain, deep):
        (chunk,) = read_chunks(path, 100, usual=True)
        with av.open(str(path)) as container:
            theirs = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        pictures = torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(chunk.frames, pictures)
        (raw,) = read_chunks(path, 100, usual=True, raw=True)
        assert raw.frames.dtype == torch.uint8 and torch.equal(raw.frames.float() / 255, pictures)
        assert raw.times == chunk.times and raw.frames.permute(0, 2, 3, 1).is_contiguous()
        (exact,) = read_chunks(path, 100)
        assert 0 < float((exact.frames - pictures).abs().mean()) < 0.05


def test_stored_numbers_become_the_frames_where_they_are_wanted(folder, plain):
    deep = ffmpeg(folder / "deep.mp4", "-i", plain, "-pix_fmt", "yuv420p10le", "-c:v", "libx264")
    turned = ffmpeg(folder / "stored90.mp4", "-display_rotation", 90, "-i", plain, "-c", "copy")
    for path, kind in ((plain, torch.uint8), (deep, torch.uint16), (turned, torch.uint8)):
        stored, exact = (list(read_chunks(path, 2, start=1, raw=given)) for given in (True, False))
        assert [chunk.times for chunk in stored] == [chunk.times for chunk in exact]
        for one, other in zip(stored, exact, strict=True):
            assert one.frames.dtype == kind
            frames = lifted(one.frames, "cpu")
            assert frames.is_contiguous() and torch.equal(frames, other.frames)


def test_frames_without_a_time_get_one(folder, caplog):
    info = probe(video(folder / "cfr.mp4", ramps(2, 64, 96)))
    step = round(1 / (info.fps * info.time_base))
    assert footage_io._rising(None, None, info) == 0
    assert footage_io._rising(None, 7, info) == footage_io._rising(7, 7, info) == 7 + step
    assert footage_io._rising(9, 7, info) == 9 and footage_io._rising(-5, None, info) == -5


@pytest.mark.parametrize(
    ("codec", "kept"), [("aac", True), ("libmp3lame", True), ("libopus", True), ("pcm_s16le", False)]
)
def test_sound_is_copied_where_an_mp4_holds_it(folder, codec, kept):
    path = ffmpeg(
        folder / f"{codec}.mkv", *PICTURES, *SOUND, *SOUND, "-map", 0, "-map", 1, "-map", 2, "-c:a", codec
    )
    info, _, after, _ = copied(path, folder / f"{codec}.mp4")
    before, now = audio_packets(path), audio_packets(folder / f"{codec}.mp4")
    assert len(after.audio) == len(info.audio) == 2
    assert ([p for _, p in before] == [p for _, p in now]) == kept
    if kept:
        assert all(abs(a - b) < Fraction(1, 500) for (a, _), (b, _) in zip(before, now, strict=True))
    else:
        assert after.audio[0] == "aac"
        assert abs(float(now[-1][0]) - 1.3) < 0.05


def test_sound_stays_where_it_is_when_a_clip_was_cut(folder, plain):
    """Cut without encoding: the sound begins before the pictures, and the file's index knows of frames never shown."""
    path = ffmpeg(folder / "cut.mp4", "-ss", "0.35", "-i", plain, "-c", "copy")
    _, stills, _, again = copied(path, folder / "cut.out.mp4")
    assert len(stills) == len(again) < 10
    offset = stills[0].pts * probe(path).time_base
    assert [(t - offset, p) for t, p in audio_packets(path)] == audio_packets(folder / "cut.out.mp4")


def test_pictures_that_begin_after_the_sound_begin_at_zero(folder):
    path = ffmpeg(
        folder / "late.mkv", "-itsoffset", "0.5", *PICTURES, *SOUND, "-pix_fmt", "yuv420p", "-c:a", "aac"
    )
    info, stills, after, again = copied(path, folder / "late.mp4")
    start = stills[0].pts * info.time_base
    assert start == Fraction(1, 2) and again[0].pts == 0
    assert [s.pts * info.time_base - start for s in stills] == [s.pts * after.time_base for s in again]
    before, now = audio_packets(path), audio_packets(folder / "late.mp4")
    assert [packet for _, packet in before] == [packet for _, packet in now]
    assert all(abs(a - start - b) < Fraction(1, 500) for (a, _), (b, _) in zip(before, now, strict=True))


def test_only_what_is_asked_for_is_converted(plain):
    stills = list(read_stills(plain, only=[2, 7]))
    assert [s.index for s in stills if s.pixels is not None] == [2, 7] and len(stills) == 10
    assert torch.equal(stills[7].pixels, pixels(plain)[7])
    chunks = list(read_chunks(plain, 4, start=3))
    assert [(c.start, len(c)) for c in chunks] == [(3, 4), (7, 3)]
    assert torch.equal(torch.cat([c.frames for c in chunks]), pixels(plain)[3:])


# ------------------------------------------------------------------ bad ones


def a_file(name, data):
    return lambda folder, plain: _written(
        folder / name, data if isinstance(data, bytes) else data(folder, plain)
    )


def _written(path, data):
    path.write_bytes(data)
    return path


def made(name, *arguments):
    return lambda folder, plain: ffmpeg(folder / name, *arguments)


def still(name, *options):
    return made(name, *PICTURES, "-frames:v", 1, *options)


def avi(*changes):
    def data(folder, plain):
        source = folder / "source.avi"
        if not source.exists():
            ffmpeg(source, "-f", "lavfi", "-i", "color=s=300x300:r=10:d=0.3", "-c:v", "mjpeg")
        return patched(source.read_bytes(), *changes)

    return data


def huge(width, height):
    def data(folder, plain):
        source = folder / "source.mkv"
        if not source.exists():
            ffmpeg(source, "-f", "lavfi", "-i", "color=s=300x300:r=10:d=0.3", "-c:v", "ffv1")
        sides = [(b"\xb0\x82\x01\x2c", 2, width.to_bytes(2)), (b"\xba\x82\x01\x2c", 2, height.to_bytes(2))]
        return patched(source.read_bytes(), *sides)

    return data


def empty_track(folder, plain):
    with av.open(str(folder / "none.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        out.start_encoding()
    return folder / "none.mp4"


def two_sizes(folder, plain):
    parts = [
        ffmpeg(
            folder / f"{size}.ts", "-f", "lavfi", "-i", f"testsrc2=s={size}:r=10:d=1", "-c:v", "mpeg2video"
        )
        for size in ("96x64", "128x64")
    ]
    return b"".join(part.read_bytes() for part in parts)


def halved(share, ending="mp4"):
    def data(folder, plain):
        path = plain
        if ending != "mp4":
            path = ffmpeg(folder / f"whole.{ending}", "-i", plain, "-c", "copy")
        whole = path.read_bytes()
        return whole[: int(len(whole) * share)]

    return data


COVER = ("-disposition:v", "attached_pic")
BAD = {
    "index lost": (a_file("a1.mp4", lambda f, p: patched(p.read_bytes(), (b"moov", 0, b"junk"))), "damaged"),
    "cut short": (a_file("a2.mp4", halved(0.7)), "cut short"),
    "cut to its header": (a_file("a3.mp4", halved(0.1)), "damaged|no pictures"),
    "cut mkv": (a_file("a4.mkv", halved(0.4, "mkv")), "cut short"),
    "empty": (a_file("a5.mp4", b""), "is empty"),
    "no frames": (empty_track, "damaged|no pictures"),
    "junk": (a_file("a6.mp4", b"\x12junk" * 500), "damaged"),
    "text": (a_file("a7.mp4", b"some words. " * 100), "damaged"),
    "web page": (a_file("a8.mp4", b"<html><video src='a.mp4'>"), "is a text"),
    "sound only": (made("b1.m4a", *SOUND), "sound but no pictures"),
    "sound with a cover": (
        made("b2.mp4", *SOUND, *PICTURES, "-map", 0, "-map", 1, "-frames:v", 1, "-c:v", "png", *COVER),
        "sound but no pictures",
    ),
    "png": (still("b3.png"), "is a picture"),
    "jpeg named mp4": (a_file("b4.mp4", b"\xff\xd8\xff\xe0" + bytes(500)), "is a picture"),
    "gif": (still("b5.gif"), "is a picture"),
    "avif": (a_file("b6.avif", b"\0\0\0\x20ftypavif" + bytes(200)), "is a picture"),
    "webp": (a_file("b7.mp4", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(50)), "is a picture"),
    "ffconcat": (a_file("c1.mp4", lambda f, p: f"ffconcat version 1.0\nfile '{p}'\n".encode()), "is a playlist"),
    "ffconcat below": (a_file("c2.mp4", lambda f, p: f"# hi\nffconcat version 1.0\nfile '{p}'".encode()), "damaged"),
    "HLS": (a_file("c3.mp4", lambda f, p: f"#EXTM3U\n#EXTINF:1,\n{p}\n#EXT-X-ENDLIST\n".encode()), "is a playlist"),
    "m3u8": (a_file("c4.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"), "is a playlist"),
    "SDP": (a_file("c5.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"), "damaged"),
    "DASH": (a_file("c6.mpd", b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1:9/</BaseURL>"), "is a playlist"),
    "a URL": (lambda f, p: "http://127.0.0.1:9/a.mp4", "no such file"),
    "a file URL": (lambda f, p: f"file://{p}", "no such file"),
    "concat:": (lambda f, p: f"concat:{p}", "no such file"),
    "pipe:": (lambda f, p: "pipe:0", "no such file"),
    "a device": (lambda f, p: "/dev/zero", "not a regular file"),
    "a folder": (lambda f, p: f, "is a folder"),
    "a name with NUL": (lambda f, p: "a\0b.mp4", "no such file|cannot be read"),
    "an endless name": (lambda f, p: "x" * 5000 + ".mp4", "cannot be read|no such file"),
    "20,000 × 20,000": (a_file("d1.mkv", huge(20_000, 20_000)), "no size that can be decoded"),
    "17,000 wide": (a_file("d2.mkv", huge(17_000, 300)), "17000 × 300"),
    "too many pixels": (a_file("d3.mkv", huge(16_000, 9_000)), "16000 × 9000"),
    "a million frames a second": (
        a_file("d4.avi", avi((b"strh", 28, (1).to_bytes(4, "little") + (10**6).to_bytes(4, "little")))),
        "1e\\+06 frames per second",
    ),
    "a size that changes": (a_file("d5.ts", two_sizes), "changes its size"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_videos_are_refused_in_one_sentence(folder, plain, kind):
    make, reason = BAD[kind]
    path = make(folder, plain)
    began = time.perf_counter()
    with pytest.raises(InputError, match=reason) as caught:
        probe(path)
        list(read_stills(path))
    assert time.perf_counter() - began < 5
    assert caught.value.exit_code == 2
    said = str(caught.value)
    assert said.startswith(str(Path(path))) and said.endswith(".") and "\n" not in said


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"]
)
@pytest.mark.parametrize("mode", ["probe", "frames", "sound"])
def test_the_decoder_itself_opens_no_playlist(folder, plain, text, mode):
    path, out = _written(folder / "list.mp4", text.format(plain.name).encode()), io.BytesIO()
    video_worker.answer({"path": str(path), "mode": mode}, out)
    assert video_worker.HEADER.unpack_from(out.getvalue())[0] == video_worker.REFUSED
    for name in (f"concat:{plain}", "http://127.0.0.1:9/a.mp4", f"subfile,,start,0,end,0,,:{plain}"):
        out = io.BytesIO()
        video_worker.answer({"path": name, "mode": mode}, out)
        assert video_worker.HEADER.unpack_from(out.getvalue())[0] == video_worker.REFUSED


def test_sound_files_are_asked_in_the_same_way(folder, plain):
    check_audio(plain)
    assert count_frames(plain) == 10
    with pytest.raises(InputError, match="no sound"):
        check_audio(video(folder / "silent.mp4", ramps(2, 64, 96)))


def test_a_frame_rate_that_nobody_knows_is_refused(plain, monkeypatch):
    class Unknown:
        average_rate = guessed_rate = base_rate = None

    assert video_worker._rate(Unknown()) == 0
    with av.open(str(plain)) as container:
        monkeypatch.setattr(video_worker, "_rate", lambda stream: 0)
        with pytest.raises(video_worker.Refused, match="0 frames per second"):
            video_worker._video(container)


# ------------------------------------------------------------------ the decoder's own process


def instead(monkeypatch, code):
    """Put other code in the worker's place."""
    start = subprocess.Popen

    def popen(command, **options):
        return start([sys.executable, "-c", f"import os, sys, time, signal\n{code}"], **options)

    monkeypatch.setattr(footage_io.subprocess, "Popen", popen)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed .SIGSEGV"),
        ("os._exit(7)", "crashed .exit code 7"),
        ("os.write(1, bytes(7)); os._exit(0)", "crashed"),
        ("time.sleep(60)", "gave nothing for"),
    ],
)
def test_a_decoder_that_crashes_or_hangs(plain, monkeypatch, code, reason):
    monkeypatch.setattr(footage_io, "PATIENCE", 1.5)
    instead(monkeypatch, code)
    for work in (probe, lambda path: list(read_stills(path))):
        with pytest.raises(InputError, match=reason):
            work(plain)


def test_a_decoder_killed_while_it_reads(folder):
    reader = footage_io.VideoReader(video(folder / "long.mp4", ramps(40, 256, 256)))  # more than a pipe holds
    steps = iter(reader)
    next(steps)
    os.kill(reader._child._child.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"crashed .SIGKILL"):
        list(steps)


def test_a_reader_that_stops_early_leaves_no_process(plain):
    chunks = read_chunks(plain, 1)
    next(chunks)
    chunks.close()
    reader = footage_io.VideoReader(plain)
    reader.close()
    assert reader._child._child.returncode is not None


def test_the_decoder_knows_no_torch_and_is_bounded(plain):
    code = (
        "import json, resource, sys\nfrom facelock.video import worker as w\n"
        "w.answer({'path': sys.argv[1], 'mode': 'probe'}, open('/dev/null', 'wb', 0))\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)\n"
        "sys.argv[1] = json.dumps({'path': sys.argv[1], 'mode': 'probe'})\nw.main()\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0] == w.MEMORY, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(plain)], capture_output=True, check=True)
    assert done.stdout.startswith(b"False False\n") and done.stderr == b"True\n"


# ------------------------------------------------------------------ fuzz

FUZZ = """
import io, json, random, sys
from facelock.video import worker

def mutated(data, draw):
    copy = bytearray(data)
    kind = draw.randrange(4)
    if kind == 0:
        return bytes(copy[: draw.randrange(len(copy))])
    for _ in range(draw.choice([1, 4, 16, 64])):
        place = draw.randrange(len(copy) if kind == 1 else min(len(copy), 1500))
        copy[place] = draw.randrange(256) if kind == 3 else copy[place] ^ 1 << draw.randrange(8)
    return bytes(copy)

names, seed, path = sys.argv[1].split(), int(sys.argv[2]), sys.argv[3]
sources, draw, kinds = [open(name, 'rb').read() for name in names], random.Random(seed), {}
worker.resource.setrlimit(worker.resource.RLIMIT_AS, (worker.MEMORY, worker.MEMORY))
for number in range(int(sys.argv[4])):
    with open(path, 'wb') as file:
        file.write(mutated(sources[number % len(sources)], draw))
    for mode in ('probe', 'frames'):
        out = io.BytesIO()
        worker.answer({'path': path, 'mode': mode}, out)
        data, place, last = out.getvalue(), 0, None
        while place < len(data):
            last, _, _, length = worker.HEADER.unpack_from(data, place)
            place += worker.HEADER.size + length
        assert place == len(data) and last in (worker.INFO, worker.END, worker.REFUSED), last
        kinds[f'{mode}{last}'] = kinds.get(f'{mode}{last}', 0) + 1
    print(number, flush=True)
print(json.dumps(kinds))
"""


def test_mutated_videos_never_crash_or_hang(folder):
    """800 mutated clips through the worker's own code, which must answer each; then some through its process."""
    small = ramps(6, 32, 48)
    sources = [video(folder / "fuzz.mp4", small, crf=30)]
    sources.append(ffmpeg(folder / "fuzz.mkv", "-i", sources[0], "-c", "copy"))
    sources.append(ffmpeg(folder / "fuzz.avi", "-i", sources[0], "-c:v", "mjpeg"))
    sources.append(ffmpeg(folder / "fuzz.webm", "-i", sources[0], "-c:v", "libvpx-vp9", "-crf", 40))
    command = [sys.executable, "-c", FUZZ, " ".join(map(str, sources)), "4", str(folder / "mutant"), "800"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (len(lines), done.stderr[-2000:])
    kinds = json.loads(lines[-1])
    assert sum(kinds.values()) == 1600 and kinds["frames4"] > 200 and kinds["frames3"] > 100
    draw = random.Random(5)
    for _ in range(10):
        data = bytearray(sources[0].read_bytes())
        for _ in range(20):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path = _written(folder / "mutant.mp4", bytes(data))
        try:
            list(read_stills(path))
        except InputError as error:
            assert "\n" not in str(error)


def test_a_file_is_probed_once_until_it_changes(folder, monkeypatch):
    path, asked = video(folder / "once.mp4", ramps(2, 64, 96)), []
    ask = footage_io._ask
    monkeypatch.setattr(footage_io, "_ask", lambda *given: asked.append(given) or ask(*given))
    first = probe(path)
    assert probe(str(path)) == first and len(asked) == 1
    video(path, ramps(3, 32, 64))
    assert probe(path).width == 64 != first.width and len(asked) == 2
    path.unlink()
    with pytest.raises(InputError, match="there is no such file"):
        probe(path)
