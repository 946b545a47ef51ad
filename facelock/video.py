"""Video in and out: segments written by ffmpeg, joined without re-encoding, and clips read chunk by chunk.

::

    with SegmentWriter(Path("00000.mkv"), (256, 256), Fraction(12)) as writer:
        writer.write(frames)                       # (T, 3, H, W) in [0, 1]
    join_segments([Path("00000.mkv")], Path("clip.mp4"), fps=Fraction(12))
    for chunk in read_chunks("clip.mp4", 24): ...

ffmpeg is the one in ``FACELOCK_FFMPEG``, else the system's, else the binary that comes with imageio-ffmpeg.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import av.container
import av.error
import ffmpeg
import numpy as np
import torch
from torch import Tensor

from facelock.errors import EncoderError, FaceLockError, InputError, StorageError
from facelock.files import publish, storage
from facelock.types import Chunk

PRESET = "veryfast"
"""Of x264: a third of the time of ``medium`` for some 10 % more bytes at the same quality."""
LONGEST_SIDE = 16384
FASTEST = 1000
PATIENCE = 120.0
"""Seconds that ffmpeg may take to finish after its last frame."""

_VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
_AUDIO_FORMATS = f"{_VIDEO_FORMATS},wav,w64,aiff,mp3,flac,ogg,aac,caf"
_BITEXACT = {"fflags": "+bitexact", "flags": "+bitexact", "map_metadata": -1}


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says, checked."""

    width: int
    height: int
    fps: Fraction
    frames: int
    has_audio: bool

    @property
    def seconds(self) -> float:
        """Length of the pictures."""
        return float(self.frames / self.fps)


def find_ffmpeg() -> str:
    """Path of the ffmpeg to use. Raises ``EncoderError`` when there is none."""
    chosen = os.environ.get("FACELOCK_FFMPEG")
    if chosen:
        found = shutil.which(chosen)
        if not found:
            raise EncoderError(f"FACELOCK_FFMPEG={chosen} is not a program. Correct or unset that variable.")
        return found
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise EncoderError("ffmpeg is missing. Install it, or give pip install imageio-ffmpeg.") from None


class SegmentWriter:
    """Encodes frames to one closed Matroska segment: H.264, yuv420p, BT.709, the same bytes for the same frames.

    Until it is closed without an error only ``<name>.part`` exists. Raises ``EncoderError`` when ffmpeg is
    missing or dies, ``StorageError`` when the disk is full, ``FaceLockError`` for frames that are not pictures.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], fps: Fraction, *, crf: float = 16) -> None:
        """``size`` is (height, width) in pixels, both even; ``crf`` 0 (lossless) to 51."""
        self.path, self.size = Path(path), (int(size[0]), int(size[1]))
        self._part = self.path.with_name(self.path.name + ".part")
        height, width = self.size
        raw = {"format": "rawvideo", "pix_fmt": "rgb24", "video_size": (width, height), "framerate": str(fps)}
        # Without B-frames decoding order is display order, which lets join_segments count the time exactly.
        coded = {
            "vcodec": "libx264", "preset": PRESET, "crf": crf, "bf": 0, "pix_fmt": "yuv420p", "threads": 1,
        }  # fmt: skip
        self._stream = (
            ffmpeg.input("pipe:", **raw)
            .filter(
                "scale",
                out_color_matrix="bt709",
                out_range="tv",
                flags="accurate_rnd+full_chroma_int+bitexact",
            )
            .filter("setparams", color_primaries="bt709", color_trc="bt709", colorspace="bt709", range="tv")
            .output(str(self._part), format="matroska", **coded, **_BITEXACT)
        )
        self._process: _Process | None = None

    def __enter__(self) -> SegmentWriter:
        with storage(self._part), suppress(FileNotFoundError):
            self._part.unlink()
        self._process = _Process(self._stream, self.path)
        return self

    def write(self, frames: Tensor) -> None:
        """Append (T, 3, H, W) frames in [0, 1]."""
        if tuple(frames.shape[1:]) != (3, *self.size):
            raise FaceLockError(
                f"a segment of {self.size} was given frames of {tuple(frames.shape)}; please report this."
            )
        if not bool(torch.isfinite(frames).all()):
            raise FaceLockError("frames to encode hold NaN or infinity; please report this.")
        if self._process is None:
            raise FaceLockError("the segment is not open; use it in a with block.")
        pixels = (frames.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        self._process.feed(pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        process, self._process = self._process, None
        try:
            if process is None:
                return
            if kind is not None:
                process.kill()
                return
            process.finish()
            publish(self._part, self.path)
        finally:
            with suppress(OSError):
                self._part.unlink()


class _Process:
    """One ffmpeg, fed through its standard input, whose last words are kept."""

    def __init__(self, stream: Any, target: Path) -> None:
        self._target = target
        command = [find_ffmpeg(), "-nostats", "-hide_banner", "-loglevel", "error"]
        command += [*ffmpeg.get_args(stream), "-y"]
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as ffmpeg runs
        try:
            # Its own session: Ctrl-C is for us to handle, between two steps.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                start_new_session=True,
            )
        except OSError as error:
            self._words.close()
            raise EncoderError(
                f"{command[0]}: cannot be started ({error.strerror}). Reinstall ffmpeg."
            ) from error

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._child.stdin is not None  # noqa: S101 - Popen was given a pipe
        return self._child.stdin

    def feed(self, data: bytes) -> None:
        try:
            self._stdin.write(data)
        except (BrokenPipeError, ValueError):
            self._fail()

    def finish(self) -> None:
        """Close the input and wait for a good end."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            code = self._child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise EncoderError("ffmpeg hangs. Give the same command again; finished work is kept.") from None
        if code:
            self._fail()
        self._words.close()

    def kill(self) -> None:
        """End it without mercy."""
        with suppress(OSError):
            self._child.kill()
        with suppress(OSError):
            self._stdin.close()
        self._child.wait()
        self._words.close()

    def _fail(self) -> None:
        with suppress(OSError):
            self._stdin.close()
        try:
            code = self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip().splitlines()
        self._words.close()
        if any("No space left" in line or "quota exceeded" in line for line in words):
            raise StorageError(
                f"{self._target}: the disk is full. Make room and give the same command again; finished work is kept."
            )
        end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = f": {words[0].rstrip('.')}" if words else ""
        raise EncoderError(f"ffmpeg died ({end}{said}). Give the same command again; finished work is kept.")


