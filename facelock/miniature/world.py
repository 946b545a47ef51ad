"""The renderer: portraits by analytic ray casting, orthographic, batched, in plain torch.

A head is an ellipsoid whose width follows a jaw profile (found by a few fixed-point steps), with nose, ears,
hair, neck and shoulders as further ellipsoids; eyes, brows, mouth, beard and marks are painted in head
coordinates. Edges are antialiased from the ray's closest approach. Nothing is random here: the same parameters
give the same picture, on any grid of rays, so that a canonical crop is rendered directly instead of resampled.

Frame units: x and y in [-1, 1] over the picture's square, y up. Pixels: x right, y down, centre of the first
pixel at (0, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from facelock.miniature import scenes
from facelock.miniature.paint import FaceRays, paint_face
from facelock.miniature.parameters import HAIR_COLOURS, HAIR_STYLES, Params, constants, take

Colour = list[Tensor]

SKIN = (
    (0.97, 0.84, 0.76),
    (0.94, 0.77, 0.65),
    (0.87, 0.66, 0.51),
    (0.74, 0.53, 0.37),
    (0.56, 0.37, 0.25),
    (0.38, 0.24, 0.17),
)
GLASSES = ((0.06, 0.06, 0.07), (0.45, 0.10, 0.10), (0.70, 0.56, 0.22), (0.12, 0.25, 0.45))
BATCH = 32
"""Pictures rendered at once: keeps the working set of a 64×64 batch inside a core's cache."""


@dataclass
class Rays:
    """A grid of parallel rays: frame coordinates ``x`` ``y`` (B, H, W) and the pixel pitch (B, 1, 1)."""

    x: Tensor
    y: Tensor
    pitch: Tensor


def smooth(lo: Tensor | float, hi: Tensor | float, x: Tensor) -> Tensor:
    """Linear step from 0 at ``lo`` to 1 at ``hi``."""
    return ((x - lo) / (hi - lo)).clamp(0, 1)


def rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """(B, 3, 3) head → camera rotation; positive yaw turns the face to the picture's right."""
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    cy, sy, cp, sp, cr, sr = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin(), roll.cos(), roll.sin()
    ry = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], -1).view(-1, 3, 3)
    rx = torch.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], -1).view(-1, 3, 3)
    rz = torch.stack([cr, -sr, zero, sr, cr, zero, zero, zero, one], -1).view(-1, 3, 3)
    return rz @ rx @ ry


def head_profile(p: Params, y: Tensor) -> tuple[Tensor, Tensor]:
    """Width factor of the head at height ``y`` and its derivative: cheek bump, then jaw and chin taper."""
    below = (-(y + 0.05)).clamp(min=0)
    bump = torch.exp(-(((y + 0.18) / 0.22) ** 2))
    w = 1 + p["jaw"] * below + p["cheek"] * bump + 0.9 * p["chin"] * below * below
    dw = -(p["jaw"] + 1.8 * p["chin"] * below) * (below > 0) - p["cheek"] * bump * 2 * (y + 0.18) / 0.0484
    return w.clamp(0.55, 1.35), dw


def lookup(table: Tensor, position: Tensor) -> Tensor:
    """Linear interpolation in a (L, 3) colour table at ``position`` (B,) in [0, L-1]."""
    i = position.clamp(0, table.shape[0] - 1.001).long()
    f = (position - i).unsqueeze(-1).clamp(0, 1)
    return table[i] * (1 - f) + table[i + 1] * f


def hair_rgb(appearance: Params) -> Tensor:
    """(B, 3) hair colour: the named one in its shade, or ``hair_r``, ``hair_g``, ``hair_b`` where given."""
    if "hair_r" in appearance:
        return torch.stack([appearance["hair_r"], appearance["hair_g"], appearance["hair_b"]], -1)
    table = constants(list(HAIR_COLOURS.values()), appearance["hair_colour"].device)
    colour = table[appearance["hair_colour"].long().clamp(0, len(HAIR_COLOURS) - 1)]
    return colour * appearance["hair_shade"].unsqueeze(-1)


