"""Who is who among faces, and what they have in common: grouping, a robust centre, the spread around it.

All of it is plain arithmetic in float64 over a few hundred embeddings at most. The order of the faces can only
decide between exact ties, and callers give them in an order that does not depend on their users.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from facelock.types import Spread

Floats = NDArray[np.float64]

ROUNDS = 32
"""Of the centre's iteration; it has settled to the last bit of float32 long before."""
NEAREST = 1e-3
"""Distance below which a reference gains no more weight."""
FAR_OUT = 3.5
"""Robust standard deviations below the median at which a reference is unlike the others."""
_MAD = 1.4826
"""Standard deviations per median absolute deviation, of a normal distribution."""


def agreement(embeddings: Sequence[Floats], thresholds: Sequence[float]) -> Floats:
    """(N, N) how sure it is that two faces are one person's: above 0 they are, 1 is the same picture.

    ``embeddings`` holds (N, D) unit rows per encoder, ``thresholds`` the cosine at which each accepts. Every
    encoder's cosine is scaled so that its threshold is 0, and the mean is taken: they have different ranges.
    """
    scaled = [
        (rows @ rows.T - limit) / (1 - limit) for rows, limit in zip(embeddings, thresholds, strict=True)
    ]
    return np.asarray(sum(scaled) / len(scaled))


def groups(score: Floats, photo: Sequence[int]) -> list[list[int]]:
    """Faces that are one person's, the largest group first; ties keep the faces' order.

    Average linkage (Sokal & Michener 1958) on ``score`` (N, N), cut at 0: two groups join while their faces agree on
    average, the best agreement first. ``photo`` says in which photo each face is: two faces of one are two people.
    """
    parts: dict[int, list[int]] = {face: [face] for face in range(len(photo))}
    linked = np.array(score, np.float64)
    linked[np.equal.outer(np.asarray(photo), np.asarray(photo))] = -np.inf
    while len(parts) > 1:
        first, second = sorted(divmod(int(np.argmax(linked)), len(photo)))
        if linked[first, second] <= 0:
            break
        sizes = len(parts[first]), len(parts[second])
        joined = (linked[first] * sizes[0] + linked[second] * sizes[1]) / sum(sizes)
        linked[first], linked[:, first] = joined, joined
        linked[second], linked[:, second] = -np.inf, -np.inf
        linked[first, first] = -np.inf
        parts[first] += parts.pop(second)
    return sorted((sorted(part) for part in parts.values()), key=lambda part: (-len(part), part[0]))


def centre(rows: Floats) -> Floats:
    """(D,) unit vector in the middle of (N, D) unit rows: their geometric median, on the sphere.

    Weiszfeld's iteration from the mean. Half of the rows may be wrong before it moves far (Lopuhaä & Rousseeuw
    1991), where a mean moves with every one.
    """
    middle = _unit(rows.sum(0))
    for _ in range(ROUNDS if len(rows) > 2 else 0):
        far = np.linalg.norm(rows - middle, axis=1)
        middle = _unit((1 / np.maximum(far, NEAREST)) @ rows)
    return middle


def to_the_others(rows: Floats) -> Floats:
    """(N,) cosine of each row to the centre of all others; 1 for a single one."""
    if len(rows) < 2:
        return np.ones(len(rows))
    keep = ~np.eye(len(rows), dtype=bool)
    return np.array([row @ centre(rows[others]) for row, others in zip(rows, keep, strict=True)])


def unlike(cosines: Floats, accepted: float) -> NDArray[np.bool_]:
    """(N,) which references are far out: below ``accepted``, and far below what the others reach.

    Of fewer than four nothing can be said.
    """
    if len(cosines) < 4:
        return np.zeros(len(cosines), bool)
    middle = np.median(cosines)
    spread = max(_MAD * float(np.median(np.abs(cosines - middle))), 0.02)
    return np.asarray((cosines < accepted) & (cosines < middle - FAR_OUT * spread))


def spread(cosines: Floats) -> Spread:
    """The natural range, from :func:`to_the_others`."""
    return Spread(len(cosines), float(cosines.mean()), float(cosines.min()))


def _unit(row: Floats) -> Floats:
    return np.asarray(row / max(float(np.linalg.norm(row)), 1e-12))
