"""What ``facelock bench gpu`` measures of lock and restoration, against the blueprint's own time.

Networks are torch modules of production's shapes, since onnxruntime may have no GPU where this runs; everything else
is the loops' own code. Faces are forced: so many on every frame, each at one rung of the ladder, as most faces need.
Not in these times: the preparation of the detector's pictures, other rungs, the judge, and encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from facelock.alignment.faceid import FaceID
from facelock.bench.gpu_bench import Bench, Line
from facelock.bench.gpu_face_nets import (
    ENCODER,
    BuiltPortrait,
    CompactFrames,
    SwapAligner,
    cast,
    face_pack,
)
from facelock.bench.gpu_parts import FEW, STEPS
from facelock.lock_loop import Locker
from facelock.portrait import PortraitSettings
from facelock.restore_loop import RestoreLoop

NEVER = -2.0
"""A target that every face meets with its first rung."""


def lock_and_restore(bench: Bench, count: int) -> None:
    """Both stages of a window, ``count`` faces a frame, with frames on the device and in the host's memory."""
    people, pack = cast(count), face_pack(bench, count)
    locker = Locker(pack, SwapAligner(bench), ladder=[1.0], target=NEVER)
    frames = torch.rand(bench.sizes.window, 3, *bench.sizes.blueprint)
    there = frames.to(bench.device)
    faces, size = f"{len(frames)} frames, {count} faces each", bench.sizes.faces
    lock = f"lock by an aligner of inswapper's shape, {faces}"
    bench.time(f"{lock}, frames on the device", lambda: locker.lock(there, people), key="lock", cost=5)
    bench.time(
        f"{lock}, frames in host memory",
        lambda: locker.lock(frames, people),
        key="lock host",
        cost=8,
        rounds=1,
    )
    restorer = RestoreLoop(
        pack, CompactFrames(bench), None, ladder=[1.0], target=NEVER, consistency=1.0
    )  # fmt: skip
    restore = f"restoration ×{size.upscaler[2]} by a compact net"
    bench.time(
        f"{restore}, {faces}, frames on the device",
        lambda: restorer.restore(there, people),
        key="restore",
        cost=6,
    )
    few = frames[: size.cpu_frames]
    line = bench.time(
        f"{restore}, {len(few)} frames, in host memory", lambda: restorer.restore(few, people), key="restore host",
        cost=12, rounds=1,
    )  # fmt: skip
    line.note = line.note or "frames as --reference hands them over"
    overheads(bench, len(frames) / len(few))


def overheads(bench: Bench, scale: float) -> None:
    """Lock and restoration against windows of many and of few steps; ``scale``: of the shortened host line."""
    one, decode, tiny = (bench.seconds(key) for key in ("pass", "decode", "tiny"))
    device = _sum(bench.seconds("lock"), bench.seconds("restore"))
    long_host = bench.seconds("restore host")
    host = _sum(bench.seconds("lock host"), long_host * scale if long_host else None)
    windows = (
        (f"{STEPS}-step window", _sum(one and one * 2 * STEPS, decode), "≤ 0.015"),
        (f"{FEW}-step window", _sum(one and one * FEW, decode), "≤ 0.12"),
        (f"{FEW}-step window with the tiny decoder", _sum(one and one * FEW, tiny), "≤ 0.2"),
    )
    for place, seconds in (("frames on the device", device), ("frames in host memory", host)):
        for name, base, goal in windows:
            line = Line(f"lock + restoration ÷ {name}, {place}", goal=goal)
            line.ratio = seconds / base if seconds and base else None
            line.note = "" if line.ratio else "a part of it was not measured"
            bench.add(line)


def _sum(*parts: float | None) -> float | None:
    return None if any(part is None for part in parts) else sum(part for part in parts if part)


def portraits(bench: Bench, count: int) -> None:
    """The lock by image diffusion: with the recipes' settings, and with few steps on small crops."""
    large, small = bench.sizes.portrait.crops
    precision = "bfloat16" if bench.on_gpu else "float32"
    choices = {
        f"{large} px, 6 steps, guidance, face mask": PortraitSettings(
            mask="face", size=large, precision=precision
        ),
        f"{small} px, 4 steps, no guidance": PortraitSettings(
            sampler="lcm", steps=4, guidance_scale=1.0, size=small, precision=precision
        ),
    }
    frames = torch.rand(bench.sizes.portrait.frames, 3, *bench.sizes.blueprint, device=bench.device)
    for name, settings in choices.items():
        line = Line(f"lock by image diffusion, {name}")
        with bench.guarded([line]):
            line = _portrait(bench, line.what, settings, frames, count)
        if line not in bench.lines:
            bench.add(line)


def _portrait(bench: Bench, what: str, settings: PortraitSettings, frames: Tensor, count: int) -> Line:
    core = BuiltPortrait(bench, settings)
    aligner: Any = FaceID("", adapter="", encoder=ENCODER, opened=core)
    locker, people = Locker(face_pack(bench, count), aligner, ladder=[0.4], target=NEVER), cast(count)
    work: Callable[[], object] = lambda: locker.lock(frames, people)  # noqa: E731 - one of two arms
    line = bench.time(f"{what}, {len(frames)} frames, {count} faces each", work, cost=9, rounds=1)
    one, decode = bench.seconds("pass"), bench.seconds("decode")
    if line.timing and one and decode:
        share = line.timing.warm * bench.sizes.window / len(frames) / (one * 2 * STEPS + decode)
        line.note = f"{share:.3f} of a {STEPS}-step window, by its frames"
    return line


__all__ = ["lock_and_restore", "overheads", "portraits"]
