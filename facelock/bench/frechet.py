"""The Fréchet distance between two clouds of features (Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500).

Between Gaussians: ``‖m₁ - m₂‖² + tr(C₁ + C₂ - 2 (C₁ C₂)^½)``. The trace of the root is taken from the eigenvalues of
``C₁^½ C₂ C₁^½``, which is symmetric, so that no complex root comes up. Few samples make it too large; how much, the
distance between two disjoint sets of true pictures says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RIDGE = 1e-6
"""Added to a covariance's diagonal, as a share of its mean, so that few samples do not make it singular."""
RESAMPLES = 100


def moments(features: Array) -> tuple[Array, Array]:
    """Mean (D,) and covariance (D, D) of (N, D) features, N ≥ 2, the covariance's diagonal a little raised."""
    covariance = np.cov(features, rowvar=False).reshape(features.shape[1], -1)
    ridge = RIDGE * np.trace(covariance) / len(covariance)
    return features.mean(0), covariance + ridge * np.eye(len(covariance))


def between(one: tuple[Array, Array], other: tuple[Array, Array]) -> float:
    """The distance between two Gaussians, each given by its mean and covariance; 0 or more."""
    values, vectors = np.linalg.eigh(one[1])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ other[1] @ root).clip(0)).sum()
    apart = float(np.square(one[0] - other[0]).sum())
    return max(0.0, apart + float(np.trace(one[1]) + np.trace(other[1]) - 2 * shared))


def distance(features: Array, truth: Array) -> float:
    """Of (N, D) ``features`` to (M, D) ``truth``, as a share of the truth's total variance: free of their scale."""
    true = moments(truth)
    return between(moments(features), true) / float(np.trace(true[1]))


def spread(
    clips: Sequence[Array], base: Sequence[Array], truth: Sequence[Array], seed: int = 0
) -> float | None:
    """Standard deviation of ``distance(clips) / distance(base)`` when clips are drawn anew.

    Each holds one (n, D) array per clip, those of ``clips`` and ``base`` under the same prompt and seed in the same
    place; they are drawn together. None for fewer than two clips.
    """
    if len(clips) < 2:
        return None
    rng, ratios, whole = np.random.default_rng(seed), [], np.concatenate(truth)
    for _ in range(RESAMPLES):
        index = rng.integers(0, len(clips), len(clips))
        ours, theirs = (np.concatenate([arm[i] for i in index]) for arm in (clips, base))
        if min(len(ours), len(theirs)) > 1:
            ratios.append(distance(ours, whole) / max(distance(theirs, whole), 1e-12))
    return float(np.std(ratios)) if ratios else None


def ladder(
    arms: Mapping[str, Sequence[Array]], truth: Sequence[Array], base: str
) -> dict[str, dict[str, float | int | None]]:
    """Per arm its distance to ``truth``, the ratio to the arm ``base``, that ratio's deviation, and the samples."""
    whole = {name: np.concatenate(clips) for name, clips in arms.items()}
    true = np.concatenate(truth)
    found = {name: distance(features, true) for name, features in whole.items()}
    return {
        name: {
            "distance": found[name],
            "ratio": found[name] / found[base] if found[base] > 0 else None,
            "deviation": None if name == base else spread(arms[name], arms[base], truth),
            "samples": len(whole[name]),
        }
        for name in arms
    }
