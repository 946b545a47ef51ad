"""Videos that somebody else made, read frame by frame in a process of their own.

::

    info = probe("clip.mp4")                      # upright size, rate, colours, sound
    for chunk in read_chunks("clip.mp4", 24): ...  # float frames, upright, by the file's own colour matrix
    for still in read_stills("clip.mp4", only=[0, 99]): still.pts, still.pixels

The decoder (:mod:`facelock.video.worker`) runs in a child with bounded memory: a file that crashes or hangs it costs
one clear sentence. Memory here does not depend on the clip's length. Every frame has its own time: ``pts`` in units of
``info.time_base``, strictly rising.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facelock.errors import EnvironmentFailure, InputError
from facelock.types import Chunk
from facelock.video import worker

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds without a frame after which a decoder is taken for hanging; also the most that a header may take."""
_PIPE = 1 << 20
_KINDS = (
    (b"\x89PNG", "a picture"), (b"\xff\xd8\xff", "a picture"), (b"GIF8", "a picture"), (b"BM", "a picture"),
    (b"II*\0", "a picture"), (b"MM\0*", "a picture"), (b"ffconcat", "a playlist"), (b"#EXTM3U", "a playlist"),
    (b"[playlist]", "a playlist"), (b"<?xml", "a playlist or another text"), (b"<", "a text"),
)  # fmt: skip
_STILLS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")


@dataclass(frozen=True)
class Look:
    """How a video's pictures are to be shown: what an encoder keeps so that they look the same."""

    depth: int = 8
    """Bits of each value, 8 or 10."""
    chroma: tuple[int, int] = (2, 2)
    """Pixels per colour sample across and down: (2, 2) is 4:2:0, (1, 1) is 4:4:4."""
    matrix: int = 1
    """Colour matrix, primaries and transfer by their numbers in ISO/IEC 23091-2: 1 is BT.709, 2 unspecified."""
    primaries: int = 1
    transfer: int = 1
    full: bool = False
    """Full range instead of "TV" range."""
    sar: Fraction = Fraction(1)
    """Width of a pixel ÷ its height."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header and first picture say, checked. Sizes are upright: a rotation it asks for is done."""

    width: int
    height: int
    fps: Fraction
    """On average; frames have their own times."""
    frames: int
    """As the file says, or as its packets count where it says nothing."""
    has_audio: bool
    time_base: Fraction = Fraction(1, 1000)
    """Seconds per unit of pts."""
    turn: int = 0
    """Quarter turns counter-clockwise that make the stored pictures upright."""
    look: Look = Look()
    audio: tuple[str, ...] = ()
    """Codecs of the audio tracks."""
    title: str = ""

    @property
    def seconds(self) -> float:
        """Length of the pictures at the average rate."""
        return float(self.frames / self.fps)


@dataclass(frozen=True)
class Still:
    """One frame of a video."""

    index: int
    pts: int
    """When it is shown, in units of the video's time base."""
    duration: int
    """For how long, in the same units; 0 where the file does not say."""
    pixels: Tensor | None
    """(3, H, W) float32 upright RGB in [0, 1]; None where it was not asked for."""


def probe(path: str | Path) -> VideoInfo:
    """Read a video's header and first picture. Raises ``InputError`` when it is missing, damaged, no video, or says
    something absurd of itself.

    A file that is as it was the last time is not opened again: who locks a clip asks thrice.
    """
    path = Path(path)
    _require_file(path)
    now = path.stat()
    return _probed(path.absolute(), (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns))


@lru_cache(maxsize=16)
def _probed(path: Path, stamp: tuple[int, ...]) -> VideoInfo:
    """``stamp`` only keys the memory: it changes when the file does. Refusals are not remembered."""
    return _info(_ask(path, "probe"))


def count_frames(path: str | Path) -> int:
    """Number of pictures in a video file, counted without decoding. Raises ``InputError``."""
    return int(_ask(path, "probe")["packets"])


def check_audio(path: str | Path) -> None:
    """Raise ``InputError`` unless the file holds sound that can be decoded."""
    _ask(path, "sound")


def read_chunks(
    path: str | Path, length: int, *, start: int = 0, usual: bool = False, raw: bool = False
) -> Iterator[Chunk]:
    """Decode a video into chunks of ``length`` frames (the last one may be shorter), upright RGB.

    ``start`` is the index of the first frame to hand out. One chunk is in memory at a time. Colours are by the file's
    own matrix and range, exact; with ``usual`` they are what OpenCV's and PyAV's readers give, which differ by a level
    or two: recognisers are usually fed those. ``raw`` frames are whole numbers, as views of interleaved pictures:
    (T, 3, H, W) uint8, or uint16 where the file has more bits and they are not ``usual``;
    :func:`facelock.video.crossing.lifted` makes the others of them. Raises ``InputError`` when the file cannot be
    decoded, or ends before the number of frames that it says it has.
    """
    held = list[Still]()
    with closing(VideoReader(path, skip=start, usual=usual, raw=raw)) as reader:
        for still in reader:
            if still.pixels is not None:
                held.append(still)
            if len(held) == length:
                yield _chunk(held, reader.info)
                held = []
        if held:
            yield _chunk(held, reader.info)