def join_segments(
    segments: Sequence[Path],
    path: str | Path,
    *,
    fps: Fraction,
    audio: str | Path | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Join segments into one mp4 that starts playing before it is loaded; pictures are copied, not encoded again.

    The clip has every frame of the segments, each exactly 1/``fps`` seconds. ``audio`` is a file whose first
    audio track is encoded as AAC, cut or padded with silence to the pictures' length. ``metadata`` holds
    mp4 tags (title, comment, description, ...). Raises ``EncoderError``, ``StorageError``, ``InputError``.
    """
    path, fps = Path(path), Fraction(fps)
    part, sound = path.with_name(path.name + ".part"), path.with_name(path.name + ".m4a.part")
    try:
        if audio is not None:
            _encode_audio(Path(audio), sound, sum(map(count_frames, segments)) / fps, path)
        with storage(path), _muxer(path):
            _mux(segments, part, fps, sound if audio is not None else None, metadata or {})
        publish(part, path)
    finally:
        for leftover in (part, sound):
            with suppress(OSError):
                leftover.unlink()


def _encode_audio(audio: Path, path: Path, seconds: Fraction, clip: Path) -> None:
    length = f"{float(seconds):.6f}"
    sound = sound_input(audio).filter("apad", whole_dur=length).filter("atrim", end=length)
    run_ffmpeg(sound.output(str(path), format="mp4", acodec="aac", audio_bitrate="192k", **_BITEXACT), clip)


def sound_input(path: Path) -> Any:
    """The first audio track of a file as an ffmpeg-python stream, at 48 kHz, from time 0; nothing else is opened."""
    sound = ffmpeg.input(str(path.absolute()), protocol_whitelist="file", format_whitelist=_AUDIO_FORMATS)
    return sound["a:0"].filter("asetpts", "PTS-STARTPTS").filter("aresample", 48000)


def run_ffmpeg(stream: Any, target: Path) -> None:
    """Run an ffmpeg-python graph; ``target`` is named in errors. Raises ``EncoderError``, ``StorageError``."""
    process = _Process(stream, target)
    try:
        process.finish()
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
    segments: Sequence[Path], path: Path, fps: Fraction, sound: Path | None, metadata: Mapping[str, str]
) -> None:
    """Copy packets, counting the time anew: Matroska rounds it to milliseconds, and mp4 need not."""
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with ExitStack() as stack:
        clip = stack.enter_context(av.open(str(path), "w", format="mp4", options=options))
        clip.metadata.update(metadata)
        with av.open(str(segments[0])) as first:
            pictures = clip.add_stream_from_template(first.streams.video[0])
        pictures.time_base = 1 / (fps * _ticks_per_frame(fps))
        track: Any = None
        pending: Iterator[Any] = iter(())
        if sound is not None:
            recording = stack.enter_context(av.open(str(sound)))
            track = clip.add_stream_from_template(recording.streams.audio[0])
            pending = (p for p in recording.demux(recording.streams.audio[0]) if p.size)
        waiting = next(pending, None)
        for index, packet in enumerate(_packets(segments)):
            while waiting is not None and float(waiting.pts * waiting.time_base) <= index / fps:
                waiting = _put(clip, track, waiting, pending)
            packet.stream, packet.time_base = pictures, 1 / (fps * _ticks_per_frame(fps))
            packet.pts = packet.dts = index * _ticks_per_frame(fps)
            packet.duration = _ticks_per_frame(fps)
            clip.mux(packet)
        while waiting is not None:
            waiting = _put(clip, track, waiting, pending)


def _put(clip: av.container.OutputContainer, track: Any, packet: av.Packet, more: Iterator[av.Packet]) -> Any:
    packet.stream = track
    clip.mux(packet)
    return next(more, None)


def _packets(segments: Sequence[Path]) -> Iterator[av.Packet]:
    for segment in segments:
        with av.open(str(segment)) as container:
            yield from (packet for packet in container.demux(container.streams.video[0]) if packet.size)


def _ticks_per_frame(fps: Fraction) -> int:
    """So many that the time base is above 10,000 ticks a second, which mp4 then keeps as it is."""
    return fps.denominator * 2 ** max(0, math.ceil(math.log2(10_000 / fps.numerator)))


def count_frames(path: str | Path) -> int:
    """Number of pictures in a video file, counted without decoding. Raises ``InputError``."""
    with _opened(Path(path), _VIDEO_FORMATS) as container:
        stream = _video(Path(path), container)
        return sum(1 for packet in container.demux(stream) if packet.size)


@contextmanager
def _opened(path: Path, formats: str) -> Iterator[av.container.InputContainer]:
    """The file itself and nothing it points to; whatever goes wrong inside is the file's fault."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise InputError(f"{path}: {what}. Check the name.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: cannot be read. Check its permissions.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty. Give another copy of it.")
    options = {"protocol_whitelist": "file", "format_whitelist": formats}
    try:
        with av.open(str(path.absolute()), options=options) as container:
            yield container
    except FaceLockError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, IndexError, MemoryError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{path}: is damaged, or not a kind of file that is read ({reason}). Give another copy."
        ) from error


