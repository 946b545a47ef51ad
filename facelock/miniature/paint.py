"""What is painted on the head: eyes, brows, mouth, beard, marks. In head coordinates, antialiased."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facelock.miniature.parameters import Params, constants

Colour = list[Tensor]

IRIS = (
    (0.20, 0.12, 0.07),
    (0.45, 0.27, 0.11),
    (0.34, 0.42, 0.18),
    (0.20, 0.50, 0.42),
    (0.20, 0.42, 0.72),
    (0.52, 0.62, 0.70),
)
BROW = ((0.06, 0.05, 0.05), (0.24, 0.15, 0.09), (0.50, 0.26, 0.12), (0.68, 0.55, 0.36))


@dataclass
class FaceRays:
    """Hit points on the head's surface (B, H, W) and the pixel's size in head units."""

    x: Tensor
    y: Tensor
    z: Tensor
    pixel: Tensor

    def cover(self, distance: Tensor, softness: float = 1.0) -> Tensor:
        """Coverage from a signed distance to an edge."""
        return (0.5 - distance / (self.pixel * softness)).clamp(0, 1)


def _step(lo: float | Tensor, hi: float | Tensor, x: Tensor) -> Tensor:
    return ((x - lo) / (hi - lo)).clamp(0, 1)


def _fraction(x: Tensor) -> Tensor:
    return x.abs() - x.abs().floor()


def _mix_table(table: tuple[tuple[float, ...], ...], position: Tensor) -> Colour:
    colours = constants(table, position.device)
    x = position.reshape(-1) * (len(table) - 1)
    i = x.clamp(0, len(table) - 1.001).long()
    f = (x - i).clamp(0, 1).unsqueeze(-1)
    mixed = colours[i] * (1 - f) + colours[i + 1] * f
    return [mixed[:, c].view(-1, 1, 1) for c in range(3)]


class Painter:
    """Layers of paint on the skin of the front of the head."""

    def __init__(self, rays: FaceRays, skin: Colour) -> None:
        self.rays = rays
        self.front = (rays.z > 0).float()
        self.colour = [c.expand(rays.x.shape) for c in skin]
        self.skin = skin
        self.dark = [c * 0.62 for c in skin]

    def put(self, alpha: Tensor, colour: Colour | tuple[float, ...]) -> None:
        """Paint ``colour`` with opacity ``alpha``."""
        self.colour = [c + (k - c) * alpha for c, k in zip(self.colour, colour, strict=True)]


def paint_face(rays: FaceRays, p: Params, look: Params, now: Params, skin: Colour, hair: Colour) -> Colour:
    """Return the head's colour (three (B, H, W) planes) before shading."""
    painter = Painter(rays, skin)
    ax = rays.x.abs()
    tip = p["eye_y"] - p["nose_len"]
    eye_x = p["eye_x"] * p["skull_w"] / 0.72
    _complexion(painter, p, ax, eye_x, tip)
    _beard(painter, p, look, now, hair, ax, tip)
    _mouth(painter, p, now, ax, tip)
    _eyes(painter, p, now, ax, eye_x)
    _brows(painter, p, now, ax, eye_x)
    return painter.colour


