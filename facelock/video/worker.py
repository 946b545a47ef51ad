"""The process that opens other people's videos, so that a hostile one can hurt nothing else.

::

    python -P -m facelock.video.worker '{"path": "/clip.mp4", "mode": "frames"}'

Started by :mod:`facelock.video.reading`, which also ends it when it hangs. Its memory is bounded, only files themselves
are opened (no URL, no playlist, nothing they point to), and it knows neither torch nor the rest of FaceLock, so that it
starts in a tenth of a second. It answers on standard output with records: a header (:data:`HEADER`: kind, pts,
duration, length) and as many bytes. A request's ``mode`` is

``probe``   one ``INFO``: header, first picture and number of packets
``frames``  ``INFO``, then one record a picture in the order they are shown, then ``END``; the first ``skip`` pictures,
            and where ``only`` lists indices all others, come without pixels; with ``usual`` colours are what
            everybody's readers make of them, instead of what the file's tags ask for
``sound``   ``INFO`` once one piece of the first audio track was decoded
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import Any, BinaryIO

import av
import av.container
import av.error
import av.filter

HEADER = struct.Struct("<BqqI")
INFO, FRAME, HIDDEN, END, REFUSED = range(5)
"""Kinds of records; ``HIDDEN`` is a picture without its pixels, ``REFUSED`` holds a reason and what to do."""
NO_TIME = -(2**63)
"""A pts that the file does not give."""
MEMORY = 4 * 2**30
"""Bytes of address space; 64 million pixels of 10 bits with their decoder take a third of it."""
LONGEST_SIDE = 16384
MOST_PIXELS = 67_108_864
FASTEST = 1000
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
AUDIO_FORMATS = f"{VIDEO_FORMATS},wav,w64,aiff,mp3,flac,ogg,aac,caf"
UNSPECIFIED = 2
"""The matrix's number where a video does not say."""
_INDEXED = ("mov", "avi")
"""Formats whose index lists every packet from the beginning."""
_EXACT = "accurate_rnd+full_chroma_int+bitexact"
"""Flags of ffmpeg's scaler, without which pictures darken by half a level of 255."""
_SCALERS = {"rgb24": f"bilinear+{_EXACT}", "rgb48le": f"bicubic+full_chroma_inp+{_EXACT}"}
"""How colour samples become as many as pixels. Bilinear takes two thirds of the time; with 16 bits it goes wrong."""
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_EXPECTED = (
    av.error.FFmpegError, OSError, ValueError, IndexError, KeyError, EOFError, RuntimeError, AttributeError,
)  # fmt: skip


class Refused(Exception):
    """This file is not read: (what is wrong, what to do)."""


