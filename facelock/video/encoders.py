"""The encoders of H.264 that a recipe can name, and whether one works on this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from facelock.errors import ConfigError, EncoderError
from facelock.video.ffmpeg_process import find_ffmpeg

PRESET = "veryfast"
"""Of x264: a third of the time of ``medium`` for some 10 % more bytes at the same quality."""
PROBE_SECONDS = 60.0


def coding(encoder: str, quality: float, pixel_format: str) -> Mapping[str, Any]:
    """ffmpeg's output options. ``quality`` is x264's crf, 0 to 51, and nvenc's constant quantiser.

    Without B-frames decoding order is display order, which lets ``join_segments`` count the time exactly. Raises
    :class:`ConfigError` for an encoder that is not known, or cannot code 10 bits.
    """
    if encoder == "x264":
        return {
            "vcodec": "libx264", "preset": PRESET, "crf": quality, "bf": 0, "pix_fmt": pixel_format, "threads": 1
        }  # fmt: skip
    if encoder != "nvenc":
        raise ConfigError(f"No encoder is called {encoder!r}. Give one of: x264, nvenc.")
    if pixel_format.endswith("10le"):
        raise ConfigError(
            'nvenc does not code H.264 of 10 bits. Give encoder = "x264" in the recipe\'s [encode].'
        )
    return {
        "vcodec": "h264_nvenc", "preset": "p4", "rc": "constqp", "qp": round(quality), "bf": 0, "pix_fmt": pixel_format
    }  # fmt: skip


def why_not(program: str, encoder: str, *, run: Callable[..., Any] = subprocess.run) -> str:
    """Why the ffmpeg ``program`` does not code a picture with ``encoder``, ffmpeg's own first words; empty: it does.

    It is tried with the options that clips are coded with: ffmpeg lists hardware encoders that the machine does not
    have, and such a one leaves an empty file behind.
    """
    options = [
        part for key, value in coding(encoder, 20, "yuv420p").items() for part in (f"-{key}", str(value))
    ]
    command = [program, "-hide_banner", "-loglevel", "error", "-f", "lavfi", "-i", "color=gray:s=256x256"]
    command += ["-frames:v", "1", *options, "-f", "null", "-"]
    try:
        done = run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:200]
    if done.returncode == 0:
        return ""
    words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return words[0][:200] if words else f"ffmpeg ends with code {done.returncode}"


def require_encoder(encoder: str) -> None:
    """Raise :class:`EncoderError` unless ``encoder`` really codes a picture here: found out before hours of work."""
    program = find_ffmpeg()
    if encoder == "x264":
        return
    why = why_not(program, encoder).split("] ")[-1].rstrip(".")
    if why:
        raise EncoderError(
            f'This machine cannot encode with {encoder} ({why}). Give encoder = "x264" in the recipe\'s [encode].'
        )
