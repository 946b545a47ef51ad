"""The film's sound: each shot's audio in its place, the film's own under it.

A shot's audio is the file that the storyboard names for it, else what its take says itself, where its blueprint
writes sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ffmpeg

from facelock.storyboards.cut import Cut, Placed
from facelock.video.joining import run_ffmpeg, sound_input
from facelock.video.writing import probe

RATE = 48_000
"""Samples per second."""


def sounds(cut: Cut) -> list[Path]:
    """All audio files that the storyboard names."""
    board = cut.plan.board
    own = [board.path(board.audio)] if board.audio else []
    return own + [shot.unit.audio for shot in cut.shots if shot.unit.audio]


def heard(shot: Placed) -> Path | None:
    """The file that a shot's sound is in; None: it is silent."""
    video = shot.result.video
    if shot.unit.audio or video is None:
        return shot.unit.audio
    return video if probe(video).audio else None


def is_heard(cut: Cut) -> bool:
    """Whether the film has any sound."""
    return bool(cut.plan.board.audio) or any(heard(shot) for shot in cut.shots)


def write_soundtrack(cut: Cut, path: Path) -> None:
    """Write the mix as a WAV of float samples, 48 kHz stereo, exactly as long as the film.

    Each sound is cut or padded to its shot; where shots dissolve, so do their sounds. Raises
    ``EncoderError``, ``StorageError``.
    """
    length = cut.frames / float(cut.fps)
    silence = ffmpeg.input(f"anullsrc=r={RATE}:cl=stereo", f="lavfi", t=f"{length:.6f}")
    spoken = [(shot, file) for shot in cut.shots if (file := heard(shot))]
    board = cut.plan.board
    own = [board.path(board.audio)] if board.audio else []
    streams = _opened([file for _, file in spoken] + own)
    tracks = [silence.audio]
    tracks += [_placed(cut, shot, stream) for (shot, _), stream in zip(spoken, streams, strict=False)]
    tracks += [_fitted(stream, length) for stream in streams[len(spoken) :]]
    mix = ffmpeg.filter(tracks, "amix", inputs=len(tracks), duration="first", normalize=0)
    out = mix.output(
        str(path), format="wav", acodec="pcm_f32le", fflags="+bitexact", flags="+bitexact", map_metadata=-1
    )
    run_ffmpeg(out, path)


def _opened(files: Sequence[Path]) -> list[Any]:
    """A stream of each file; one that is heard in several shots is split, since an output leads to one place only."""
    split = {
        file: sound_input(file).filter_multi_output("asplit") for file in set(files) if files.count(file) > 1
    }
    return [
        split[file].stream(number) if file in split else sound_input(file)
        for number, file in enumerate(files)
    ]


def _fitted(sound: Any, seconds: float) -> Any:
    sound = sound.filter("aformat", channel_layouts="stereo")
    return sound.filter("apad", whole_dur=f"{seconds:.6f}").filter("atrim", end=f"{seconds:.6f}")


def _placed(cut: Cut, shot: Placed, sound: Any) -> Any:
    fps = float(cut.fps)
    seconds = shot.frames / fps
    sound = _fitted(sound, seconds)
    if shot.overlap:
        sound = sound.filter("afade", type="in", duration=f"{shot.overlap / fps:.6f}")
    if shot.overlap_after:
        long = shot.overlap_after / fps
        sound = sound.filter("afade", type="out", start_time=f"{seconds - long:.6f}", duration=f"{long:.6f}")
    samples = round(shot.start * RATE / cut.fps)
    return sound.filter("adelay", f"{samples}S", all=1) if samples else sound