def _complexion(painter: Painter, p: Params, ax: Tensor, eye_x: Tensor, tip: Tensor) -> None:
    rays, skin, front = painter.rays, painter.skin, painter.front
    blush = torch.exp(-(((ax - eye_x * 1.25) / 0.17) ** 2) - ((rays.y - tip - 0.02) / 0.13) ** 2)
    painter.put(blush * p["blush"] * front, [skin[0], skin[1] * 0.62, skin[2] * 0.62])
    below = rays.y - p["eye_y"] + p["eye_w"] * 0.95
    shadow = torch.exp(-(((ax - eye_x) / (p["eye_w"] * 1.1)) ** 2) - (below / 0.05) ** 2)
    painter.put(shadow * p["under_eye"] * front, painter.dark)
    cells_x, cells_y = rays.x * 11.0, rays.y * 11.0
    cx, cy = cells_x.floor(), cells_y.floor()
    r1 = _fraction(torch.sin(cx * 12.99 + cy * 78.23) * 437.58)
    r2 = _fraction(torch.sin(cx * 39.34 + cy * 11.13) * 917.3)
    dot = torch.sqrt((cells_x - cx - 0.3 - 0.4 * r1) ** 2 + (cells_y - cy - 0.3 - 0.4 * r2) ** 2) / 11.0
    region = torch.exp(-(((ax - 0.26) / 0.24) ** 2) - ((rays.y + 0.20) / 0.15) ** 2)
    freckle = rays.cover(dot - 0.022) * (r1 * r2 * 3 > 0.5) * _step(0.2, 0.5, region)
    strength = (p["freckles"] > 0) * (0.45 + 0.45 * p["freckles"].clamp(min=0))
    painter.put(freckle * strength * front, [skin[0] * 0.66, skin[1] * 0.50, skin[2] * 0.42])
    spot = torch.sqrt((rays.x - p["mole_x"]) ** 2 + (rays.y - p["mole_y"]) ** 2) - 0.030
    painter.put(rays.cover(spot) * (p["mole"] > 0) * front, [skin[0] * 0.3, skin[1] * 0.2, skin[2] * 0.18])
    nostrils = torch.exp(-2 * (ax / (p["nose_w"] * 1.5)) ** 2 - 2 * ((rays.y - tip + 0.10) / 0.045) ** 2)
    painter.put(nostrils * 0.4 * front, painter.dark)


def _beard(
    painter: Painter, p: Params, look: Params, now: Params, hair: Colour, ax: Tensor, tip: Tensor
) -> None:
    rays = painter.rays
    mouth = tip - p["mouth_y"] + 0.02
    grown = (look["beard"] > 0).float()
    grain = 0.90 + 0.10 * torch.sin(rays.x * 60) * torch.sin(rays.y * 55)
    colour = [(0.55 * c + 0.45 * k) * grain for c, k in zip(hair, (0.13, 0.09, 0.07), strict=True)]
    chin = _step(-0.02, 0.10, mouth + 0.06 - rays.y + (ax - 0.32).clamp(min=0) * 1.1) * (rays.z > -0.15)
    painter.put(chin * grown * 0.82, colour)
    lip = (rays.y - (mouth + 0.105) + ax * ax).abs() - 0.040
    moustache = rays.cover(torch.maximum(lip, ax - p["mouth_w"] * 1.02), 2.0)
    painter.put(moustache * grown * painter.front * 0.85, colour)


def _mouth(painter: Painter, p: Params, now: Params, ax: Tensor, tip: Tensor) -> None:
    rays, skin, front = painter.rays, painter.skin, painter.front
    opened, smile = now["open"], now["smile"]
    centre = tip - p["mouth_y"] + 0.02 - 0.05 * opened
    half = p["mouth_w"] * (1 + 0.16 * smile - 0.12 * opened)
    u2 = (rays.x / half) ** 2
    edge = (1 - u2).clamp(min=0)
    y = rays.y - (centre + (p["mouth_curve"] + 0.055 * smile) * (u2 - 0.35))
    gap = opened * 0.15 * edge**0.7
    inside = front * (ax < half)
    lips = [
        skin[0] * (1 - 0.05 * p["lip_s"]) + 0.02,
        skin[1] * (1 - 0.55 * p["lip_s"]),
        skin[2] * (1 - 0.45 * p["lip_s"]),
    ]
    upper = p["lip_u"] * edge**0.6 * (1 - 0.25 * torch.exp(-(u2 / 0.0256)))
    lower = p["lip_l"] * edge**0.55
    painter.put(rays.cover(torch.maximum(y - upper - gap * 0.12, -y - lower - gap)) * inside, lips)
    hole = rays.cover(torch.maximum(y - gap * 0.12, -y - gap)) * inside * (opened > 0.04)
    painter.put(hole, (0.30, 0.06, 0.07))
    painter.put(hole * rays.cover(-(y + gap * 0.28 + 0.004)), (0.95, 0.94, 0.90))
    painter.put(hole * rays.cover(y + gap * 0.72), (0.78, 0.32, 0.32))
    seam = rays.cover(y.abs() - 0.010) * inside * (opened <= 0.04) * _step(1.0, 0.9, u2)
    painter.put(seam, [skin[0] * 0.42, skin[1] * 0.24, skin[2] * 0.22])
    corner = torch.sqrt((ax - half) ** 2 + y * y) - 0.018
    painter.put(rays.cover(corner) * front * 0.5, painter.dark)
    ring = (torch.sqrt((ax - 0.02) ** 2 + (rays.y - tip + 0.10) ** 2) - (p["mouth_w"] + 0.10)) / 0.018
    fold = torch.exp(-ring * ring) * ((rays.y < tip) & (rays.y > centre - 0.04))
    painter.put(fold * front * 0.25 * smile.clamp(min=0), painter.dark)


