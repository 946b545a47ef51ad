"""Toy stages: a few lines of torch each, fast, deterministic, and sensitive to every bit they get.

The spine (pipeline, journal, clip, cli) is tested with them; the real stages have tests of their own. A
change of one float of the context changes every later frame of the toy backbone, so that a resumed clip
equals an uninterrupted one only if the journal is exact.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from facelock.errors import InputError
from facelock.files import atomic_write
from facelock.pipeline import Pipeline
from facelock.recipe import Recipe
from facelock.types import AlignRecord, Identity, LedgerRow, Status, Thresholds

SIDE, SCALE, FPS = 16, 2, 12
ENCODER = "toy@000000000000"


def recipe(**changes: Any) -> Recipe:
    """A recipe whose numbers are those of the toys: 6 frames first, then 4 per chunk."""
    values = {
        "schema": "facelock.recipe.v1",
        "name": "toy",
        "blueprint": {
            "model": "toy", "size": [SIDE, SIDE], "fps": FPS, "window": 6, "context": 2, "steps": 1,
            "guidance_scale": 1.0,
        },
        "faces": {"detector": "toy", "encoder": "toy"},
        "lock": {"model": "toy", "ladder": [1.0], "target": 0.5},
        "restore": {"upscaler": "toy", "scale": SCALE},
        "judge": {"encoder": "toy"},
    }  # fmt: skip
    return Recipe.model_validate({**values, **changes})


@dataclass
class Backbone:
    """Noise drawn from the seed around the mean of the context, the prompt's length and the references."""

    size: tuple[int, int] = (SIDE, SIDE)
    fps: float = FPS
    first_chunk: int = 6
    chunk: int = 4
    context: int = 2
    calls: list[tuple[int, Tensor | None]] = field(default_factory=list)

    def extend(
        self, prompt: str, context: Tensor | None, *, seed: int, references: Sequence[Identity] = ()
    ) -> Tensor:
        self.calls.append((seed, context))
        count = self.first_chunk if context is None else self.chunk
        draw = torch.Generator().manual_seed(seed)
        noise = torch.rand((count, 3, *self.size), generator=draw)
        past = torch.zeros(3, *self.size) if context is None else (context * 1001).frac().mean(0)
        return (0.6 * noise + 0.3 * past + 0.001 * len(prompt)).clamp(0, 1)


@dataclass
class Locker:
    """Darkens every frame a little, and says it met its target."""

    def lock(self, frames: Tensor, identities: Sequence[Identity], *, start: int = 0) -> Any:
        records = [
            AlignRecord(start + frame, identity.name, before=0.1, after=0.8, rung=0, met=True)
            for frame in range(len(frames))
            for identity in identities
        ]
        return frames * 0.9, records


@dataclass
class Upscaler:
    """Nearest neighbour."""

    scale: int = SCALE

    def upscale(self, frames: Tensor) -> Tensor:
        return functional.interpolate(frames, scale_factor=self.scale)


@dataclass
class Restorer:
    """The upscaler, and a record per face."""

    def restore(self, frames: Tensor, identities: Sequence[Identity], *, start: int = 0) -> Any:
        records = [
            AlignRecord(
                start + frame, identity.name, before=0.7, after=0.8, rung=0, met=True, consistency=0.01
            )
            for frame in range(len(frames))
            for identity in identities
        ]
        return Upscaler().upscale(frames) * 0.99, records


