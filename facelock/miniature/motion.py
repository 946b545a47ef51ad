"""How a portrait moves: stationary motions, so that a clip can go on for ever without running out of pose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facelock.miniature.parameters import ACTIONS, MOTIONS, Params

FPS = 12


class _Waves:
    """Sums of two slow sinusoids with random phase and a little random frequency, one per clip."""

    def __init__(self, clips: int, frames: int, generator: torch.Generator) -> None:
        self.n, self.g = clips, generator
        self.t = torch.arange(frames).view(1, -1) / FPS

    def __call__(self, amplitude: float | Tensor, hertz: float) -> Tensor:
        def draw() -> Tensor:
            return torch.rand(self.n, 1, generator=self.g)

        f1, f2 = hertz * (0.85 + 0.3 * draw()), hertz * 1.7 * (0.85 + 0.3 * draw())
        first = torch.sin(2 * math.pi * (f1 * self.t + draw()))
        second = torch.sin(2 * math.pi * (f2 * self.t + draw()))
        return amplitude * (0.8 * first + 0.2 * second)


def clip_nuisance(
    base: Params, action: Tensor, motion: Tensor, frames: int, generator: torch.Generator
) -> Params:
    """Nuisance parameters (clips · frames,) of moving clips.

    ``base`` holds one value per clip for what stays (place, light, clothes, camera); ``action`` and ``motion``
    (clips,) index :data:`~facelock.miniature.parameters.ACTIONS` and ``MOTIONS``.
    """
    n = action.shape[0]
    wave = _Waves(n, frames, generator)

    def rand(lo: float, hi: float) -> Tensor:
        return torch.rand(n, 1, generator=generator) * (hi - lo) + lo

    def when(index: Tensor, names: tuple[str, ...], name: str) -> Tensor:
        return (index == names.index(name)).float().view(-1, 1)

    turning, nodding, looking = (when(motion, MOTIONS, m) for m in ("turning", "nodding", "looking around"))
    talking, smiling, laughing = (when(action, ACTIONS, a) for a in ("talking", "smiling", "laughing"))
    yaw = (
        rand(-0.16, 0.16) * (1 - turning)
        + wave(0.05, 0.2)
        + turning * wave(0.42, 0.22)
        + looking * wave(0.24, 0.45)
    )
    pitch = rand(-0.06, 0.06) + wave(0.025, 0.25) + nodding * wave(0.17, 0.9) + looking * wave(0.06, 0.35)
    pitch = pitch - laughing * 0.1  # thrown back: negative looks up
    # An actor's expressions, broader than a portrait's: a smile half as wide is half a pixel of the blueprint's frames.
    speech = torch.maximum(wave(0.7, 1.6), torch.zeros(1)) + 0.12
    moving: Params = {
        "yaw": yaw,
        "pitch": pitch,
        "roll": rand(-0.05, 0.05) + wave(0.035, 0.2),
        "open": -0.3 + talking * (0.3 + speech) + laughing * (1.1 + wave(0.25, 2.2)),
        "smile": rand(-0.25, 0.05) + smiling * 1.4 + laughing * 1.2 + wave(0.08, 0.3),
        "gaze_x": wave(0.22, 0.3) + looking * wave(0.65, 0.45),
        "gaze_y": wave(0.15, 0.3),
        "brow_raise": wave(0.4, 0.3) + laughing * 0.5,
        "tx": base["tx"].view(-1, 1) + wave(0.015, 0.15),
        "ty": base["ty"].view(-1, 1) + wave(0.010, 0.2),
    }
    period = rand(2.0, 3.5)
    into = (wave.t + rand(0.0, 3.5)) % period
    narrowed = smiling * 0.25 + laughing * 0.4 - 2.6 * (1 - smiling - laughing)
    moving["blink"] = (1.3 - 9.0 * (into - 0.2).abs()).clamp(max=1.0).maximum(narrowed)
    still = {k: v.view(-1, 1).expand(n, frames) for k, v in base.items() if k not in moving}
    return {k: v.expand(n, frames).reshape(-1) for k, v in (moving | still).items()}