def _eyes(painter: Painter, p: Params, now: Params, ax: Tensor, eye_x: Tensor) -> None:
    rays, front = painter.rays, painter.front
    side = torch.sign(rays.x)
    lx, ly = ax - eye_x, rays.y - p["eye_y"]
    ca, sa = p["eye_slant"].cos(), p["eye_slant"].sin()
    eu, ev = lx * ca + ly * sa, ly * ca - lx * sa
    width, height = p["eye_w"], p["eye_w"] * p["eye_r"]
    u = eu / width
    arch = (1 - u * u).clamp(min=0)
    root = arch.sqrt()
    within = (u.abs() < 1).float() * front
    top = height * root * (1.0 - 1.04 * now["blink"]) - height * 0.22 * now["blink"] * arch
    bottom = torch.minimum(-height * 0.80 * arch**0.7 * (1 - 0.10 * now["smile"].clamp(min=0)), top)
    eye = rays.cover(torch.maximum(ev - top, bottom - ev)) * within
    crease = (ev - height * root - 0.042) / 0.016
    painter.put(torch.exp(-crease * crease) * (u.abs() < 1.02) * front * 0.45, painter.dark)
    lid = rays.cover(torch.maximum(ev - height * root, -ev - height * 0.8 * root)) * within
    painter.put(lid * 0.30, painter.dark)
    painter.put(eye, (0.97, 0.97, 0.96))
    radius = height * p["iris_r"]
    gx, gy = now["gaze_x"] * width * 0.34, now["gaze_y"] * height * 0.25
    from_iris = torch.sqrt((lx - gx * side) ** 2 + (ly - gy) ** 2)
    iris = [c * (0.6 + 0.7 * p["iris_value"]) for c in _mix_table(IRIS, p["iris_hue"])]
    painter.put(eye * rays.cover(from_iris - radius), [c * 0.45 for c in iris])
    glow = 1.25 - 0.35 * ((ly - gy) / radius.clamp(min=0.02)).clamp(-1, 1) * 0.5 - 0.17
    painter.put(eye * rays.cover(from_iris - radius * 0.84), [c * glow for c in iris])
    painter.put(eye * rays.cover(from_iris - radius * 0.45), (0.03, 0.03, 0.04))
    painter.put(eye * _step(top - 0.05, top, ev) * 0.35, (0.25, 0.20, 0.20))
    spark = torch.sqrt((rays.x - side * eye_x - gx - radius * 0.32) ** 2 + (ly - gy - radius * 0.36) ** 2)
    painter.put(eye * rays.cover(spark - radius * 0.24), (1.0, 1.0, 1.0))
    lash = (ev - top - 0.008).abs() - 0.010 - 0.012 * p["lashes"] * (0.6 + 0.4 * u)
    painter.put(rays.cover(lash) * (u.abs() < 1.05) * front, (0.10, 0.07, 0.06))


def _brows(painter: Painter, p: Params, now: Params, ax: Tensor, eye_x: Tensor) -> None:
    rays = painter.rays
    bx, by = ax - eye_x - 0.02, rays.y - (p["eye_y"] + p["brow_gap"] + 0.05 * now["brow_raise"])
    ca, sa = p["brow_a"].cos(), p["brow_a"].sin()
    u, v = bx * ca + by * sa, by * ca - bx * sa
    along = u / p["brow_l"]
    thick = p["brow_t"] * (1 - 0.45 * _step(-0.2, 1.0, along))
    v = v - p["brow_arch"] * (1 - along * along)
    shape = rays.cover(torch.maximum(v.abs() - thick, u.abs() - p["brow_l"]))
    painter.put(shape * painter.front * 0.92, _mix_table(BROW, p["brow_tone"]))
