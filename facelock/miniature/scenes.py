"""The places behind a portrait, drawn from a handful of shapes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from facelock.miniature.parameters import PLACES, Params, constants

if TYPE_CHECKING:
    from facelock.miniature.world import Rays

Colour = list[Tensor]

# place:      studio               forest             beach              city               office             sunset
TOP = (
    (0.75, 0.78, 0.82),
    (0.55, 0.75, 0.62),
    (0.45, 0.72, 0.95),
    (0.05, 0.07, 0.18),
    (0.86, 0.85, 0.80),
    (0.32, 0.22, 0.50),
)
MIDDLE = (
    (0.62, 0.65, 0.70),
    (0.75, 0.88, 0.62),
    (0.80, 0.92, 0.98),
    (0.16, 0.14, 0.34),
    (0.92, 0.91, 0.87),
    (0.98, 0.55, 0.28),
)
GROUND = (
    (0.50, 0.52, 0.56),
    (0.22, 0.42, 0.18),
    (0.93, 0.84, 0.60),
    (0.10, 0.10, 0.14),
    (0.50, 0.36, 0.26),
    (0.20, 0.14, 0.28),
)
HORIZON = (-0.90, -0.35, -0.25, -0.60, -0.55, -0.35)
BAR_COLOUR = (
    (0.0, 0.0, 0.0),
    (0.16, 0.40, 0.20),
    (0.0, 0.0, 0.0),
    (0.10, 0.11, 0.20),
    (0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0),
)


def hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Colour:
    """HSV → RGB planes, each of the inputs' shape."""
    out = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + hue * 6) % 6
        out.append(value * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1)))
    return out


class _Scene:
    def __init__(self, rays: Rays, now: Params) -> None:
        self.x, self.y, self.pitch, self.now = rays.x, rays.y, rays.pitch, now
        self.place = now["place"].long().clamp(0, len(PLACES) - 1).view(-1)
        self.image: Colour = []

    def value(self, table: tuple[float, ...]) -> Tensor:
        return constants(table, self.x.device)[self.place].view(-1, 1, 1)

    def colour(self, table: tuple[tuple[float, ...], ...]) -> Colour:
        c = constants(table, self.x.device)[self.place]
        return [c[:, i].view(-1, 1, 1) for i in range(3)]

    def only(self, name: str) -> Tensor:
        return (self.place == PLACES.index(name)).float().view(-1, 1, 1)

    def over(self, alpha: Tensor, colour: Colour | tuple[float, ...]) -> None:
        self.image = [c + (k - c) * alpha for c, k in zip(self.image, colour, strict=True)]

    def edge(self, distance: Tensor) -> Tensor:
        return (0.5 - distance / (2 * self.pitch)).clamp(0, 1)

    def disc(self, cx: Tensor | float, cy: Tensor | float, r: Tensor | float) -> Tensor:
        return self.edge(torch.sqrt((self.x - cx) ** 2 + (self.y - cy) ** 2 + 1e-6) - r)

    def box(self, cx: Tensor | float, cy: Tensor | float, w: float, h: float) -> Tensor:
        return self.edge(torch.maximum((self.x - cx).abs() - w, (self.y - cy).abs() - h))


def background(rays: Rays, now: Params) -> Colour:
    """Three (B, H, W) planes of the place behind the character."""
    s = _Scene(rays, now)
    a, b = now["place_a"], now["place_b"]
    horizon = s.value(HORIZON) + (a - 0.5) * 0.25
    waves = s.value((0, 0.06, 0, 0, 0, 0.08)) * torch.sin(s.x * 3 + b * 2 * math.pi)
    t = ((s.y - horizon) / (1 - horizon)).clamp(0, 1)
    s.image = [m * (1 - t) + u * t for m, u in zip(s.colour(MIDDLE), s.colour(TOP), strict=True)]
    sun = s.value((0, 0, 0.14, 0.10, 0, 0.20))
    s.over(s.disc(-0.65 + b * 1.3, 0.62 + 0.2 * a, sun.clamp(min=1e-3)) * (sun > 0), (1.0, 0.95, 0.70))
    _upright(s, a, b)
    _indoors(s, a)
    s.over(s.edge(s.y - horizon - waves), s.colour(GROUND))
    sea = s.only("beach") * s.edge(-(s.y - horizon)) * s.edge(s.y - horizon - 0.28)
    s.over(sea, (0.16, 0.50, 0.70))
    return s.image


def _upright(s: _Scene, a: Tensor, b: Tensor) -> None:
    """Fir trees of the forest, houses with lit windows of the city."""
    frequency = s.value((1, 4.0, 1, 3.0, 1, 1))
    position = s.x * frequency + b * 3
    cell = position.floor()
    u = position - cell - 0.5
    chance = (torch.sin(cell * 12.9898 + a * 40) * 43758.5).frac().abs()
    top = s.value((-9, -0.05, -9, 0.1, -9, -9)) + chance * s.value((0, 0.7, 0, 0.7, 0, 0))
    taper = torch.where(
        s.only("forest") > 0, ((top - s.y).clamp(0, 1) * 1.1).clamp(max=1), torch.ones_like(s.x)
    )
    bar = s.edge((u.abs() - s.value((0, 0.5, 0, 0.46, 0, 0)) * taper) / frequency) * (s.y < top)
    s.over(bar, s.colour(BAR_COLOUR))
    wx, wy = (s.x * frequency * 4).frac().abs(), (s.y * 9 + 20).frac()
    lit = (
        torch.sin((s.x * frequency * 4).floor() * 3.1 + (s.y * 9).floor() * 7.7 + b * 6.28) * 999
    ).frac().abs() > 0.45
    window = (wx > 0.3) & (wx < 0.75) & (wy > 0.3) & (wy < 0.75) & lit
    s.over(bar * s.only("city") * window, (0.98, 0.85, 0.45))


def _indoors(s: _Scene, a: Tensor) -> None:
    """The office's window and shelf of books."""
    office, wx = s.only("office"), -0.62 + 0.2 * a
    s.over(office * s.box(wx, 0.35, 0.26, 0.36), (0.60, 0.80, 0.95))
    s.over(office * s.box(wx, 0.35, 0.018, 0.36), (0.95, 0.95, 0.95))
    for k, colour in enumerate(((0.75, 0.25, 0.20), (0.20, 0.45, 0.60), (0.85, 0.70, 0.30))):
        s.over(office * s.box(0.52 + 0.13 * k, 0.12 + 0.02 * k, 0.05, 0.20 + 0.02 * k), colour)
    s.over(office * s.box(0.66, -0.11, 0.28, 0.03), (0.45, 0.30, 0.18))
