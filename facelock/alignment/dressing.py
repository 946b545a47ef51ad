"""One face of one crop, and the reference's texture put on it: the steps behind :mod:`facelock.alignment.warp`.

Pictures are (S, S, 3) float32 RGB in [0, 1], masks (S, S) float32 in [0, 1], points (P, 2) float64 pixels of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from facelock.alignment import mesh, shape
from facelock.alignment.mesh import Doubles, Floats
from facelock.faces.layouts import Layout
from facelock.geometry import estimate_pose

DARK = np.float32(0.02)
"""Added to brightness before its logarithm."""
RARE = 0.05
"""Weight of a photo below which it is not worth warping."""


@dataclass(frozen=True)
class Dressing:
    """How texture is put on. Lengths are in units of the distance between the eyes."""

    light: float = 0.35
    """Reach of the blur that tells light from texture."""
    gain: float = 1.5
    """The most by which the frame's light may brighten or darken a place more than the whole face."""
    plain: float = 0.4
    """Difference in log brightness from the skin's median at which a pixel no longer counts as skin."""
    feather: float = 0.45
    """Width of the blend inside of the outline."""
    forehead: float = 0.6
    """Share of the height between brows and outline that is covered; the hair begins above it."""
    lids: float = 0.02
    """Softness of the edge of the eyeballs and of the mouth's inside, which stay the frame's."""
    pose: float = 9.0
    """Degrees of difference in pose at which a photo counts e^-1/2 of one in the frame's own pose."""
    photos: int = 3
    """Photos that are mixed at most."""
    shape: float = 0.75
    """Share of the difference in shape that strength 1 takes away."""


@dataclass(frozen=True)
class Source:
    """One photo of the reference, ready to be warped."""

    picture: Floats
    points: Doubles
    triangles: mesh.Triangles
    """The mesh, the same for all photos of an identity."""
    pose: tuple[float, float]
    """Yaw and pitch in degrees."""
    clear: Floats
    """Where the face itself is seen, not hair before it."""