def _chunk(stills: Sequence[Still], info: VideoInfo) -> Chunk:
    pictures = [still.pixels for still in stills if still.pixels is not None]
    if not pictures[0].is_floating_point():  # as they lie in memory: transposing takes long
        pixels = torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)
    else:
        pixels = torch.stack(pictures)
    return Chunk(pixels, stills[0].index, info.fps, tuple(still.pts * info.time_base for still in stills))


def read_stills(path: str | Path, *, only: Collection[int] | None = None) -> Iterator[Still]:
    """Every frame of a video in the order of showing, with pixels those whose index is in ``only`` (None: all).

    The whole file is decoded. Raises ``InputError`` as :func:`read_chunks` does.
    """
    with closing(VideoReader(path, only=only)) as reader:
        yield from reader


class VideoReader:
    """A video being read: iterate it once for its :class:`Still` frames, then close it."""

    def __init__(
        self,
        path: str | Path,
        *,
        skip: int = 0,
        only: Collection[int] | None = None,
        usual: bool = False,
        raw: bool = False,
    ) -> None:
        """Frames before ``skip``, and where ``only`` is given all others, come without pixels.

        ``usual`` and ``raw`` are explained at :func:`read_chunks`.
        """
        self.path, self._usual, self._bytes = Path(path), usual, raw
        wanted = None if only is None else sorted(only)
        request = {"mode": "frames", "skip": skip, "only": wanted, "usual": usual}
        self._child = _Child(self.path, request)
        self._raw = self._child.expect_info()
        self.info = _info(self._raw)

    def close(self) -> None:
        """End the decoder."""
        self._child.close()

    def __iter__(self) -> Iterator[Still]:
        before, index, odd, ends = None, 0, 0, Fraction(0)
        while True:
            kind, pts, duration, data = self._child.record()
            if kind == worker.END:
                break
            given = None if pts == worker.NO_TIME else pts
            pts = _rising(given, before, self.info)
            odd += pts != given
            yield Still(index, pts, duration, self._pixels(data) if kind == worker.FRAME else None)
            before, index, ends = pts, index + 1, (pts + duration) * self.info.time_base
        self._finish(json.loads(bytes(data)), index, ends, odd)

    def _pixels(self, data: bytearray) -> Tensor:
        deep, shape = self._raw["depth"] > 8 and not self._usual, (self._raw["height"], self._raw["width"], 3)
        values: NDArray[Any] = np.frombuffer(data, np.dtype("<u2") if deep else np.uint8).reshape(shape)
        if self.info.turn:
            values = np.ascontiguousarray(np.rot90(values, self.info.turn))
        planes = torch.from_numpy(values).permute(2, 0, 1)
        if self._bytes:
            return planes
        return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(65535 if deep else 255)

    def _finish(self, counts: Mapping[str, int], frames: int, ends: Fraction, odd: int) -> None:
        missing = counts["expected"] - counts["packets"]
        promised = Fraction(counts["seconds"]).limit_denominator(1000)
        short = missing <= 0 and ends + max(Fraction(1, 4), 2 / self.info.fps) < promised
        if missing > 0 or short:
            whole = f"{float(promised):.1f} seconds" if short else f"{counts['expected']} frames"
            read = f"{float(ends):.1f}" if short else f"{frames}"
            raise InputError(
                f"{self.path}: is cut short, {read} of {whole} can be read. Give another copy of it."
            )
        if counts["corrupt"]:
            log.warning("%s: %d frames are damaged", self.path.name, counts["corrupt"])
        if odd:
            log.warning("%s: %d frames have no time of their own, or a wrong one", self.path.name, odd)


def _rising(pts: int | None, before: int | None, info: VideoInfo) -> int:
    """The frame's time; one after the frame before where the file gives none or goes back."""
    if before is None:
        return 0 if pts is None else pts
    if pts is not None and pts > before:
        return pts
    return before + max(1, round(1 / (info.fps * info.time_base)))


