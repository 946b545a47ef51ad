"""Segments joined into one mp4 without encoding them again, each frame at its exact time, with sound.

::

    join_segments(segments, Path("clip.mp4"), fps=Fraction(12), audio="voice.wav")
    join_segments(segments, Path("fixed.mp4"), fps=info.fps, timing=Timing(pts, info.time_base), sound_of="clip.mp4")
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import ffmpeg

from facelock.errors import EncoderError
from facelock.files import publish, storage
from facelock.video.ffmpeg_process import BITEXACT, FfmpegProcess
from facelock.video.reading import probe
from facelock.video.worker import AUDIO_FORMATS, VIDEO_FORMATS

COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"})
"""Audio that an mp4 holds as it is; other kinds become AAC."""
SOUND_PATIENCE = 3600.0
"""Seconds that a whole clip's sound may take to be copied or encoded."""


@dataclass(frozen=True)
class Timing:
    """When each frame is shown."""

    pts: Sequence[int]
    """Strictly rising, in units of ``base``; the first one becomes 0."""
    base: Fraction
    """Seconds per unit."""
    last: int = 0
    """Duration of the last frame; 0: as long as the one before it."""

    @property
    def start(self) -> Fraction:
        """Seconds at which the first frame is shown in the source."""
        return self.pts[0] * self.base

    def durations(self) -> list[int]:
        """Units that each frame stays."""
        gaps = [after - before for before, after in pairwise(self.pts)]
        return [*gaps, self.last or (gaps[-1] if gaps else 1)]


@dataclass(frozen=True)
class Soundtrack:
    """Sound that comes piece by piece from memory."""

    pieces: Iterable[bytes]
    """Little-endian float32 samples in [-1, 1], the channels' interleaved."""
    rate: int
    """Samples per second."""
    channels: int


def steady(frames: int, fps: Fraction) -> Timing:
    """Frames of exactly 1/``fps`` seconds."""
    ticks = _ticks_per_frame(fps)
    return Timing(range(0, frames * ticks, ticks), 1 / (fps * ticks), ticks)


def join_segments(
    segments: Sequence[Path],
    path: str | Path,
    *,
    fps: Fraction,
    audio: str | Path | None = None,
    metadata: Mapping[str, str] | None = None,
    timing: Timing | None = None,
    sound_of: str | Path | None = None,
    soundtrack: Soundtrack | None = None,
) -> None:
    """Join segments into one mp4 that starts playing before it is loaded; pictures are copied, not encoded again.

    The clip has every frame of the segments, each exactly 1/``fps`` seconds, or as ``timing`` says. ``audio`` is a
    file whose first audio track is encoded as AAC, cut or padded with silence to the pictures' length; ``soundtrack``
    is the same from memory, for where there is no ``audio``. ``sound_of`` is the video whose pictures these are: all
    its audio tracks are copied (:data:`COPIED`; others encoded as AAC) and stay where they are in relation to the
    pictures. ``metadata`` holds mp4 tags (title, comment, description, ...).
    Raises ``EncoderError``, ``StorageError``, ``InputError``.
    """
    path, fps = Path(path), Fraction(fps)
    part, sound = path.with_name(path.name + ".part"), path.with_name(path.name + ".m4a.part")
    try:
        times = timing or steady(sum(1 for _ in _packets(segments)), fps)
        if audio is not None:
            _encode_audio(Path(audio), sound, len(times.pts) / fps, path)
        elif soundtrack is not None:
            _encode_soundtrack(soundtrack, sound, len(times.pts) / fps, path)
        elif sound_of is not None:
            _copy_audio(Path(sound_of), sound, times.start, path)
        with storage(path), _muxer(path):
            _mux(segments, part, times, sound if sound.exists() else None, metadata or {})
        publish(part, path)
    finally:
        for leftover in (part, sound):
            with suppress(OSError):
                leftover.unlink()


def _encode_audio(audio: Path, path: Path, seconds: Fraction, clip: Path) -> None:
    run_ffmpeg(_as_aac(sound_input(audio), path, seconds), clip)


def _encode_soundtrack(track: Soundtrack, path: Path, seconds: Fraction, clip: Path) -> None:
    given = ffmpeg.input("pipe:", format="f32le", ar=track.rate, ac=track.channels)
    run_ffmpeg(_as_aac(given.audio.filter("aresample", 48000), path, seconds), clip, track.pieces)


def _as_aac(sound: Any, path: Path, seconds: Fraction) -> Any:
    """The stream ``sound``, cut or padded with silence to ``seconds``, as the file ``path``."""
    length = f"{float(seconds):.6f}"
    fitted = sound.filter("apad", whole_dur=length).filter("atrim", end=length)
    return fitted.output(str(path), format="mp4", acodec="aac", audio_bitrate="192k", **BITEXACT)


