"""Moving a face's coarse shape towards another's, and the picture with it. Points are (P, 2) float64 pixels."""

from __future__ import annotations

import cv2
import numpy as np

from facelock.alignment import mesh
from facelock.alignment.mesh import Doubles, Floats
from facelock.faces.layouts import Layout

POSE = 12.0
"""Degrees of difference in pose at which a difference in shape counts e^-1/2: it is then mostly pose."""
SMOOTH = 0.2
"""Reach of the blur over the mesh that tells shape from expression, in units of the distance between the eyes."""
FARTHEST = 0.25
"""Units by which a point is moved at most."""
RING = 1.45
"""The outline, enlarged by this much, is where the picture is at rest."""


def difference(points: Doubles, onto: Doubles, layout: Layout) -> Doubles:
    """Where each point of ``onto`` would have to go to have the shape of ``points``, mouth and jaw left as open."""
    return opened(fitted(points, onto, layout), onto, layout) - onto


def fitted(points: Doubles, onto: Doubles, layout: Layout) -> Doubles:
    """``points`` laid with eyes, nose and mouth corners over those of ``onto`` by a least-squares similarity."""
    corners = (layout.outer_lips[0], layout.outer_lips[len(layout.outer_lips) // 2])
    chosen = [*layout.left_eye, *layout.right_eye, *layout.nose, *corners]
    a, b = points[chosen], onto[chosen]
    middle, goal = a.mean(0), b.mean(0)
    (x, y), (u, v) = (a - middle).T, (b - goal).T
    power = max(float((x * x + y * y).sum()), 1e-9)
    c, s = float((x * u + y * v).sum()) / power, float((x * v - y * u).sum()) / power
    return np.asarray((points - middle) @ np.array([[c, s], [-s, c]]) + goal)


def opened(points: Doubles, like: Doubles, layout: Layout) -> Doubles:
    """``points`` with mouth and jaw as open as those of ``like``."""
    lips = points[list(layout.inner_lips)].mean(0)
    down = lips - points[[*layout.left_eye, *layout.right_eye]].mean(0)
    length = max(float(np.linalg.norm(down)), 1e-9)
    depth = (points - lips) @ down / length**2
    lower = mesh.smoothstep(0.5 + depth / 0.3)
    return np.asarray(points + lower[:, None] * (_gap(like, layout) - _gap(points, layout)))


def _gap(points: Doubles, layout: Layout) -> Doubles:
    """From the middle of the upper lip's edge to that of the lower's."""
    lips, half = points[list(layout.inner_lips)], len(layout.inner_lips) // 2
    return np.asarray(lips[half + 1 :].mean(0) - lips[1:half].mean(0))


def move(apart: Doubles, points: Doubles, layout: Layout, amount: float, unit: float) -> Doubles:
    """How far each point is moved: ``amount`` times the smoothed difference, never beyond ``FARTHEST``."""
    power = np.square(points).sum(1)
    squared = np.maximum(power[:, None] + power - 2 * points @ points.T, 0).astype(np.float32)
    near = np.exp(-squared / np.float32(2 * (SMOOTH * unit) ** 2))
    near[:, list(layout.loose)] = 0
    smooth = near @ apart / near.sum(1, keepdims=True)
    length, limit = np.linalg.norm(smooth, axis=1, keepdims=True), FARTHEST * unit
    return np.asarray(smooth * limit * np.tanh(amount * length / limit) / np.maximum(length, 1e-9))


def bend(picture: Floats, points: Doubles, target: Doubles, layout: Layout) -> Floats:
    """The picture with ``points`` at ``target``, at rest around the face; pixels that do not move keep their bits."""
    size, last = picture.shape[0], picture.shape[0] - 1.0
    outline = points[list(layout.oval)]
    ring = np.clip(outline.mean(0) + (outline - outline.mean(0)) * RING, 1, last - 1)
    border = np.array(
        [(x, y) for x in (0, last / 2, last) for y in (0, last / 2, last) if (x, y) != (last / 2,) * 2]
    )
    there, here = (np.concatenate([p[list(layout.mesh)], ring, border]) for p in (points, target))
    triangles = mesh.triangulate(there)
    field = mesh.interpolate(there, here, triangles, mesh.raster(here, triangles, size))
    ys, xs = np.mgrid[:size, :size].astype(np.float32)
    x, y = np.ascontiguousarray(field[..., 0]), np.ascontiguousarray(field[..., 1])
    still = ((np.abs(x - xs) < 1e-2) & (np.abs(y - ys) < 1e-2)) | ((x == 0) & (y == 0))
    bent = cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.where(still[..., None], picture, np.clip(bent, 0, 1))
