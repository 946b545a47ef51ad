"""What is asked for, checked before anything is loaded, and how it is cut into chunks. Knows no torch.

::

    job = Job("a woman talking in a forest", seconds=30, seed=7)
    job.check()
    plan_chunks(job.frame_count(fps), first=17, chunk=12)   # (Span(0, 0, 17), Span(1, 17, 12), ...)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from facelock.errors import ConfigError, InputError

LONGEST_SECONDS = 24 * 3600
"""A day. More is a slip of the finger."""
LONGEST_PROMPT = 10_000
"""Characters."""
LARGEST_SEED = 2**63 - 1
NAMED_SIDES = {"480p": 480, "540p": 540, "720p": 720, "1080p": 1080, "1440p": 1440, "4k": 2160}
"""What a size is called → its short side in pixels; the long one follows the recipe's shape."""
MOST_CUT = 0.25
"""Share of a side that a size of another shape than the recipe's may cut away."""
Size = int | tuple[int, int]
"""A short side in pixels, which keeps the recipe's shape, or (height, width)."""


@dataclass(frozen=True)
class Job:
    """One clip, as asked for."""

    prompt: str
    seconds: float
    seed: int = 0
    size: Size | None = None
    """Of the final frames: a short side or (height, width) in pixels; None: the recipe's own."""
    lock: bool = True
    """Stage 2 on; off only for comparison."""
    restore: bool = True
    """Stage 3's face restoration on; off leaves the plain upscaler, so the size stays."""

    def check(self) -> Job:
        """Return the job itself, or raise :class:`InputError` with the first thing that is wrong."""
        _check_prompt(self.prompt)
        _check_seconds(self.seconds)
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int)
            or not 0 <= self.seed <= LARGEST_SEED
        ):
            raise InputError(f"The seed is {self.seed!r}. Give a whole number from 0 to {LARGEST_SEED}.")
        return self

    def frame_count(self, fps: Fraction) -> int:
        """Frames of the clip: seconds × fps, rounded half up.

        Raises :class:`InputError` when not even one frame would remain.
        """
        frames = math.floor(Fraction(self.seconds) * fps + Fraction(1, 2))
        if frames < 1:
            raise InputError(
                f"{self.seconds} seconds at {float(fps):g} frames per second is less than one frame. "
                f"Give at least {float(1 / fps):.3f} seconds."
            )
        return frames

    def inputs(self) -> Mapping[str, Any]:
        """Everything asked for, as plain JSON values, for the journal and the report."""
        return {
            "prompt": self.prompt,
            "seconds": float(self.seconds),
            "seed": self.seed,
            "size": list(self.size) if isinstance(self.size, tuple) else self.size,
            "lock": self.lock,
            "restore": self.restore,
        }


@dataclass(frozen=True)
class Span:
    """Where one chunk lies in the clip."""

    index: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """Index of the frame after the last."""
        return self.start + self.length


def plan_chunks(frames: int, *, first: int, chunk: int) -> tuple[Span, ...]:
    """Cut ``frames`` into spans: ``first`` frames, then ``chunk`` each, the last one trimmed exactly."""
    spans = [Span(0, 0, min(first, frames))]
    while spans[-1].end < frames:
        spans.append(Span(len(spans), spans[-1].end, min(chunk, frames - spans[-1].end)))
    return tuple(spans)


def parse_size(text: str) -> Size:
    """Read a short side (``256``, ``1080p``, ``4k``) or ``WIDTHxHEIGHT`` as a short side or (height, width).

    Raises :class:`ConfigError` for anything else.
    """
    plain = text.strip().lower().replace("×", "x")
    if plain in NAMED_SIDES:
        return NAMED_SIDES[plain]
    sides = [side.strip() for side in plain.split("x")]
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) < 7 for side in sides):
        raise ConfigError(
            f"The size is {text[:80]!r}. Give a short side in pixels (256), a name ({', '.join(NAMED_SIDES)}), "
            "or WIDTHxHEIGHT (1920x1080)."
        )
    return int(sides[0]) if len(sides) == 1 else (int(sides[1]), int(sides[0]))