def main() -> None:
    """Answer the request in ``argv[1]``; always ends with a record that says how it went."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints does not reach the records
    with suppress(BrokenPipeError):
        answer(json.loads(sys.argv[1]), out)


def answer(request: Mapping[str, Any], out: BinaryIO) -> None:
    """Write the records that answer ``request`` to ``out``; whatever a file does ends in a record."""
    try:
        {"probe": _probe, "frames": _frames, "sound": _sound}[request["mode"]](request, out)
    except BrokenPipeError:
        raise
    except Refused as error:
        _send(out, REFUSED, list(error.args))
    except MemoryError:  # also ffmpeg's own
        what = f"needs more than {MEMORY >> 30} GiB to be decoded"
        _send(out, REFUSED, [what, "Give a smaller video"])
    except _EXPECTED as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        what = f"is damaged, or not a kind of file that is read ({str(reason).splitlines()[0]})"
        _send(out, REFUSED, [what, "Give another copy"])


def _send(
    out: BinaryIO, kind: int, value: object = None, *, pts: int = 0, duration: int = 0, data: bytes = b""
) -> None:
    body = memoryview(json.dumps(value).encode() if value is not None else data)
    out.write(HEADER.pack(kind, pts, duration, len(body)))
    while body:
        body = body[out.write(body) :]


def _open(path: str, formats: str) -> av.container.InputContainer:
    return av.open(path, options={"protocol_whitelist": "file", "format_whitelist": formats})


def _probe(request: Mapping[str, Any], out: BinaryIO) -> None:
    with _open(request["path"], VIDEO_FORMATS) as container:
        stream = _video(container)
        info = _describe(container, stream, next(iter(container.decode(stream)), None))
    with _open(request["path"], VIDEO_FORMATS) as container:
        stream = _video(container)
        info["packets"] = sum(1 for packet in container.demux(stream) if packet.size)
        _send(out, INFO, info)


def _frames(request: Mapping[str, Any], out: BinaryIO) -> None:
    skip, only = int(request.get("skip", 0)), request.get("only")
    wanted = None if only is None else set(only)
    with _open(request["path"], VIDEO_FORMATS) as container:
        stream = _video(container)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = min(8, os.cpu_count() or 1)  # each one holds pictures
        counts = {"packets": 0, "corrupt": 0}
        converter: _Converter | None = None
        make = _UsualConverter if request.get("usual") else _Converter
        for index, frame in enumerate(_decoded(container, stream, counts)):
            if converter is None:
                info = _describe(container, stream, frame)
                converter = make(info)
                _send(out, INFO, info)
            converter.check(frame, index)
            counts["corrupt"] += bool(frame.is_corrupt)
            shown = index >= skip and (wanted is None or index in wanted)
            pts = NO_TIME if frame.pts is None else int(frame.pts)
            data = converter(frame) if shown else b""
            _send(out, FRAME if shown else HIDDEN, pts=pts, duration=int(frame.duration or 0), data=data)
        if converter is None:
            raise Refused("holds no pictures that can be decoded", "Give another copy of it")
        promised = {"expected": _expected(container, stream), "seconds": _promised(stream)}
        _send(out, END, {**counts, **promised})


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, counts: dict[str, int]
) -> Iterator[av.VideoFrame]:
    """Pictures in the order of showing; ``counts`` learns how many packets there were."""
    shown = 0
    try:
        for packet in container.demux(stream):
            counts["packets"] += bool(packet.size)
            for frame in packet.decode():
                yield frame
                shown += 1
    except av.error.FFmpegError as error:
        if not shown:
            raise
        whole = _expected(container, stream)
        raise Refused(
            f"is cut short or damaged, {shown} of {whole or 'its'} frames can be read ({error.strerror})",
            "Give another copy of it",
        ) from error


def _expected(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Packets that the file says it has, 0 where it does not say: its index, which knows of edits, or its header."""
    if stream.frames and container.format.name.startswith(_INDEXED):
        return len(stream.index_entries) or stream.frames
    return 0 if container.format.name.startswith(_INDEXED) else int(stream.frames)


def _promised(stream: av.VideoStream) -> float:
    """The second at which the pictures end by a Matroska tag, 0 without one: all that tells a file that is cut."""
    with suppress(ValueError):
        hours, minutes, seconds = (float(part) for part in stream.metadata.get("DURATION", "").split(":"))
        return 3600 * hours + 60 * minutes + seconds
    return 0.0


def _video(container: av.container.InputContainer) -> av.VideoStream:
    """The first stream of moving pictures, whose header makes sense. Nothing is decoded."""
    still = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        what = "holds sound but no pictures" if container.streams.audio else "holds no pictures"
        raise Refused(what, "Give a video")
    stream = streams[0]
    width, height, rate = stream.width, stream.height, _rate(stream)
    if not width or not height:
        raise Refused(
            "gives its pictures no size that can be decoded", "Give another copy, or a smaller video"
        )
    if max(width, height) > LONGEST_SIDE or width * height > MOST_PIXELS:
        raise Refused(
            f"says it is {width} × {height} pixels",
            f"Give a video of 1 to {LONGEST_SIDE} each way and up to {MOST_PIXELS // 1_000_000} million in all",
        )
    if not 0 < rate <= FASTEST:
        raise Refused(
            f"says it has {float(rate):g} frames per second",
            f"Give a video of more than 0, up to {FASTEST}",
        )
    return stream


def _rate(stream: av.VideoStream) -> Any:
    """Frames per second; 0 where nobody knows."""
    return stream.average_rate or stream.guessed_rate or stream.base_rate or 0