class Portrait:
    """One batch of pictures being composited, back to front."""

    def __init__(self, identity: Params, appearance: Params, nuisance: Params, rays: Rays) -> None:
        b = rays.x.shape[0]
        self.shape = rays.x.shape
        self.rays = rays
        view = lambda d: {k: v.view(b, 1, 1) for k, v in d.items()}  # noqa: E731
        self.id, self.look, self.now = view(identity), view(appearance), view(nuisance)
        self.now["open"] = self.now["open"].clamp(min=0)
        self.now["blink"] = (self.now["blink"] * 1.3).clamp(0, 1)
        self.rot = rotation(nuisance["yaw"], nuisance["pitch"], nuisance["roll"])
        self.qx = (rays.x - self.now["tx"]) / self.now["scale"]
        self.qy = (rays.y - self.now["ty"]) / self.now["scale"]
        r = self.rot
        el = lambda i, j: r[:, i, j].view(b, 1, 1)  # noqa: E731
        self.origin = [el(0, j) * self.qx + el(1, j) * self.qy for j in range(3)]
        self.direction = [el(2, j) for j in range(3)]
        self.pixel = rays.pitch / self.now["scale"]
        light = torch.stack(
            [nuisance["light_x"], nuisance["light_y"], torch.full_like(nuisance["light_x"], 1.1)], -1
        )
        light = light / light.norm(dim=-1, keepdim=True)
        self.light_body = [light[:, i].view(b, 1, 1) for i in range(3)]
        head_light = torch.einsum("bij,bi->bj", r, light)
        self.light_head = [head_light[:, i].view(b, 1, 1) for i in range(3)]
        self.tint = [1 + 0.07 * self.now["temperature"], 1.0, 1 - 0.09 * self.now["temperature"]]
        skin = lookup(constants(SKIN, r.device), identity["skin_tone"] * 5)
        skin = (
            skin + identity["skin_warmth"].unsqueeze(-1) * constants([0.02, -0.004, -0.03], r.device)
        ).clamp(0.05, 1)
        self.skin = [skin[:, i].view(b, 1, 1) for i in range(3)]
        hair = hair_rgb(appearance)
        self.hair = [hair[:, i].view(b, 1, 1) for i in range(3)]
        self.style = appearance["hair_style"].long().clamp(0, len(HAIR_STYLES) - 1)
        self.depth = torch.full(self.shape, -1e3, device=r.device)
        self.image: Colour = []

    def by_style(self, **values: float) -> Tensor:
        """(B, 1, 1) value per hair style, 0 where the style is not named."""
        table = constants([values.get(s, 0.0) for s in HAIR_STYLES], self.style.device)
        return table[self.style].view(-1, 1, 1)

    def cover(self, distance: Tensor, softness: float = 1.0) -> Tensor:
        """Coverage of a pixel whose signed distance (head units) to an edge is ``distance``."""
        return (0.5 - distance / (self.pixel * softness)).clamp(0, 1)

    def over(self, alpha: Tensor, colour: Colour | tuple[float, ...]) -> None:
        """Composite ``colour`` over the picture."""
        for i in range(3):
            self.image[i] = self.image[i] + (colour[i] - self.image[i]) * alpha

    def put(self, t: Tensor, alpha: Tensor, colour: Colour) -> None:
        """Composite a surface at depth ``t`` where it is in front."""
        visible = alpha * (t > self.depth)
        self.over(visible, colour)
        self.depth = torch.where(visible > 0.5, t, self.depth)

    def shade(self, colour: Colour, normal: list[Tensor], light: list[Tensor], gloss: float = 0.0) -> Colour:
        """Wrapped Lambert shading with a soft terminator and a small highlight."""
        lambert = normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2]
        diffuse = self.now["ambient"] + self.now["intensity"] * 0.72 * ((lambert + 0.35) / 1.35).clamp(min=0)
        shine = gloss * lambert.clamp(min=0) ** 24 if gloss else 0.0
        return [c * diffuse * k + shine for c, k in zip(colour, self.tint, strict=True)]

    def ellipsoid(
        self, centre: tuple[Tensor | float, ...], radius: tuple[Tensor | float, ...], *, body: bool = False
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Intersect the rays: depth, coverage, hit point and normal. ``body`` does not turn with the head."""
        if body:
            o = [self.qx - centre[0], self.qy - centre[1], torch.zeros_like(self.qx) - centre[2]]
            d: list[Tensor | float] = [0.0, 0.0, 1.0]
        else:
            o = [self.origin[i] - centre[i] for i in range(3)]
            d = list(self.direction)
        inv = [1 / r for r in radius]
        u = [o[i] * inv[i] for i in range(3)]
        v = [d[i] * inv[i] for i in range(3)]
        a = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
        b = u[0] * v[0] + u[1] * v[1] + u[2] * v[2]
        closest = (u[0] * u[0] + u[1] * u[1] + u[2] * u[2] - b * b / a).clamp(min=1e-8)
        t = (-b + torch.sqrt(((1 - closest) * a).clamp(min=0))) / a
        alpha = self.cover((torch.sqrt(closest) - 1) * (radius[0] * radius[1]) ** 0.5)
        hit = [o[i] + t * d[i] for i in range(3)]
        n = [hit[i] * inv[i] * inv[i] for i in range(3)]
        length = torch.rsqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2] + 1e-9)
        return t, alpha, hit, [x * length for x in n]

    def strands(self, hit: list[Tensor], frequency: float) -> Tensor:
        """Fine light and dark streaks of hair."""
        return 0.95 + 0.05 * torch.sin(frequency * hit[0] + 3 * hit[1])

    def draw_face(self) -> tuple[Tensor, Tensor]:
        """Only the head's front, on black: (B, 3, H, W) and its coverage (B, 1, H, W)."""
        self.image = [torch.zeros_like(self.rays.x) for _ in range(3)]
        self._head()
        self._nose()
        self._glasses()
        return torch.stack(self.image, 1).clamp(0, 1), self.head_alpha.unsqueeze(1)

    # ---- the parts, back to front

    def draw(self) -> Tensor:
        """Composite everything; returns (B, 3, H, W) in [0, 1]."""
        self.image = scenes.background(self.rays, self.now)
        self._back_hair()
        self._body()
        self._ears()
        self._head()
        self._nose()
        self._glasses()
        self._hair()
        return torch.stack(self.image, 1).clamp(0, 1)

    def _back_hair(self) -> None:
        length = self.by_style(bob=0.85, long=1.5, curly=0.75)
        w, curly = self.id["skull_w"], self.by_style(curly=1.0)
        radius = (
            w + 0.14 + 0.22 * curly,
            length.clamp(min=0.1) * 0.78 + 0.1 + 0.12 * curly,
            0.42 + 0.2 * curly,
        )
        t, alpha, hit, n = self.ellipsoid((0.0, 0.55 - length * 0.6 + 0.2 * curly, -0.30), radius)
        dark = [c * 0.72 * self.strands(hit, 26.0) for c in self.hair]
        self.put(t, alpha * (length > 0), self.shade(dark, n, self.light_head))

    def _body(self) -> None:
        cloth = scenes.hsv(self.now["cloth_hue"], self.now["cloth_saturation"], self.now["cloth_value"])
        w, sway = self.id["skull_w"], self.now["yaw"] * 0.10
        t, alpha, hit, n = self.ellipsoid(
            (sway, -2.05, -0.35), (1.25 + 1.2 * (w - 0.72), 0.98 + 0 * w, 0.55 + 0 * w), body=True
        )
        kind = self.now["cloth_pattern"].long()
        stripes = torch.where(kind == 1, 0.78 + 0.22 * ((hit[1] * 5).frac().abs() > 0.5), torch.ones_like(t))
        stripes = torch.where((kind == 2) & (hit[0].abs() < 0.16), stripes * 1.25, stripes)
        self.put(t, alpha, self.shade([c * stripes for c in cloth], n, self.light_body))
        t, alpha, hit, n = self.ellipsoid(
            (sway * 0.5, -1.05, -0.22), (w * 0.50, 0.55 + 0 * w, 0.36 + 0 * w), body=True
        )
        under_chin = 0.72 + 0.28 * smooth(-0.6, -1.25, hit[1])
        neck = [c * 0.84 * under_chin for c in self.skin]
        self.put(t, alpha * self.cover(-1.42 - hit[1]), self.shade(neck, n, self.light_body))

    def _ears(self) -> None:
        level = torch.full_like(self.id["jaw"], -0.02)
        w = self.id["skull_w"] * head_profile(self.id, level)[0] * 0.99
        for side in (-1, 1):
            t, alpha, hit, n = self.ellipsoid(
                (side * w, -0.02, -0.06), (0.075 + 0 * w, self.id["ear"], 0.11 + 0 * w)
            )
            inner = smooth(0.6, 0.2, (hit[1] / self.id["ear"]) ** 2 + (hit[2] / 0.11) ** 2)
            ear = [self.skin[0] * (1 - 0.10 * inner), *(c * (1 - 0.2 * inner) for c in self.skin[1:])]
            self.put(t, alpha, self.shade(ear, n, self.light_head))
        r = self.by_style(bun=0.27).clamp(min=1e-3)
        t, alpha, hit, n = self.ellipsoid((0.0, self.id["head_top"] * 1.10, -0.22), (r, r * 0.93, r))
        bun = [c * self.strands(hit, 30.0) for c in self.hair]
        self.put(t, alpha * self.by_style(bun=1.0), self.shade(bun, n, self.light_head))

    def _head_intersection(self) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        p, o, d = self.id, self.origin, self.direction
        low = p["head_low"] * (1 + 0.05 * self.now["open"])
        t = p["depth"] * 0.6
        for _ in range(4):
            y = o[1] + t * d[1]
            w, dw = head_profile(p, y.clamp(-1.1, 0.9))
            ry, rx = torch.where(y < 0, low, p["head_top"]), p["skull_w"] * w
            u = [o[0] / rx, o[1] / ry, o[2] / p["depth"]]
            v = [d[0] / rx, d[1] / ry, d[2] / p["depth"]]
            a = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
            b = u[0] * v[0] + u[1] * v[1] + u[2] * v[2]
            closest = (u[0] * u[0] + u[1] * u[1] + u[2] * u[2] - b * b / a).clamp(min=1e-8)
            t = (-b + torch.sqrt(((1 - closest) * a).clamp(min=0))) / a
        alpha = self.cover((torch.sqrt(closest) - 1) * (rx * ry) ** 0.5)
        hit = [o[i] + t * d[i] for i in range(3)]
        n = [hit[0] / rx**2, hit[1] / ry**2 - (hit[0] / rx) ** 2 * dw / w, hit[2] / p["depth"] ** 2]
        length = torch.rsqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2] + 1e-9)
        return t, alpha, hit, [x * length for x in n]

    def _head(self) -> None:
        t, alpha, hit, n = self._head_intersection()
        face = FaceRays(hit[0], hit[1], hit[2], self.pixel)
        self.painted = paint_face(face, self.id, self.look, self.now, self.skin, self.hair)
        self.head_depth, self.head_normal, self.head_alpha = t, n, alpha
        self.put(t, alpha, self.shade(self.painted, n, self.light_head, gloss=0.06))

    def _surface_z(self, y: Tensor) -> Tensor:
        p = self.id
        return p["depth"] * torch.sqrt(
            (1 - (y / torch.where(y < 0, p["head_low"], p["head_top"])) ** 2).clamp(min=0.02)
        )

    def _nose(self) -> None:
        p = self.id
        eye, tip, w, out = p["eye_y"], p["eye_y"] - p["nose_len"], p["nose_w"], p["nose_out"]
        middle = (eye + tip) / 2
        bridge = (
            (0.0, middle + 0.02, self._surface_z(middle) - 0.05 + out * 0.25),
            (w * 0.46, (eye - tip) * 0.62, 0.10 + out * 0.35 * p["nose_bridge"]),
        )
        ball = ((0.0, tip, self._surface_z(tip) - 0.03), (w * 1.12, 0.085 + 0.25 * w, 0.05 + out))
        tone = [self.skin[0], self.skin[1] * 0.955, self.skin[2] * 0.945]
        for centre, radius in (bridge, ball):
            t, alpha, hit, n = self.ellipsoid(centre, radius)
            k = smooth(-0.015, 0.055, t - self.head_depth)  # melts into the face near the contact
            normal = [n[i] * k + self.head_normal[i] * (1 - k) for i in range(3)]
            hx, hy = hit[0] + centre[0], hit[1] + centre[1]
            nostril = torch.exp(-(((hx.abs() - w * 0.5) / 0.03) ** 2 + ((hy - tip + 0.065) / 0.022) ** 2))
            dark = 1 - 0.5 * nostril * (k > 0.2)
            colour = [(self.painted[i] * (1 - k) + tone[i] * k) * dark for i in range(3)]
            shaded = self.shade(colour, normal, self.light_head, gloss=0.08)
            visible = alpha * (t > self.depth) * k.sqrt()
            self.over(visible, shaded)
            self.depth = torch.where(visible > 0.5, t, self.depth)

    def _glasses(self) -> None:
        p, look = self.id, self.look
        t = (self._surface_z(p["eye_y"]) + 0.07 - self.origin[2]) / self.direction[2]
        x, y = (self.origin[0] + t * self.direction[0]).abs(), self.origin[1] + t * self.direction[1]
        dx, dy = (x - p["eye_x"] * p["skull_w"] / 0.72).abs(), (y - p["eye_y"] + 0.01).abs()
        ring = torch.sqrt(dx * dx + dy * dy)
        square = torch.maximum(dx, dy * 1.25) * 0.75 + ring * 0.25
        edge = torch.lerp(ring, square, self.glasses_square()) - look["glasses_r"]
        worn = ((look["glasses"] > 0) & (t > self.depth - 0.25)).float()
        bridge_x = x - (p["eye_x"] * p["skull_w"] / 0.72 - look["glasses_r"] + 0.01)
        bridge = self.cover(torch.maximum((y - p["eye_y"] - 0.05).abs() - 0.018, bridge_x))
        colour = self.glasses_colour()
        self.over(self.cover(edge) * worn * 0.10, (0.85, 0.93, 1.0))
        wire = torch.maximum(self.cover(edge.abs() - 0.022), bridge) * worn
        self.over(wire, [colour[:, i].view(-1, 1, 1) for i in range(3)])

    def glasses_square(self) -> Tensor:
        """(B, 1, 1) from 0, round, to 1, square."""
        return (self.look["glasses_square"] > 0.5).float()

    def glasses_colour(self) -> Tensor:
        """(B, 3) colour of the frames."""
        index = self.look["glasses_colour"].long().clamp(0, len(GLASSES) - 1).view(-1)
        return constants(GLASSES, index.device)[index]

    def _hair(self) -> None:
        p, look = self.id, self.look
        volume = look["hair_volume"] * self.by_style(short=0.7, bob=1.1, long=1.0, curly=2.2, bun=0.9) + 0.01
        w = p["skull_w"]
        rx = w + volume * self.by_style(short=0.5, bob=0.8, long=0.8, curly=1.0, bun=0.5) + 0.012
        t, alpha, hit, n = self.ellipsoid(
            (0.0, 0.0, -0.06 - volume * 0.2), (rx, p["head_top"] + volume, p["depth"] + volume * 0.9)
        )
        x, y, z = hit
        line = look["hair_line"] * p["head_top"] + self.by_style(short=0.06, bob=-0.06, curly=0.02, bun=0.06)
        wave = look["hair_fringe"] * 0.14 * self.by_style(short=0.5, bob=0.6, long=0.6, curly=0.3, bun=0.2)
        slope = look["hair_part"] * self.by_style(short=0.5, bob=0.3, long=0.4)
        frizz = 0.03 * self.by_style(curly=1.0) * torch.sin(x * 22)
        front = line + wave * torch.cos(x / w * 3) + slope * x + frizz - 0.27 * (x.abs() / w) ** 2
        sides = self.by_style(short=0.12, bob=-0.55, long=-0.62, curly=-0.30, bun=0.10)
        blend = smooth(0.05, 0.45, z + 0.12 * (x.abs() / w))
        lower = front * blend + sides * (1 - blend)
        mask = self.cover(lower - y, 1.5) * (self.style > 0).view(-1, 1, 1)
        curl = 1 - 0.10 * self.by_style(curly=1.0) * torch.sin(28 * x + 4 * torch.sin(19 * y)) * torch.sin(
            26 * y
        )
        sheen = self.strands(hit, 34.0) * curl * (0.82 + 0.18 * smooth(0.0, 0.12, y - lower))
        self.put(t, alpha * mask, self.shade([c * sheen for c in self.hair], n, self.light_head, gloss=0.08))


