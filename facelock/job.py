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


@dataclass(frozen=True)
class Job:
    """One clip, as asked for."""

    prompt: str
    seconds: float
    seed: int = 0
    size: tuple[int, int] | None = None
    """(height, width) in pixels of the final frames; None: the recipe's own."""
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
            "size": list(self.size) if self.size else None,
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


def parse_size(text: str) -> tuple[int, int]:
    """Read ``256`` or ``WIDTHxHEIGHT`` as (height, width); :class:`ConfigError` for anything else."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isascii() and side.strip().isdigit() for side in sides):
        raise ConfigError(f"The size is {text!r}. Give a side in pixels (256) or WIDTHxHEIGHT (256x256).")
    width, height = int(sides[0]), int(sides[-1])
    return height, width


def check_size(size: tuple[int, int] | None, native: tuple[int, int]) -> tuple[int, int]:
    """The final (height, width): the native one, or ``size`` when it can be reached by plain resizing.

    It must be even (yuv420p), have the native aspect ratio, and lie within a quarter and twice the native
    size. Raises :class:`ConfigError`.
    """
    height, width = size or native
    even = height % 2 == 0 and width % 2 == 0
    if not (even and height * native[1] == width * native[0] and native[0] <= 4 * height <= 8 * native[0]):
        raise ConfigError(
            f"The size {width}x{height} does not fit this recipe, which makes {native[1]}x{native[0]}. "
            f"Give an even size of the same shape, from {native[1] // 4}x{native[0] // 4} "
            f"to {native[1] * 2}x{native[0] * 2}."
        )
    return height, width


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