def check_size(size: Size | None, native: tuple[int, int]) -> tuple[int, int]:
    """The final (height, width): ``native``, or what ``size`` means when plain resizing can reach it.

    A short side keeps the native shape, its long side rounded to an even number. (height, width) of another shape
    cuts away what is too much, the same on both sides, at most :data:`MOST_CUT` of a side. All sides are even
    (yuv420p) and within a quarter and twice the native size. Raises :class:`ConfigError`.
    """
    if min(native) < 1:
        raise ConfigError(
            f"The recipe makes pictures of {native[1]}x{native[0]} pixels. Give blueprint.size as [height, width]."
        )
    height, width = _sides(size, native)
    made, wanted = f"{native[1]}x{native[0]}", f"{width}x{height}"
    scale = max(height / native[0], width / native[1])
    if not 0.25 <= scale <= 2 or not height or not width:
        short = min(native)
        raise ConfigError(
            f"The size {wanted} does not fit this recipe, which makes {made}. "
            f"Give a short side from {short // 4} to {short * 2}, or a recipe that makes larger pictures."
        )
    cut = 1 - min(height / native[0], width / native[1]) / scale
    if cut > MOST_CUT:
        raise ConfigError(
            f"The size {wanted} does not fit this recipe, which makes {made}: {cut:.0%} of each picture would be cut "
            f"away. Give a shape nearer to it, or the short side alone ({min(height, width)}), which keeps it."
        )
    if height % 2 or width % 2:
        raise ConfigError(
            f"The size {wanted} does not fit: its sides must be even numbers. Give {width + width % 2}x"
            f"{height + height % 2}, say."
        )
    return height, width


def _sides(size: Size | None, native: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that ``size`` means for a recipe that makes ``native``."""
    if size is None:
        return native
    if not isinstance(size, int):
        if len(size) != 2 or not all(isinstance(side, int) for side in size):
            raise ConfigError(f"The size is {size!r}. Give a short side in pixels, or (height, width).")
        return size
    if native[0] <= native[1]:
        return size, 2 * round(size * native[1] / native[0] / 2) if native[0] != native[1] else size
    return 2 * round(size * native[0] / native[1] / 2), size


def _check_prompt(prompt: str) -> None:
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError("The prompt is empty. Say what the clip shows, e.g. 'a woman talking in a forest'.")
    if len(prompt) > LONGEST_PROMPT:
        raise InputError(f"The prompt has {len(prompt)} characters. Give at most {LONGEST_PROMPT}.")
    bad = next((character for character in prompt if ord(character) < 32 and character not in "\t\n"), None)
    if bad is not None:
        raise InputError(f"The prompt holds the control character {bad!r}. Give plain text.")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"The prompt is not valid text ({error.reason}). Give plain UTF-8 text.") from error


def _check_seconds(seconds: float) -> None:
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float | Fraction)
        or not math.isfinite(seconds)
    ):
        raise InputError(f"The length is {seconds!r} seconds. Give a number such as 30.")
    if seconds <= 0:
        raise InputError(f"The length is {float(seconds):g} seconds. Give a positive number such as 30.")
    if seconds > LONGEST_SECONDS:
        raise InputError(
            f"The length is {float(seconds):g} seconds, more than a day. Give at most {LONGEST_SECONDS}."
        )


def check_share(target: float | None) -> None:
    """Raise :class:`ConfigError` unless ``target`` is None or a share in [0, 1]."""
    if target is not None and not 0 <= target <= 1:  # NaN fails too
        raise ConfigError(f"The target is {target}. Give a share from 0 to 1, such as 0.99.")


def check_bench(seconds: float | None, identities: int | None) -> None:
    """Raise :class:`InputError` for a benchmark of no length or of nobody."""
    if seconds is not None:
        _check_seconds(seconds)
    if identities is not None and not 1 <= identities <= 10_000:
        raise InputError(f"The number of identities is {identities}. Give a number from 1 to 10000.")