def frame_rays(n: int, size: int, device: torch.device | str = "cpu") -> Rays:
    """Rays of ``n`` whole square frames of ``size`` pixels."""
    line = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-line, line, indexing="ij")
    return Rays(
        x.expand(n, size, size).contiguous(),
        y.expand(n, size, size).contiguous(),
        torch.full((n, 1, 1), 2 / size, device=device),
    )


def crop_rays(matrices: Tensor, size: int, frame_size: int) -> Rays:
    """Rays of canonical crops. ``matrices`` (N, 2, 3) map frame pixels (side ``frame_size``) to crop pixels."""
    a = matrices[:, :, :2]
    inverse = torch.linalg.inv_ex(a).inverse  # a similarity always has one; looking waits for a GPU
    line = torch.arange(size, device=matrices.device, dtype=matrices.dtype)
    gy, gx = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([gx, gy], -1).view(1, -1, 2) - matrices[:, None, :, 2]
    pixels = torch.einsum("nij,nkj->nki", inverse, grid).view(-1, size, size, 2)
    units = (pixels + 0.5) / frame_size * 2
    pitch = torch.linalg.det(inverse).abs().sqrt() * 2 / frame_size
    return Rays((units[..., 0] - 1).contiguous(), (1 - units[..., 1]).contiguous(), pitch.view(-1, 1, 1))