def five(points: Doubles, layout: Layout) -> Doubles:
    """(5, 2): eyes, nose and mouth corners, as :class:`facelock.types.Faces` has them."""
    groups = (layout.left_eye, layout.right_eye, layout.nose[:1])
    corners = points[[layout.outer_lips[0], layout.outer_lips[len(layout.outer_lips) // 2]]]
    return np.concatenate([np.stack([points[list(group)].mean(0) for group in groups]), corners])


def head_pose(points: Doubles, layout: Layout) -> tuple[float, float]:
    """Yaw and pitch in degrees; see :func:`facelock.geometry.estimate_pose`."""
    yaw, pitch, _ = estimate_pose(torch.from_numpy(five(points, layout))[None])
    return float(yaw[0]), float(pitch[0])


class Face:
    """One face: where its parts lie, and what is put on it."""

    def __init__(self, picture: Floats, points: Doubles, layout: Layout, dressing: Dressing) -> None:
        """``points`` are a reader's, of ``layout``, in pixels of ``picture``."""
        self.picture, self.points, self.layout, self.dressing = picture, points, layout, dressing
        self.size = picture.shape[0]
        marks = five(points, layout)
        self.middle = (marks[0] + marks[1]) / 2
        self.unit = max(float(np.linalg.norm(marks[1] - marks[0])), 1.0)
        """The distance between the eyes in pixels."""
        down = (marks[3] + marks[4]) / 2 - self.middle
        self.mouth = float(np.linalg.norm(down))
        """Distance from the eyes down to the mouth in pixels."""
        self.down = down / max(self.mouth, 1e-9)

    def dressed(self, sources: Sequence[Source], strength: float, certainty: float = 1.0) -> Floats:
        """The picture with the reference's face; ``strength`` in (0, 2]. Pixels outside keep their bits.

        ``certainty`` in (0, 1] is what the landmarks are worth: below 1 less is done.
        """
        chosen = self._nearest(sources)
        face = self._reshaped(chosen, strength * certainty)
        texture, trust = face._texture(chosen)
        skin = face.region() * (1 - face.features()) * (trust > RARE)
        lit = face._lit(texture, skin)
        share = np.float32(min(1.0, strength) * certainty)
        mask = (face.region(face.dressing.feather) * trust * (1 - face.kept()) * share)[..., None]
        mixed = np.clip(face.picture + mask * (lit - face.picture), 0, 1)
        return np.where(mask > 0, mixed, face.picture)

    def _nearest(self, sources: Sequence[Source]) -> list[tuple[float, Source]]:
        """Weights, summing to 1, of the photos nearest in pose; no photo comes or goes with a jump."""
        yaw, pitch = head_pose(self.points, self.layout)
        apart = np.array([(s.pose[0] - yaw) ** 2 + (s.pose[1] - pitch) ** 2 for s in sources])
        weights = np.exp((apart.min() - apart) / (2 * self.dressing.pose**2))
        order = np.argsort(-weights, kind="stable")
        floor = max(
            RARE, float(weights[order[self.dressing.photos]]) if len(order) > self.dressing.photos else 0.0
        )
        weights = np.maximum(weights - floor, 0) if float(weights.max()) > floor else weights
        kept = [int(k) for k in order[: self.dressing.photos] if weights[k] > 0]
        total = float(weights[kept].sum())
        return [(float(weights[k]) / total, sources[k]) for k in kept]

    def _reshaped(self, chosen: Sequence[tuple[float, Source]], strength: float) -> Face:
        """The face and its surroundings, bent so that its coarse shape is nearer to the reference's."""
        amount = self.dressing.shape * strength
        if amount <= 0:
            return self
        own = head_pose(self.points, self.layout)
        apart = np.zeros_like(self.points)
        for weight, source in chosen:
            turned = (source.pose[0] - own[0]) ** 2 + (source.pose[1] - own[1]) ** 2
            likeness = np.exp(-turned / (2 * shape.POSE**2))
            apart += weight * likeness * shape.difference(source.points, self.points, self.layout)
        target = self.points + shape.move(apart, self.points, self.layout, amount, self.unit)
        picture = shape.bend(self.picture, self.points, target, self.layout)
        return Face(picture, target, self.layout, self.dressing)

    def _texture(self, chosen: Sequence[tuple[float, Source]]) -> tuple[Floats, Floats]:
        """The photos, warped onto the face and mixed, and how far they can be trusted at each pixel."""
        triangles = chosen[0][1].triangles
        index = mesh.raster(self.points, triangles, self.size)
        colour = np.zeros((self.size, self.size, 3), np.float32)
        trust = np.full((self.size, self.size), 1e-6, np.float32)
        for weight, source in chosen:
            reliable = mesh.reliability(source.points, self.points, triangles)[:, None]
            values = np.concatenate([source.points, reliable], 1)
            field = mesh.interpolate(values, self.points, triangles, index)
            x, y = np.ascontiguousarray(field[..., 0]), np.ascontiguousarray(field[..., 1])
            share = np.clip(field[..., 2], 0, 1) * cv2.remap(source.clear, x, y, cv2.INTER_LINEAR)
            share = share * np.float32(weight)
            warped = cv2.remap(source.picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            colour += warped * share[..., None]
            trust += share
        return colour / trust[..., None], np.where(index >= 0, trust, 0)

    def region(self, feather: float = 0.0) -> Floats:
        """The face inside of its outline, the forehead cut short below the hair, faded over ``feather`` units."""
        outline = self.points[list(self.layout.oval)]
        brows = self.points[[*self.layout.left_brow, *self.layout.right_brow]]
        top = float(((self.middle - brows) @ self.down).max())
        above = np.maximum((self.middle - outline) @ self.down - top, 0)
        outline = outline + (above * (1 - self.dressing.forehead))[:, None] * self.down
        return (
            mesh.inward(outline, self.size, feather * self.unit)
            if feather
            else mesh.polygon(outline, self.size)
        )

    def features(self) -> Floats:
        """Eyes, brows and lips with a margin: what is no plain skin."""
        layout, points = self.layout, self.points
        parts = mesh.polygons(points, [layout.left_eye, layout.right_eye, layout.outer_lips], self.size)
        for brow in (layout.left_brow, layout.right_brow):
            around = np.asarray(cv2.convexHull(points[list(brow)].astype(np.float32))[:, 0], np.float32)
            parts = np.maximum(parts, mesh.polygon(around, self.size))
        reach = 2 * round(0.07 * self.unit) + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
        return np.asarray(cv2.dilate(parts, disc), np.float32)

    def kept(self) -> Floats:
        """Eyeballs and the inside of the mouth, which stay the frame's."""
        contours = (self.layout.left_eye, self.layout.right_eye, self.layout.inner_lips)
        return mesh.polygons(self.points, contours, self.size, self.dressing.lids * self.unit)

    def uncovered(self) -> Floats:
        """0 where hair hangs into the face: near the outline, above the mouth, where it is unlike the skin."""
        skin = self.region() * (1 - self.features())
        unlike = 1 - self._plain(self.picture, skin)
        inside = mesh.inward(self.points[list(self.layout.oval)], self.size, 0.8 * self.unit)
        ys, xs = np.mgrid[: self.size, : self.size]
        depth = (xs - self.middle[0]) * self.down[0] + (ys - self.middle[1]) * self.down[1] - self.mouth
        above = mesh.smoothstep(0.3 - 2 * depth / self.unit)
        hidden = np.clip(3 * (unlike - 0.5) * (1 - inside) * above, 0, 1).astype(np.float32)
        return np.asarray(1 - cv2.GaussianBlur(hidden, (0, 0), 0.04 * self.unit), np.float32)

    def _lit(self, texture: Floats, skin: Floats) -> Floats:
        """The texture with the picture's low frequencies: its light and its skin's tone."""
        plain = skin * self._plain(self.picture, skin) * self._plain(texture, skin)
        reach = self.dressing.light * self.unit
        here, there = (low_frequencies(p, plain, reach) for p in (self.picture, texture))
        change = np.log((here + DARK) / (there + DARK))
        inside = cv2.resize(skin, change.shape[1::-1], interpolation=cv2.INTER_AREA) > 0.5
        overall = np.median(change[inside], axis=0) if inside.any() else np.zeros(3, np.float32)
        limit = np.float32(np.log(self.dressing.gain))
        change = overall + limit * np.tanh((change - overall) / limit)
        full = cv2.resize(np.exp(change), (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return np.clip(texture * full, 0, 1)

    def _plain(self, picture: Floats, skin: Floats) -> Floats:
        """How near each pixel's brightness is to the skin's: beards, hair and highlights are far from it."""
        bright = np.log(picture.mean(2) + DARK)
        middle = np.median(bright[skin > 0.5]) if (skin > 0.5).any() else np.float32(0)
        return np.asarray(np.exp(-np.square((bright - middle) / np.float32(self.dressing.plain))), np.float32)


def low_frequencies(picture: Floats, weight: Floats, reach: float) -> Floats:
    """(S/4, S/4, 3): the picture blurred by ``reach`` pixels over those that have weight (normalised convolution).

    Where none is near, a wider blur speaks.
    """
    small = max(8, picture.shape[0] // 4)
    stack = np.concatenate([picture * weight[..., None], weight[..., None]], 2)
    stack = cv2.resize(stack, (small, small), interpolation=cv2.INTER_AREA)
    near = reach * small / picture.shape[0]
    low = cv2.GaussianBlur(stack, (0, 0), near) + np.float32(1e-2) * cv2.GaussianBlur(stack, (0, 0), 2 * near)
    return np.asarray(low[..., :3] / np.maximum(low[..., 3:], 1e-6), np.float32)