def _describe(
    container: av.container.InputContainer, stream: av.VideoStream, frame: av.VideoFrame | None
) -> dict[str, Any]:
    """Everything that decides how the pictures are shown, as plain JSON values."""
    if frame is None:
        raise Refused("holds no pictures that can be decoded", "Give another copy of it")
    rate, base, parts = _rate(stream), stream.time_base or Fraction(1, 1000), frame.format.components
    sar = stream.sample_aspect_ratio or 0
    return {
        "width": frame.width,
        "height": frame.height,
        "turn": int(frame.rotation or 0),
        "fps": [rate.numerator, rate.denominator],
        "frames": int(stream.frames),
        "time_base": [base.numerator, base.denominator],
        "sar": [sar.numerator, sar.denominator] if sar > 0 else [1, 1],
        "format": frame.format.name,
        "rgb": bool(frame.format.is_rgb) or frame.format.name.startswith("pal"),
        "depth": max(part.bits for part in parts),
        "chroma": _chroma(frame),
        "matrix": int(frame.colorspace),
        "primaries": int(frame.color_primaries),
        "transfer": int(frame.color_trc),
        "full": int(frame.color_range) == 2 or frame.format.name.startswith("yuvj"),
        "audio": [
            track.codec_context.codec.canonical_name if track.codec_context else ""
            for track in container.streams.audio
        ],
        "title": container.metadata.get("title", ""),
    }


def _chroma(frame: av.VideoFrame) -> list[int]:
    """Pixels per colour sample across and down: [2, 2] is 4:2:0."""
    layout = frame.format
    if len(layout.components) < 3 or layout.is_rgb:
        return [1, 1]
    across = -(-frame.width // max(1, layout.chroma_width(frame.width)))
    return [across, -(-frame.height // max(1, layout.chroma_height(frame.height)))]


class _Converter:
    """Pictures as packed RGB bytes: 8 bits a value, or 16 where the source has more; by the right matrix."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self._size = info["width"], info["height"]
        self._layout = "rgb48le" if info["depth"] > 8 else "rgb24"
        self._pixel = 6 if info["depth"] > 8 else 3
        self._options = ""
        if not info["rgb"]:
            matrix = matrix_name(info["matrix"], *self._size)
            full = "pc" if info["full"] else "tv"
            self._options = f"in_color_matrix={matrix}:in_range={full}:"
        self._graph: av.filter.Graph | None = None
        self._format = ""

    def check(self, frame: av.VideoFrame, index: int) -> None:
        if (frame.width, frame.height) != self._size:
            raise Refused(
                f"changes its size from {self._size[0]} × {self._size[1]} to {frame.width} × {frame.height} "
                f"at frame {index}",
                "Cut it there, or encode it again in one size",
            )

    def __call__(self, frame: av.VideoFrame) -> bytes:
        if self._graph is None or frame.format.name != self._format:
            self._graph, self._format = self._build(frame), frame.format.name
        self._graph.push(frame)
        return self._packed(self._graph.pull())

    def _packed(self, picture: Any) -> bytes:
        """The rows of an RGB picture, without what lies between them in memory."""
        plane, row = picture.planes[0], self._size[0] * self._pixel
        data = memoryview(plane)
        if plane.line_size == row:
            return bytes(data[: row * self._size[1]])
        return b"".join(data[y * plane.line_size : y * plane.line_size + row] for y in range(self._size[1]))

    def _build(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        nodes = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            ),
            graph.add("scale", f"{self._options}flags={_SCALERS[self._layout]}"),
            graph.add("format", f"pix_fmts={self._layout}"),
            graph.add("buffersink"),
        ]
        for one, other in pairwise(nodes):
            one.link_to(other)
        graph.configure()
        return graph


class _UsualConverter(_Converter):
    """Pictures of 8 bits as PyAV's ``to_ndarray`` and OpenCV's ``VideoCapture`` give them, to the bit."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        super().__init__(info)
        self._pixel = 3

    def __call__(self, frame: av.VideoFrame) -> bytes:
        return self._packed(frame.reformat(format="rgb24"))


def matrix_name(tag: int, width: int, height: int) -> str:
    """The YUV matrix in ffmpeg's words: by the tag; without one BT.709 from HD on, BT.601 below, as players do."""
    return _MATRICES.get(tag) or ("bt709" if width >= 1280 or height > 576 else "bt601")


def _sound(request: Mapping[str, Any], out: BinaryIO) -> None:
    with _open(request["path"], AUDIO_FORMATS) as container:
        if not container.streams.audio:
            raise Refused("holds no sound", "Give an audio file such as a WAV or MP3")
        if next(iter(container.decode(container.streams.audio[0])), None) is None:
            raise Refused("holds no sound that can be decoded", "Give another copy of it")
        _send(out, INFO, {})


if __name__ == "__main__":
    main()