def _rate(stream: av.VideoStream) -> Fraction:
    """Frames per second; 0 where nobody knows."""
    return Fraction(stream.average_rate or stream.base_rate or 0)


def _video(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise InputError(f"{path}: holds no pictures. Give a video.")
    stream = container.streams.video[0]
    width, height, rate = stream.width, stream.height, _rate(stream)
    if not width or not height or max(width, height) > LONGEST_SIDE:
        raise InputError(
            f"{path}: says it is {width} × {height} pixels. Give a video of 1 to {LONGEST_SIDE} each way."
        )
    if not rate or not 0 < rate <= FASTEST:
        raise InputError(
            f"{path}: says it has {rate} frames per second. Give a video of more than 0, up to {FASTEST}."
        )
    return stream


def probe(path: str | Path) -> VideoInfo:
    """Read a video's header. Raises ``InputError`` when it is missing, damaged, or holds no pictures."""
    path = Path(path)
    with _opened(path, _VIDEO_FORMATS) as container:
        stream = _video(path, container)
        rate = _rate(stream)
        frames, has_audio = stream.frames, bool(container.streams.audio)
        size = stream.width, stream.height
    return VideoInfo(*size, rate, frames or count_frames(path), has_audio)


def check_audio(path: str | Path) -> None:
    """Raise ``InputError`` unless the file holds sound that can be decoded."""
    path = Path(path)
    with _opened(path, _AUDIO_FORMATS) as container:
        if not container.streams.audio:
            raise InputError(f"{path}: holds no sound. Give an audio file such as a WAV or MP3.")
        if next(container.decode(container.streams.audio[0]), None) is None:
            raise InputError(f"{path}: holds no sound that can be decoded. Give another copy of it.")


def read_chunks(path: str | Path, length: int) -> Iterator[Chunk]:
    """Decode a video into chunks of ``length`` frames (the last one may be shorter), upright RGB.

    One chunk is in memory at a time. Raises ``InputError`` when the file cannot be decoded, or ends before the
    number of frames that its header says.
    """
    path = Path(path)
    declared = 0
    done, held = 0, list[np.ndarray]()
    with _opened(path, _VIDEO_FORMATS) as container:
        stream = _video(path, container)
        stream.thread_type = "AUTO"
        fps, declared = _rate(stream), stream.frames
        for frame in container.decode(stream):
            held.append(_upright(frame))
            if len(held) == length:
                yield Chunk(_frames(held), done, fps)
                done, held = done + length, []
    if held:
        yield Chunk(_frames(held), done, fps)
        done += len(held)
    if not done:
        raise InputError(f"{path}: holds no pictures that can be decoded. Give another copy of it.")
    if done < declared:
        raise InputError(
            f"{path}: is cut short, {done} of {declared} frames can be read. Give another copy of it."
        )


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8; a rotation that the file asks for is done."""
    pixels = frame.to_ndarray(format="rgb24")
    quarter = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.rot90(pixels, quarter) if quarter else pixels


def _frames(pictures: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float() / 255
