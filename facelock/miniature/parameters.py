"""What a portrait is made of: three disjoint groups of parameters, each a dict of (B,) float32 tensors.

``identity``   the face itself: skull, jaw, eyes, brows, nose, mouth, skin, marks. The same in every picture of
               a character; what the recognisers learn and the lock restores.
``appearance`` what a prompt controls: hair, glasses, beard.
``nuisance``   what changes from frame to frame or shot to shot: pose, expression, gaze, light, place, clothes,
               camera.

Lengths are in head units (half the height of a skull is about 1), angles in radians, colours in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Tensor]

IDENTITY: dict[str, tuple[float, float]] = {
    "skull_w": (0.64, 0.80),
    "head_top": (0.90, 1.04),
    "head_low": (0.92, 1.15),
    "jaw": (-0.15, 0.18),
    "chin": (-0.12, 0.14),
    "cheek": (-0.05, 0.10),
    "depth": (0.80, 0.95),
    "eye_x": (0.25, 0.345),
    "eye_y": (0.02, 0.13),
    "eye_w": (0.105, 0.165),
    "eye_r": (0.50, 0.88),
    "eye_slant": (-0.28, 0.28),
    "iris_r": (0.62, 0.88),
    "iris_hue": (0.0, 1.0),
    "iris_value": (0.25, 0.90),
    "brow_t": (0.016, 0.062),
    "brow_l": (0.10, 0.19),
    "brow_a": (-0.32, 0.32),
    "brow_gap": (0.15, 0.25),
    "brow_arch": (0.0, 0.06),
    "brow_tone": (0.0, 1.0),
    "nose_len": (0.26, 0.42),
    "nose_w": (0.075, 0.155),
    "nose_out": (0.06, 0.20),
    "nose_bridge": (0.4, 1.0),
    "mouth_y": (0.22, 0.34),
    "mouth_w": (0.16, 0.30),
    "lip_u": (0.018, 0.055),
    "lip_l": (0.024, 0.070),
    "lip_s": (0.15, 0.75),
    "mouth_curve": (-0.02, 0.05),
    "ear": (0.13, 0.23),
    "skin_tone": (0.0, 1.0),
    "skin_warmth": (-1.0, 1.0),
    "blush": (0.0, 0.40),
    "under_eye": (0.0, 0.45),
    "freckles": (-1.6, 1.0),
    "mole": (-1.6, 1.0),
    "mole_x": (-0.42, 0.42),
    "mole_y": (-0.65, -0.05),
    "lashes": (0.0, 1.0),
    "feminine": (0.0, 1.0),
}
"""Name → range. ``freckles`` and ``mole`` are present where positive; ``feminine`` > 0.5 is captioned "woman"."""

HAIR_COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.07, 0.06, 0.07),
    "brown": (0.33, 0.19, 0.10),
    "red": (0.66, 0.22, 0.08),
    "blonde": (0.88, 0.70, 0.36),
    "grey": (0.70, 0.70, 0.72),
    "blue": (0.20, 0.30, 0.66),
}
HAIR_STYLES = ("bald", "short", "bob", "long", "curly", "bun")
PLACES = ("studio", "forest", "beach", "city", "office", "sunset")
ACTIONS = ("silent", "talking", "smiling", "laughing")
MOTIONS = ("still", "turning", "nodding", "looking around")
LIGHTS = ("neutral", "warm", "cold")

APPEARANCE: dict[str, tuple[float, float]] = {
    "hair_colour": (0, len(HAIR_COLOURS)),
    "hair_shade": (0.88, 1.12),
    "hair_style": (0, len(HAIR_STYLES)),
    "hair_volume": (0.05, 0.12),
    "hair_line": (0.48, 0.64),
    "hair_part": (-0.4, 0.4),
    "hair_fringe": (-0.5, 0.5),
    "glasses": (-1.8, 1.0),
    "glasses_r": (0.175, 0.215),
    "glasses_square": (0, 1),
    "glasses_colour": (0, 4),
    "beard": (-1.6, 1.0),
}
NUISANCE: dict[str, tuple[float, float]] = {
    "yaw": (-0.55, 0.55),
    "pitch": (-0.24, 0.24),
    "roll": (-0.16, 0.16),
    "scale": (0.58, 0.68),
    "tx": (-0.08, 0.08),
    "ty": (-0.02, 0.08),
    "open": (-0.7, 1.35),
    "smile": (-0.4, 1.55),
    "blink": (-2.6, 1.0),
    "gaze_x": (-0.9, 0.9),
    "gaze_y": (-0.5, 0.5),
    "brow_raise": (-1.0, 1.0),
    "light_x": (-0.9, 0.9),
    "light_y": (-0.1, 0.9),
    "ambient": (0.46, 0.66),
    "temperature": (-1.0, 1.0),
    "intensity": (0.55, 0.90),
    "place": (0, len(PLACES)),
    "place_a": (0.0, 1.0),
    "place_b": (0.0, 1.0),
    "cloth_hue": (0.0, 1.0),
    "cloth_saturation": (0.15, 0.75),
    "cloth_value": (0.28, 0.88),
    "cloth_pattern": (0, 3),
}


def _uniform(spec: Mapping[str, tuple[float, float]], n: int, generator: torch.Generator) -> Params:
    return {k: torch.rand(n, generator=generator) * (hi - lo) + lo for k, (lo, hi) in spec.items()}


def sample_identity(n: int, generator: torch.Generator) -> Params:
    """Draw ``n`` faces; women and men share every parameter, with shifted jaws, brows, lips and lashes."""
    p = _uniform(IDENTITY, n, generator)
    woman = (p["feminine"] > 0.5).float()
    for name, shift in (("jaw", -0.3), ("brow_t", -0.35), ("lip_s", 0.35), ("lashes", 0.5), ("chin", -0.15)):
        lo, hi = IDENTITY[name]
        shrunk = lo + (p[name] - lo) * (1 - abs(shift))
        offset = (hi - lo) * abs(shift)
        up = woman if shift > 0 else 1 - woman
        p[name] = shrunk + offset * up
    return p


def sample_appearance(n: int, generator: torch.Generator, feminine: Tensor | None = None) -> Params:
    """Draw hair, glasses and beard; a beard only where ``feminine`` (n,) is at most 0.5."""
    p = _uniform(APPEARANCE, n, generator)
    if feminine is not None:
        woman = feminine > 0.5
        p["beard"] = torch.where(woman, torch.full_like(p["beard"], -1.0), p["beard"])
        bald = p["hair_style"] < 1
        p["hair_style"] = torch.where(woman & bald, p["hair_style"] + 3, p["hair_style"])
    return p


def sample_nuisance(n: int, generator: torch.Generator) -> Params:
    """Draw poses (denser near the front), expressions, light, place, clothes and camera."""
    p = _uniform(NUISANCE, n, generator)
    for name in ("yaw", "pitch", "roll"):
        p[name] = p[name] * (torch.rand(n, generator=generator) * 0.7 + 0.3)
    return p


def take(p: Params, index: Tensor | slice) -> Params:
    """Return the rows ``index`` of every parameter."""
    return {k: v[index] for k, v in p.items()}


def concat(parts: Sequence[Params]) -> Params:
    """Concatenate parameter dicts along the batch."""
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def constants(values: Sequence[Any], device: torch.device) -> Tensor:
    """A small table on ``device``, without waiting for what a GPU still has to do."""
    table = torch.tensor(values)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def to_device(p: Params, device: torch.device | str) -> Params:
    """Move every parameter to ``device``."""
    return {k: v.to(device) for k, v in p.items()}


def identity_vector(p: Params) -> Tensor:
    """Return the (B, V) regression target: each visible identity parameter, scaled to about [-1, 1].

    Marks that are absent contribute nothing, so that two faces without a mole agree wherever it would sit.
    """
    columns = []
    for name, (lo, hi) in IDENTITY.items():
        x = (p[name] - lo) / (hi - lo) * 2 - 1
        if name in ("freckles", "mole"):
            x = (p[name] > 0).float() * (0.6 + 0.4 * p[name]) * 2 - 0.6
        if name in ("mole_x", "mole_y"):
            x = x * (p["mole"] > 0).float()
        columns.append(x)
    return torch.stack(columns, 1)


def siblings(p: Params, generator: torch.Generator, changed: int = 5) -> Params:
    """Return one sibling of each face: the same but for ``changed`` random parameters."""
    n = p["jaw"].shape[0]
    other = sample_identity(n, generator)
    names = list(IDENTITY)
    order = torch.rand(n, len(names), generator=generator).argsort(1)[:, :changed]
    mask = torch.zeros(n, len(names), dtype=torch.bool).scatter_(1, order, True)
    return {k: torch.where(mask[:, i], other[k], p[k]) for i, k in enumerate(names)}