def sound_input(path: Path) -> Any:
    """The first audio track of a file as an ffmpeg-python stream, at 48 kHz, from time 0; nothing else is opened."""
    sound = ffmpeg.input(str(path.absolute()), protocol_whitelist="file", format_whitelist=AUDIO_FORMATS)
    return sound["a:0"].filter("asetpts", "PTS-STARTPTS").filter("aresample", 48000)


def _copy_audio(source: Path, path: Path, start: Fraction, clip: Path) -> None:
    """The tracks of ``source``, with their times counted from ``start`` seconds; nothing where there are none."""
    codecs = probe(source).audio
    if not codecs:
        return
    given = ffmpeg.input(str(source.absolute()), protocol_whitelist="file", format_whitelist=VIDEO_FORMATS)
    options: dict[str, Any] = {
        f"c:a:{number}": "copy" if codec in COPIED else "aac" for number, codec in enumerate(codecs)
    }
    options |= {"copyts": None, "output_ts_offset": f"{-float(start):.9f}", "avoid_negative_ts": "disabled"}
    run_ffmpeg(given["a"].output(str(path), format="mp4", **options, **BITEXACT), clip)


def run_ffmpeg(stream: Any, target: Path, given: Iterable[bytes] = ()) -> None:
    """Run an ffmpeg-python graph on what is ``given`` to its standard input, as far as it needs that.

    Errors name the ``target``.

    Raises ``EncoderError``, ``StorageError``.
    """
    process = FfmpegProcess(stream, target)
    try:
        for piece in given:
            if not process.offer(piece):
                break
        process.finish(SOUND_PATIENCE)
    except BaseException:
        process.kill()
        raise


@contextmanager
def _muxer(path: Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError) and error.errno and error.errno < 1000:
            raise OSError(error.errno, error.strerror) from error
        raise EncoderError(
            f"{path}: the segments cannot be joined ({error.strerror}). Give --restart."
        ) from error


def _mux(
    segments: Sequence[Path], path: Path, timing: Timing, sound: Path | None, metadata: Mapping[str, str]
) -> None:
    """Copy packets, counting the time anew: Matroska rounds it to milliseconds, and mp4 need not."""
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with ExitStack() as stack:
        clip = stack.enter_context(av.open(str(path), "w", format="mp4", options=options))
        clip.metadata.update(metadata)
        with av.open(str(segments[0])) as first:
            pictures = clip.add_stream_from_template(first.streams.video[0])
        pictures.time_base = timing.base
        pending = _sound(stack, clip, sound)
        waiting = next(pending, None)
        for packet, pts, duration in zip(_packets(segments), timing.pts, timing.durations(), strict=True):
            now = (pts - timing.pts[0]) * timing.base
            while waiting is not None and _seconds(waiting) <= now:
                clip.mux(waiting)
                waiting = next(pending, None)
            packet.stream, packet.time_base = pictures, timing.base
            packet.pts = packet.dts = pts - timing.pts[0]
            packet.duration = duration
            packet.is_keyframe = packet.is_keyframe and is_idr(bytes(packet))
            clip.mux(packet)
        while waiting is not None:
            clip.mux(waiting)
            waiting = next(pending, None)


def is_idr(packet: bytes) -> bool:
    """Whether an H.264 packet, units of four bytes of length each, is one that no later frame looks behind (type 5).

    Demuxers call every I frame a key frame, and players would begin at it.
    """
    place = 0
    while place + 4 < len(packet):
        kind = packet[place + 4] & 31
        if kind in (1, 5):
            return kind == 5
        place += 4 + int.from_bytes(packet[place : place + 4], "big")
    return False


def _seconds(packet: av.Packet) -> Fraction:
    return (packet.dts or 0) * (packet.time_base or Fraction(0))


def _sound(stack: ExitStack, clip: av.container.OutputContainer, path: Path | None) -> Iterator[av.Packet]:
    """Packets of the recording at ``path``, already given to new tracks of ``clip``."""
    if path is None:
        return iter(())
    recording = stack.enter_context(av.open(str(path)))
    tracks = {track.index: clip.add_stream_from_template(track) for track in recording.streams.audio}

    def given() -> Iterator[av.Packet]:
        for packet in recording.demux(recording.streams.audio):
            if packet.size:
                packet.stream = tracks[packet.stream.index]
                yield packet

    return given()


def _packets(segments: Sequence[Path]) -> Iterator[av.Packet]:
    for segment in segments:
        with av.open(str(segment)) as container:
            yield from (packet for packet in container.demux(container.streams.video[0]) if packet.size)


def _ticks_per_frame(fps: Fraction) -> int:
    """So many that the time base is above 10,000 ticks a second, which mp4 then keeps as it is."""
    return fps.denominator * 2 ** max(0, math.ceil(math.log2(10_000 / fps.numerator)))
