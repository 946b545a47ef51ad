"""Piecewise affine warps over a triangle mesh, and soft masks of a face's parts; numpy and OpenCV, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Triangles = NDArray[np.int32]

_FRACTION = 4
"""Binary digits of a pixel to which OpenCV's polygons are drawn."""
FLAT = 1e-2
"""Square pixels below which a triangle has no inside."""
FLIPPED, STRETCHED = 0.06, 0.3
"""Area of a triangle, relative to what the face's scale makes of it, at which texture is gone, and at which whole."""


def triangulate(points: NDArray[np.floating]) -> Triangles:
    """(P, 2) → (T, 3) indices of a Delaunay triangulation, all turning the same way."""
    found = Delaunay(np.asarray(points, np.float64)).simplices.astype(np.int32)
    turning = _areas(np.asarray(points, np.float64), found)
    found[turning < 0] = found[turning < 0][:, ::-1]
    return np.ascontiguousarray(found[np.abs(turning) > 1e-9])


def _areas(points: Doubles, triangles: Triangles) -> Doubles:
    """Signed areas in pixels, (T,)."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    doubled = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    return np.asarray(doubled / 2)


def affines(values: Doubles, target: Doubles, triangles: Triangles) -> Doubles:
    """(T, K, 3): for each triangle of ``target`` (P, 2) the affine map to ``values`` (P, K) at its corners.

    A triangle without an inside maps to zero.
    """
    corners = np.concatenate([target[triangles], np.ones((len(triangles), 3, 1))], 2)
    flat = np.abs(_areas(target, triangles)) < FLAT
    corners[flat] = np.eye(3)
    solved = np.linalg.solve(corners, values[triangles]).transpose(0, 2, 1)
    solved[flat] = 0
    return np.asarray(solved)


def reliability(source: Doubles, target: Doubles, triangles: Triangles) -> Doubles:
    """(P,) in [0, 1]: 0 where the mesh is turned away or stretched beyond use in either picture, 1 where it is not.

    A triangle counts by its area in one picture over that in the other, the face's scale taken out.
    """
    there, here = _areas(source, triangles), _areas(target, triangles)
    scale = np.maximum(here, 0).sum() / max(np.maximum(there, 0).sum(), 1e-9)
    grown = here / np.maximum(there * scale, 1e-9)
    smaller = np.where((there > 0) & (here > 0), np.minimum(grown, 1 / np.maximum(grown, 1e-9)), 0)
    weight = np.maximum(there * scale, np.maximum(here, 0)) + 1e-6
    sums, total = np.zeros(len(source)), np.zeros(len(source))
    for corner in range(3):
        np.add.at(sums, triangles[:, corner], smaller * weight)
        np.add.at(total, triangles[:, corner], weight)
    return smoothstep((sums / np.maximum(total, 1e-9) - FLIPPED) / (STRETCHED - FLIPPED))


def smoothstep(x: Doubles) -> Doubles:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return np.asarray(x * x * (3 - 2 * x))


def raster(target: Doubles, triangles: Triangles, size: int) -> NDArray[np.int32]:
    """(size, size) index of the triangle that covers each pixel, -1 for none; triangles turned away cover nothing."""
    index = np.full((size, size), -1, np.float32)
    corners = np.round(target[triangles] * (1 << _FRACTION)).astype(np.int32)
    for number in np.flatnonzero(_areas(target, triangles) > 0).tolist():
        cv2.fillConvexPoly(index, corners[number], float(number), cv2.LINE_8, _FRACTION)
    return index.astype(np.int32)


def interpolate(
    values: NDArray[np.floating], target: NDArray[np.floating], triangles: Triangles, index: NDArray[np.int32]
) -> Floats:
    """(S, S, K): ``values`` (P, K) at the points ``target`` (P, 2), linear within each triangle; 0 outside of all.

    ``index`` is the mesh's :func:`raster`. With the source's points as values this is where to look for each pixel.
    """
    maps = affines(np.asarray(values, np.float64), np.asarray(target, np.float64), triangles).astype(
        np.float32
    )
    ys, xs = np.nonzero(index >= 0)
    chosen = maps[index[ys, xs]]
    out = np.zeros((*index.shape, values.shape[1]), np.float32)
    x, y = xs.astype(np.float32)[:, None], ys.astype(np.float32)[:, None]
    out[ys, xs] = chosen[..., 0] * x + chosen[..., 1] * y + chosen[..., 2]
    return out


def polygon(points: NDArray[np.floating], size: int, soft: float = 0.0) -> Floats:
    """(size, size) in [0, 1]: the inside of a contour (P, 2), its edge blurred by ``soft`` pixels."""
    picture = np.zeros((size, size), np.uint8)
    corners = np.round(np.asarray(points, np.float64) * (1 << _FRACTION)).astype(np.int32)
    cv2.fillPoly(picture, [corners], 255, cv2.LINE_AA, _FRACTION)
    mask = picture.astype(np.float32) / np.float32(255)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), soft), np.float32) if soft > 0 else mask


def inward(points: NDArray[np.floating], size: int, feather: float) -> Floats:
    """(size, size): 0 outside of a contour, rising to 1 at ``feather`` pixels inside of it."""
    solid = (polygon(points, size) > 0.5).astype(np.uint8)
    depth = cv2.distanceTransform(solid, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return smoothstep(np.asarray(depth, np.float64) / max(feather, 1e-6)).astype(np.float32)


def polygons(
    points: NDArray[np.floating], contours: Sequence[Sequence[int]], size: int, soft: float = 0.0
) -> Floats:
    """The union of several contours, each a list of indices into ``points``; see :func:`polygon`."""
    parts = [polygon(points[list(contour)], size, soft) for contour in contours]
    return np.asarray(np.maximum.reduce(parts))
