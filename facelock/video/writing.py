"""Video in and out: segments written by ffmpeg, joined without re-encoding, and clips read chunk by chunk.

::

    with SegmentWriter(Path("00000.mkv"), (256, 256), Fraction(12)) as writer:
        writer.write(frames)                       # (T, 3, H, W) in [0, 1]
    join_segments([Path("00000.mkv")], Path("clip.mp4"), fps=Fraction(12))
    for chunk in read_chunks("clip.mp4", 24): ...

Writing is here, joining in :mod:`facelock.video.joining`, reading in :mod:`facelock.video.reading`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg
import torch
from torch import Tensor

from facelock.errors import FaceLockError
from facelock.files import publish, storage
from facelock.video.crossing import Crossing
from facelock.video.encoders import coding, require_encoder
from facelock.video.ffmpeg_process import BITEXACT, FfmpegProcess, find_ffmpeg
from facelock.video.joining import Soundtrack, Timing, join_segments
from facelock.video.planes import FACTORS, SMALLEST, planes_420
from facelock.video.reading import Look, VideoInfo, check_audio, count_frames, probe, read_chunks
from facelock.video.ring import Ring, pieces
from facelock.video.worker import matrix_name

__all__ = [
    "Look",
    "SegmentWriter",
    "Soundtrack",
    "Timing",
    "VideoInfo",
    "check_audio",
    "count_frames",
    "find_ffmpeg",
    "join_segments",
    "probe",
    "read_chunks",
    "require_encoder",
]


class SegmentWriter:
    """Encodes frames to one closed Matroska segment: H.264, the same bytes for the same frames.

    How it looks (bits, chroma, colour matrix and tags, pixel shape) is a :class:`Look`; by default yuv420p, BT.709.
    Until it is closed without an error only ``<name>.part`` exists. The encoder is a process of its own, fed by a
    thread through a short :class:`~facelock.video.ring.Ring`. Raises ``EncoderError`` when ffmpeg is
    missing or dies, ``StorageError`` when the disk is full, ``FaceLockError`` for frames that are not pictures.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        fps: Fraction,
        *,
        crf: float = 16,
        look: Look | None = None,
        encoder: str = "x264",
        device: torch.device | str = "cpu",
    ) -> None:
        """``size`` is (height, width) in pixels; ``crf`` 0 (lossless) to 51; ``encoder`` x264 or nvenc.

        A size that the look's chroma does not divide is kept by encoding chroma in full (4:4:4). Frames that come from
        a ``device`` other than the CPU become YUV there where they can, to the same bytes; else ffmpeg converts them.
        """
        self.path, self.size = Path(path), (int(size[0]), int(size[1]))
        self.look = look or Look()
        self._part = self.path.with_name(self.path.name + ".part")
        height, width = self.size
        self._matrix = None if torch.device(device).type == "cpu" else _planar(self.look, self.size)
        layout = "yuv420p" if self._matrix else "rgb48le" if self.look.depth > 8 else "rgb24"
        raw = {"format": "rawvideo", "pix_fmt": layout, "video_size": (width, height), "framerate": str(fps)}
        coded: Mapping[str, Any] = coding(encoder, crf, pixel_format(self.look, self.size))
        stream = ffmpeg.input("pipe:", **raw)
        for name, options in _filters(self.look, self.size, convert=self._matrix is None):
            stream = stream.filter(name, **options)
        self._stream = stream.output(str(self._part), format="matroska", **coded, **BITEXACT)
        self._process: FfmpegProcess | None = None
        self._ring: Ring | None = None
        self._crossing = Crossing()

    def __enter__(self) -> SegmentWriter:
        with storage(self._part), suppress(FileNotFoundError):
            self._part.unlink()
        self._process = FfmpegProcess(self._stream, self.path)
        self._ring = Ring(self._process.feed)
        return self

    def write(self, frames: Tensor) -> None:
        """Append (T, 3, H, W) frames in [0, 1], on any device: what crosses to the CPU are bytes."""
        if tuple(frames.shape[1:]) != (3, *self.size):
            raise FaceLockError(
                f"a segment of {self.size} was given frames of {tuple(frames.shape)}; please report this."
            )
        if self._ring is None:
            raise FaceLockError("the segment is not open; use it in a with block.")
        with self._crossing.begin(frames):
            if not bool(torch.isfinite(frames).all()):
                raise FaceLockError("frames to encode hold NaN or infinity; please report this.")
            width = 3 if self._matrix is None else 1.5
            for piece in pieces(frames.detach(), int(width * self.size[0] * self.size[1])):
                self._ring.put(*self._crossing.send(self._pixels(piece)))

    def _pixels(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) in [0, 1] → the bytes that ffmpeg is told to expect, where the frames lie."""
        top, kind = (65535, torch.uint16) if self.look.depth > 8 else (255, torch.uint8)
        pixels = (frames.float().clamp(0, 1) * top).round().to(kind)
        if self._matrix is not None:
            return planes_420(pixels, self._matrix)
        return pixels.permute(0, 2, 3, 1).contiguous()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        process, self._process = self._process, None
        ring, self._ring = self._ring, None
        try:
            if process is None or ring is None:
                return
            if kind is not None:
                process.kill()
                ring.abandon()
                return
            try:
                ring.close()
            except BaseException:
                process.kill()
                raise
            process.finish()
            publish(self._part, self.path)
        finally:
            with suppress(OSError):
                self._part.unlink()


def pixel_format(look: Look, size: tuple[int, int]) -> str:
    """ffmpeg's name of the pixel format that keeps ``look`` at ``size`` (height, width)."""
    across, down = (min(2, side) for side in look.chroma)
    if size[1] % across or size[0] % down or across < down:
        across, down = 1, 1
    chroma = {(2, 2): "yuv420p", (2, 1): "yuv422p"}.get((across, down), "yuv444p")
    return f"{chroma}10le" if look.depth > 8 else chroma


def _planar(look: Look, size: tuple[int, int]) -> str | None:
    """The matrix by which :func:`planes_420` makes what ffmpeg would make of this look; None where it does not."""
    matrix = matrix_name(look.matrix, size[1], size[0])
    plain = pixel_format(look, size) == "yuv420p" and not look.full and min(size) >= SMALLEST
    return matrix if plain and matrix in FACTORS else None


def _filters(
    look: Look, size: tuple[int, int], *, convert: bool = True
) -> list[tuple[str, dict[str, object]]]:
    """From RGB to YUV by the look's own matrix, unless that is done; then its tags."""
    span = "pc" if look.full else "tv"
    scale: dict[str, object] = {
        "out_color_matrix": matrix_name(look.matrix, size[1], size[0]),
        "out_range": span,
        "flags": "accurate_rnd+full_chroma_int+bitexact",
    }
    tags: dict[str, object] = {
        "color_primaries": look.primaries,
        "color_trc": look.transfer,
        "colorspace": look.matrix,
        "range": span,
    }
    filters = [("scale", scale)] if convert else []
    filters.append(("setparams", tags))
    if look.sar != 1:
        filters.append(("setsar", {"sar": f"{look.sar.numerator}/{look.sar.denominator}"}))
    return filters
