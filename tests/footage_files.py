"""Small videos of every kind, good and bad, made by ffmpeg when a test asks for them."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

from facelock.video.reading import Look
from facelock.video.writing import SegmentWriter, Timing, find_ffmpeg, join_segments

PICTURES = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=10:d=1")
SOUND = ("-f", "lavfi", "-i", "sine=r=44100:d=1.3")


def ffmpeg(out: Path, *arguments: object) -> Path:
    """Run ffmpeg to make ``out``."""
    command = [find_ffmpeg(), "-y", "-v", "error", *map(str, arguments), str(out)]
    subprocess.run(command, check=True)
    return out


def video(
    out: Path,
    frames: Tensor,
    *,
    fps: int = 10,
    look: Look | None = None,
    pts: list[int] | None = None,
    base: Fraction = Fraction(1, 10_000),
    crf: float = 6,
) -> Path:
    """An mp4 of (T, 3, H, W) ``frames``, at the times ``pts`` in units of ``base`` where they are given."""
    segment = out.with_name(out.name + ".mkv")
    with SegmentWriter(segment, tuple(frames.shape[-2:]), Fraction(fps), look=look, crf=crf) as writer:
        writer.write(frames)
    timing = Timing(pts, base) if pts else None
    join_segments([segment], out, fps=Fraction(fps), timing=timing)
    segment.unlink()
    return out


def ramps(count: int, height: int, width: int) -> Tensor:
    """Smooth coloured frames (count, 3, height, width) that change slowly."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    t = torch.linspace(0, 1, count)[:, None, None]
    red, green = (x + 0 * y)[None] * (0.5 + 0.5 * t), (y + 0 * x)[None] + 0 * t
    return torch.stack([red, green, 0.2 + 0.6 * t + 0 * red], 1)


def patched(data: bytes, *changes: tuple[bytes, int, bytes]) -> bytes:
    """``data`` with bytes replaced: (where to look, offset from there, new bytes)."""
    copy = bytearray(data)
    for mark, offset, new in changes:
        place = copy.index(mark) + offset
        copy[place : place + len(new)] = new
    return bytes(copy)


def audio_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    """Time in seconds and content of every packet of the first audio track."""
    with av.open(str(path)) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]