@torch.no_grad()
def render_rays(identity: Params, appearance: Params, nuisance: Params, rays: Rays) -> Tensor:
    """Render any grid of rays, (B, 3, H, W) float32 in [0, 1]."""
    out = []
    side = rays.x.shape[-1]
    step = max(1, BATCH * 4096 // (side * side)) if rays.x.device.type == "cpu" else 4096
    for i in range(0, rays.x.shape[0], step):
        s = slice(i, i + step)
        part = Rays(rays.x[s], rays.y[s], rays.pitch[s])
        out.append(Portrait(take(identity, s), take(appearance, s), take(nuisance, s), part).draw())
    return torch.cat(out)


def render(identity: Params, appearance: Params, nuisance: Params, size: int) -> Tensor:
    """Render whole frames, (B, 3, size, size) float32 RGB in [0, 1], on the device of the parameters."""
    n, device = identity["jaw"].shape[0], identity["jaw"].device
    return render_rays(identity, appearance, nuisance, frame_rays(n, size, device))


def landmarks(identity: Params, nuisance: Params, size: int) -> tuple[Tensor, Tensor]:
    """Exact five landmarks (B, 5, 2) and face box (B, 4) in pixels of a frame of ``size``.

    Landmarks: the eyes' centres, the nose tip, the mouth's corners, on the surface of the turned head.
    """
    p = identity
    opened = nuisance["open"].clamp(min=0)
    low = p["head_low"] * (1 + 0.05 * opened)
    ex, tip = p["eye_x"] * p["skull_w"] / 0.72, p["eye_y"] - p["nose_len"]
    mw = p["mouth_w"] * (1 + 0.16 * nuisance["smile"] - 0.12 * opened)
    my = tip - p["mouth_y"] + 0.02 - 0.05 * opened + (p["mouth_curve"] + 0.055 * nuisance["smile"]) * 0.65

    def on_surface(x: Tensor, y: Tensor) -> Tensor:
        ry = torch.where(y < 0, low, p["head_top"])
        inside = 1 - (x / (p["skull_w"] * head_profile(p, y)[0])) ** 2 - (y / ry) ** 2
        return torch.stack([x, y, p["depth"] * inside.clamp(min=0.01).sqrt()], -1)

    nose = on_surface(torch.zeros_like(tip), tip)
    nose[:, 2] += 0.02 + p["nose_out"]
    points = [
        on_surface(-ex, p["eye_y"]),
        on_surface(ex, p["eye_y"]),
        nose,
        on_surface(-mw, my),
        on_surface(mw, my),
    ]
    turned = torch.einsum(
        "bij,bkj->bki", rotation(nuisance["yaw"], nuisance["pitch"], nuisance["roll"]), torch.stack(points, 1)
    )
    offset = torch.stack([nuisance["tx"], nuisance["ty"]], -1)
    units = turned[..., :2] * nuisance["scale"].view(-1, 1, 1) + offset.view(-1, 1, 2)
    half, s = p["skull_w"] * 0.98 * nuisance["scale"], nuisance["scale"]
    box = torch.stack(
        [nuisance["tx"] - half, nuisance["ty"] + s * 0.62, nuisance["tx"] + half, nuisance["ty"] - s * low],
        -1,
    )
    return units_to_pixels(units, size), units_to_pixels(box.view(-1, 2, 2), size).view(-1, 4)


def units_to_pixels(points: Tensor, size: int) -> Tensor:
    """Frame units (y up) → pixel coordinates (y down, first centre at 0)."""
    return torch.stack([(points[..., 0] + 1) / 2 * size - 0.5, (1 - points[..., 1]) / 2 * size - 0.5], -1)


def degrees(radians: Tensor) -> Tensor:
    """Radians → degrees."""
    return radians * (180 / math.pi)