@dataclass
class Judge:
    """Sees a face in every frame; those of ``wrong`` (clip indices) belong to somebody else."""

    wrong: Collection[int] = ()
    thresholds: Thresholds = Thresholds(0.2, 0.3, 0.4)  # noqa: RUF009 - frozen
    encoder: str = ENCODER

    def measure(
        self, frames: Tensor, identities: Sequence[Identity], *, start: int = 0, before: Tensor | None = None
    ) -> tuple[LedgerRow, ...]:
        rows = []
        for index, frame in enumerate(frames):
            status = Status.WRONG if start + index in self.wrong else Status.VERIFIED
            likeness = (0.1 if status is Status.WRONG else 0.8) + 0.05 * float(frame.mean())
            residual = (
                float((frame - (frames[index - 1] if index else before)).abs().mean())
                if index or before is not None
                else None
            )
            for identity in identities:
                rows.append(
                    LedgerRow(
                        start + index, identity.name, status, similarity=likeness, box=(1.0, 1.0, 30.0, 30.0),
                        face_height=29.0, yaw=float(frame[0].mean()), pitch=0.0, roll=0.0, sharpness=9.0,
                        score=0.9,
                        landmarks=((8.0, 9.0), (20.0, 9.0), (14.0, 14.0), (9.0, 22.0), (19.0, 22.0)),
                        mouth=float(frame[1].mean()), eyes=float(frame[2].mean()), residual=residual,
                    )
                )  # fmt: skip
        return tuple(rows)

    def thumbnails(
        self, frames: Tensor, rows: Sequence[LedgerRow], *, start: int = 0, at: Collection[int] | None = None
    ) -> Mapping[int, str]:
        picture = io.BytesIO()
        Image.new("RGB", (8, 8), (200, 160, 140)).save(picture, "JPEG")
        return {frame: base64.b64encode(picture.getvalue()).decode() for frame in (at or {start})}


@dataclass
class Parts:
    """All of the above; ``face`` pictures are read as colours."""

    backbone: Any = field(default_factory=Backbone)
    locker: Any = field(default_factory=Locker)
    restorer: Any = field(default_factory=Restorer)
    upscaler: Any = field(default_factory=Upscaler)
    judge: Any = field(default_factory=Judge)
    device: str = "cpu"
    frames_device: str = "cpu"
    weights: Mapping[str, str] = field(default_factory=lambda: {"lock.model": "0" * 64})

    def identity(self, reference: Any, *, name: str | None = None, face: int | None = None) -> Identity:
        if not Path(reference).exists():
            raise InputError(f"{reference}: there is no such picture. Check the name.")
        return identity(name or Path(reference).stem, Path(reference).read_bytes().hex()[:64])


def picture(name: str) -> bytes:
    """The smallest picture that is a file of its own for each name."""
    return f"P6 #{name}\n1 1 255\n".encode() + bytes(3)


def identity(name: str = "maria", sha256: str = "ab" * 32) -> Identity:
    """Somebody."""
    embedding = functional.normalize(torch.arange(1, 9, dtype=torch.float32), dim=0)
    return Identity(
        name, {ENCODER: embedding}, portrait=torch.full((3, 16, 16), 0.5), source=f"{name}.png", sha256=sha256
    )


def pipeline(parts: Parts | None = None, **changes: Any) -> Pipeline:
    """A pipeline of toys."""
    return Pipeline(recipe(**changes), parts or Parts())


class Writer:
    """A segment writer without ffmpeg: raw bytes, written as atomically as the real one."""

    def __init__(self, path: Path, *_: object, **__: object) -> None:
        self.path, self.frames = path, []

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            atomic_write(self.path, b"".join(self.frames))

    def write(self, frames: Tensor) -> None:
        self.frames.append((frames * 255).round().to(torch.uint8).numpy().tobytes())


def join(paths: Sequence[Path], out: Path, **_: object) -> None:
    """Join such segments."""
    atomic_write(out, b"".join(path.read_bytes() for path in paths))


def write_plainly(patch: Callable[[str, Any], None]) -> None:
    """Put :class:`Writer` and :func:`join` in place of ffmpeg, and a line in place of the HTML page, so that
    a run takes some hundredths of a second: ``patch(dotted_name, value)``."""
    patch("facelock.clip.SegmentWriter", Writer)
    patch("facelock.clip.join_segments", join)
    patch("facelock.report.page.render_page", lambda report: f"<p>{report.verdict}</p>")