def _info(raw: Mapping[str, Any]) -> VideoInfo:
    turn = round(raw["turn"] / 90) % 4
    sar = Fraction(*raw["sar"])
    width, height = raw["width"], raw["height"]
    rgb = raw["rgb"] or raw["matrix"] == 0  # stored without a matrix: it gets BT.709
    matrix = raw["matrix"]
    if matrix == worker.UNSPECIFIED and turn % 2:  # what its size meant must not change with the turn
        matrix = 1 if worker.matrix_name(matrix, width, height) == "bt709" else 6
    look = Look(
        depth=10 if raw["depth"] > 8 else 8,
        chroma=(raw["chroma"][1], raw["chroma"][0]) if turn % 2 else (raw["chroma"][0], raw["chroma"][1]),
        matrix=1 if rgb else matrix,
        primaries=raw["primaries"],
        transfer=raw["transfer"],
        full=raw["full"] and not rgb,
        sar=1 / sar if turn % 2 else sar,
    )
    return VideoInfo(
        width=height if turn % 2 else width,
        height=width if turn % 2 else height,
        fps=Fraction(*raw["fps"]).limit_denominator(100_000),
        frames=raw["frames"] or raw.get("packets", 0),
        has_audio=bool(raw["audio"]),
        time_base=Fraction(*raw["time_base"]),
        turn=turn,
        look=look,
        audio=tuple(raw["audio"]),
        title=raw["title"],
    )


def _ask(path: str | Path, mode: str) -> dict[str, Any]:
    """One question that one record answers."""
    with closing(_Child(Path(path), {"mode": mode})) as child:
        return child.expect_info()


class _Child:
    """The worker on one file: started, listened to, and ended."""

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        _require_file(path)
        if request["mode"] != "sound":
            _refuse_other_kinds(path)
        self._path, self._child = path, _start({**request, "path": str(path.absolute())})
        with suppress(ImportError, OSError, AttributeError):
            import fcntl

            fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, _PIPE)

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._child.stdout is not None  # noqa: S101 - Popen was given a pipe
        return self._child.stdout

    def expect_info(self) -> dict[str, Any]:
        """The first record, which says what the file is."""
        kind, _, _, data = self.record()
        if kind != worker.INFO:
            raise self._died()
        return dict(json.loads(bytes(data)))

    def record(self) -> tuple[int, int, int, bytearray]:
        """Kind, pts, duration and content of the next record. Raises ``InputError`` for a refusal, a crash, a hang."""
        kind, pts, duration, length = worker.HEADER.unpack(self._read(worker.HEADER.size))
        data = self._read(length)
        if kind == worker.REFUSED:
            what, todo = json.loads(bytes(data))
            raise InputError(f"{self._path}: {what}. {todo}.")
        return kind, pts, duration, data

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        view, waiting = memoryview(data), select.poll()
        waiting.register(self._stdout, select.POLLIN)
        while view:
            if not waiting.poll(PATIENCE * 1000):
                self.close()
                raise InputError(
                    f"{self._path}: its decoder gave nothing for {PATIENCE:.0f} seconds. Give another copy of it."
                )
            count = os.readv(self._stdout.fileno(), [view])
            if not count:
                raise self._died()
            view = view[count:]
        return data

    def _died(self) -> Exception:
        code = self._child.wait(10)
        self.close()
        if code == 1:  # Python's own: it did not even start
            return EnvironmentFailure(
                "The video decoder cannot be started. Reinstall FaceLock with its requirements (av)."
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return InputError(f"{self._path}: its decoder crashed ({how}). Give another copy of it.")

    def close(self) -> None:
        """End the worker, whatever it does."""
        with suppress(OSError):
            self._child.kill()
        self._child.wait()
        with suppress(OSError):
            self._stdout.close()


def _start(request: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """The worker with this process's import paths, in a session of its own: Ctrl-C is for us to handle."""
    paths = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "facelock.video.worker", json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "MALLOC_ARENA_MAX": "2"},
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise EnvironmentFailure(
            f"The video decoder cannot be started ({error.strerror}). Free memory or processes."
        ) from error


def _require_file(path: Path) -> None:
    """The file itself, with something in it."""
    try:
        if not path.is_file():
            there = "is a folder" if path.is_dir() else "is not a regular file"
            what = there if path.exists() else "there is no such file"
            raise InputError(f"{path}: {what}. Give a video file on this machine.")
        if not os.access(path, os.R_OK):
            raise InputError(f"{path}: cannot be read. Check its permissions.")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: is empty. Give another copy of it.")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}). Check its name.") from error


def _refuse_other_kinds(path: Path) -> None:
    """What is not even a video is called what it is; some pictures would pass for one."""
    kind = _kind(path)
    if kind:
        raise InputError(f"{path}: is {kind}, not a video. Give a video file such as an mp4.")


def _kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return ""
    if head[8:12] == b"WEBP" or (head[4:8] == b"ftyp" and head[8:12] in _STILLS):
        return "a picture"
    return next((name for start, name in _KINDS if head.lower().startswith(start.lower())), "")
