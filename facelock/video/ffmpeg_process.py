"""One ffmpeg program, fed through its standard input.

It is the one in ``FACELOCK_FFMPEG``, else the system's, else the binary that comes with imageio-ffmpeg.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import ffmpeg

from facelock.errors import EncoderError, StorageError

PATIENCE = 120.0
"""Seconds that ffmpeg may take to finish after its last frame."""
BITEXACT = {"fflags": "+bitexact", "flags": "+bitexact", "map_metadata": -1}
"""Output options for the same bytes from the same input."""


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


class FfmpegProcess:
    """One ffmpeg, fed through its standard input, whose last words are kept."""

    def __init__(self, stream: Any, target: Path) -> None:
        """Start ffmpeg on ``stream`` (of ffmpeg-python); ``target`` is what error messages name."""
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

    def feed(self, data: bytes | memoryview) -> None:
        """Write to its standard input. Raises ``EncoderError``, ``StorageError`` when it has died."""
        try:
            self._stdin.write(data)
        except (BrokenPipeError, ValueError):
            self._fail()

    def offer(self, data: bytes | memoryview) -> bool:
        """:meth:`feed`, but ``False`` where it has ended well already, since it needs no more."""
        try:
            self._stdin.write(data)
        except BrokenPipeError:
            with suppress(subprocess.TimeoutExpired):
                if self._child.wait(10) == 0:
                    return False
            self._fail()
        return True

    def finish(self, patience: float = PATIENCE) -> None:
        """Close the input and wait for a good end, ``patience`` seconds at most.

        Raises ``EncoderError``, ``StorageError``.
        """
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            code = self._child.wait(patience)
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
