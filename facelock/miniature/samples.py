"""The sample faces of ``samples/faces``: held-out identities, rendered as reference pictures. Free to use."""

from __future__ import annotations

from pathlib import Path

import torch

from facelock.miniature import data, world
from facelock.miniature.parameters import APPEARANCE, HAIR_COLOURS, HAIR_STYLES, NUISANCE, take

CAST = {
    "maria": (26, "long", "red", False, False),
    "leo": (25, "short", "brown", False, True),
    "aisha": (8, "bun", "black", True, False),
    "tom": (39, "curly", "blonde", False, False),
}
"""Name → held-out identity, hair style, hair colour, glasses, beard."""
PORTRAIT = {
    "scale": 0.66,
    "ty": 0.02,
    "open": -0.5,
    "blink": -2.0,
    "light_x": 0.25,
    "light_y": 0.5,
    "ambient": 0.58,
    "intensity": 0.75,
    "place": 0.5,
    "cloth_saturation": 0.4,
    "cloth_value": 0.6,
}
"""The nuisance of a reference picture: facing the camera, even light, a studio."""


def portrait(name: str, size: int = 512) -> torch.Tensor:
    """One sample character, (1, 3, size, size) in [0, 1]."""
    index, style, colour, glasses, beard = CAST[name]
    face = take(data.identities("heldout", index + 1), slice(index, index + 1))
    look = {k: torch.full((1,), (lo + hi) / 2) for k, (lo, hi) in APPEARANCE.items()}
    look["hair_style"] = torch.tensor([HAIR_STYLES.index(style) + 0.5])
    look["hair_colour"] = torch.tensor([list(HAIR_COLOURS).index(colour) + 0.5])
    look["glasses"], look["beard"] = torch.tensor([float(glasses) - 0.5]), torch.tensor([float(beard) - 0.5])
    now = {k: torch.zeros(1) for k in NUISANCE} | {k: torch.tensor([v]) for k, v in PORTRAIT.items()}
    now["cloth_hue"] = torch.tensor([0.12 + 0.21 * list(CAST).index(name)])
    return world.render(face, look, now, size)


def write(folder: Path) -> None:
    """Write every sample picture as PNG."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name in CAST:
        pixels = (portrait(name)[0].permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{name}.png")
