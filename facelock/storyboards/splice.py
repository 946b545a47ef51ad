"""film.mp4: the shots' pictures copied as they are; only transitions are encoded, up to the next key frame.

Where a shot has another size or other settings than the film, it is encoded again as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from torch import Tensor
from torch.nn import functional

from facelock import __version__
from facelock.files import storage
from facelock.pipeline import resize
from facelock.storyboards.cut import Cut, Placed
from facelock.storyboards.soundtrack import is_heard, write_soundtrack
from facelock.video.joining import is_idr
from facelock.video.writing import SegmentWriter, join_segments, read_chunks

FRAMES_PER_READ = 24


@dataclass(frozen=True)
class Header:
    """What must be equal for pictures to be joined as they are."""

    size: tuple[int, int]
    settings: bytes
    """H.264's own description of them."""


def write_film(cut: Cut, path: Path, workspace: Path) -> int:
    """Write the film to ``path``; every shot must have a video. Returns how many frames were encoded again.

    ``workspace`` is an existing folder for pieces. Raises ``EncoderError``, ``StorageError``, ``InputError``.
    """
    pieces: list[Path] = []
    encoded = 0
    film = header(_video(cut.shots[cut.largest]))
    for index in range(len(cut.shots)):
        made, again = _pieces(cut, index, film, workspace / f"{index:05d}")
        pieces += made
        encoded += again
    audio = workspace / "sound.wav" if is_heard(cut) else None
    if audio:
        write_soundtrack(cut, audio)
    join_segments(pieces, path, fps=cut.fps, audio=audio, metadata=_metadata(cut))
    return encoded


def _pieces(cut: Cut, index: int, film: Header, stem: Path) -> tuple[list[Path], int]:
    """Files that hold a shot's frames up to where the next one begins, and how many were encoded."""
    shot, video = cut.shots[index], _video(cut.shots[index])
    end = shot.frames - shot.overlap_after
    head = shot.overlap or shot.fade
    fits = header(video) == film
    key = next((k for k in key_frames(video) if k >= head), end) if fits else end
    key = min(key, end)
    if fits and not head and end == shot.frames:
        return [video], 0
    made: list[Path] = []
    if key:
        piece = stem.with_name(f"{stem.name}a.mkv")
        _encode(cut, index, key, piece)
        made.append(piece)
    if key < end:
        rest = stem.with_name(f"{stem.name}b.mkv")
        copy_frames(video, rest, key, end)
        made.append(rest)
    return made, key


def _encode(cut: Cut, index: int, end: int, piece: Path) -> None:
    """Frames 0 to ``end`` of a shot, with what precedes them dissolved or faded in."""
    shot, crf = cut.shots[index], cut.shots[0].unit.recipe.encode.crf
    before = last_frames(_video(cut.shots[index - 1]), shot.overlap, cut.size) if shot.overlap else None
    with SegmentWriter(piece, cut.size, cut.fps, crf=crf) as writer:
        for start, frames in _frames(_video(shot), end, cut.size):
            writer.write(_blended(frames, start, before, shot))


def _blended(frames: Tensor, start: int, before: Tensor | None, shot: Placed) -> Tensor:
    """(T, 3, H, W) frames from ``start`` on, over the end of the shot before or over black."""
    length = shot.overlap or shot.fade
    number = torch.arange(start, start + len(frames), dtype=torch.float32)
    share = ((number + 1) / (length + 1)).clamp(max=1)[:, None, None, None]
    count = max(0, min(length - start, len(frames)))
    if not count:
        return frames
    under = torch.zeros_like(frames[:count]) if before is None else before[start : start + count]
    return torch.cat([torch.lerp(under, frames[:count], share[:count]), frames[count:]])


def _frames(video: Path, end: int, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    for chunk in read_chunks(video, FRAMES_PER_READ):
        if chunk.start >= end:
            return
        yield chunk.start, fitted(chunk.frames[: end - chunk.start], size)


def last_frames(video: Path, count: int, size: tuple[int, int]) -> Tensor:
    """The last ``count`` frames of a video, (count, 3, H, W) in [0, 1], at ``size``."""
    kept: deque[Tensor] = deque(maxlen=count)
    for chunk in read_chunks(video, FRAMES_PER_READ):
        kept.extend(chunk.frames.unbind())
    return fitted(torch.stack(list(kept)), size)


def fitted(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, 3, H, W) frames at ``size`` (height, width) in their own shape, black where that leaves room."""
    (height, width), (high, wide) = frames.shape[-2:], size
    scale = min(high / height, wide / width)
    inner = (min(high, round(height * scale)), min(wide, round(width * scale)))
    top, left = (high - inner[0]) // 2, (wide - inner[1]) // 2
    bars = (left, wide - inner[1] - left, top, high - inner[0] - top)
    return functional.pad(resize(frames, inner), bars)


def header(video: Path) -> Header:
    """Size and settings of a video of ours."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        return Header((stream.height, stream.width), bytes(stream.codec_context.extradata or b""))


def key_frames(video: Path) -> list[int]:
    """Frames from which a video of ours can be decoded; it has no B-frames, so packets are frames in order.

    A demuxer also calls an I frame a key frame that frames after it may look behind.
    """
    with av.open(str(video)) as container:
        packets = (packet for packet in container.demux(container.streams.video[0]) if packet.size)
        return [index for index, packet in enumerate(packets) if packet.is_keyframe and is_idr(bytes(packet))]


def copy_frames(video: Path, piece: Path, start: int, end: int) -> None:
    """Copy the frames ``start`` (a key frame) to ``end`` without decoding them."""
    with storage(piece), av.open(str(video)) as source, av.open(str(piece), "w", format="matroska") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = (packet for packet in source.demux(stream) if packet.size)
        for index, packet in enumerate(packets):
            if index >= end:
                break
            if index >= start:
                packet.stream = copy
                target.mux(packet)


def _video(shot: Placed) -> Path:
    if shot.result.video is None:
        raise ValueError(f"the shot {shot.unit.name} was not made")
    return shot.result.video


def _metadata(cut: Cut) -> dict[str, str]:
    board = cut.plan.board
    return {
        "title": " ".join(board.title.split()) or "A film of FaceLock",
        "comment": f"AI-generated video, made by FaceLock {__version__} from a storyboard of {len(cut.shots)} shots.",
        "ai_generated": "true",
        "facelock_version": __version__,
    }
