"""Which part of a face differs from its reference: the judge's embedding, taken apart.

::

    table = table_of(judge.pack.encoder)               # CRATE only: it has a table of parts beside its weights
    table.explain(reference, embeddings)[0]            # Difference(part="brows", sigma=5.1)

The model is linear and Gaussian. Between a reference and the mean of N frames the embedding moves by::

    d = Σ_parts A_p δ_p + e,    e ~ N(0, noise(N)),    δ_p ~ N(0, Σ_p)

``A_p`` is the judge's response to the parameters of a part and ``Σ_p`` how much characters differ in them, both
measured on renders in which exactly one part was changed; ``e`` is what pose, expression, light, blur and the
reference's own picture do (:mod:`facelock.miniature.parts_of_face`). The evidence for a part is the log likelihood
ratio of "it differs" against "it does not", given as ``√(2 · ratio)``: standard deviations, were there one parameter
(Wilks 1938). After the first part is named the next one has to explain what the first did not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from facelock.errors import ConfigError, ModelError
from facelock.faces import CrateEncoder
from facelock.protocols import Encoder

FILE = "parts.safetensors"
"""Beside the judge's weights."""
SECOND = 12
"""Frames of the miniature's second: from so many on, more of the same clip tell nothing new of its light and pose."""
SIGNAL = "signal."
COMMAND = "python -m facelock.miniature parts"

T = TypeVar("T", float, Tensor)


@dataclass(frozen=True)
class Difference:
    """One part of a face, and how surely it differs."""

    part: str
    """``head``, ``eyes``, ``brows``, ``nose``, ``mouth``, ``skin`` or ``marks``."""
    sigma: float
    """≥ 0; 0 where "it does not differ" explains the embedding better."""


@dataclass(frozen=True)
class PartsTable:
    """What a judge does when one part of a face changes, and when none does."""

    encoder: str
    """The judge's id, with the digest of its weights."""
    signals: Mapping[str, Tensor]
    """Part → (k, D) float64: its ``k`` parameters' response, scaled so that ``SᵀS`` is the covariance it adds."""
    noise: tuple[Tensor, Tensor]
    """(D, D) float64 covariance with nothing changed: of one frame, and of the mean of a second."""
    limits: tuple[float, float]
    """Sigma that the strongest part reaches in one of 100 unchanged frames, and in one of 100 unchanged seconds."""

    def explain(self, reference: Tensor, rows: Tensor) -> tuple[Difference, ...]:
        """All parts, the most surely different first.

        ``reference`` is (D,), ``rows`` (N, D) the embeddings of N ≥ 1 frames of one face, both unit length. The sigmas
        never rise: a part that helps only once another is named counts for no more than that one.
        """
        return self.explain_shift(rows.double().mean(0) - reference.double(), len(rows))

    def explain_shift(self, shift: Tensor, frames: int) -> tuple[Difference, ...]:
        """The same for ``shift`` (D,), the mean of so many ``frames`` minus the reference."""
        covariance = _between(self.noise, frames)
        base, left, found = _likelihood(shift, covariance), dict(self.signals), list[Difference]()
        while left:
            worth = {part: _likelihood(shift, covariance + s.T @ s) - base for part, s in left.items()}
            best = max(worth, key=lambda part: worth[part])
            sigma = math.sqrt(2 * max(0.0, worth[best]))
            found.append(Difference(best, min([sigma, *(each.sigma for each in found)])))
            signal = left.pop(best)
            covariance, base = covariance + signal.T @ signal, base + worth[best]
        return tuple(found)

    def limit(self, frames: int) -> float:
        """Sigma above which a difference in the mean of ``frames`` is beyond noise."""
        return float(_between(self.limits, frames))

    def save(self, folder: Path) -> None:
        """Write ``parts.safetensors`` (float32) into the judge's folder."""
        from safetensors.torch import save_file

        tensors = {SIGNAL + part: signal for part, signal in self.signals.items()}
        tensors |= {"noise.frame": self.noise[0], "noise.second": self.noise[1]}
        tensors["limits"] = torch.tensor(self.limits)
        whole = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
        about = {"encoder": self.encoder, "parts": " ".join(self.signals)}
        save_file(whole, folder / FILE, metadata=about)

    @classmethod
    def load(cls, folder: Path) -> PartsTable:
        """Read it. Raises ``ModelError`` where it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        path = folder / FILE
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
            signals = {part: tensors[SIGNAL + part] for part in about["parts"].split()}
            noise = tensors["noise.frame"], tensors["noise.second"]
            low, high = tensors["limits"].tolist()
        except FileNotFoundError as error:
            raise ModelError(
                f"{folder}: has no {FILE}, which says what parts of a face this judge sees. Make it with '{COMMAND}'."
            ) from error
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: is damaged. Make it again with '{COMMAND}'.") from error
        return cls(about.get("encoder", ""), signals, noise, (low, high))


def table_of(encoder: Encoder) -> PartsTable:
    """The table beside a judge's weights.

    Raises ``ConfigError`` for a judge that is no CRATE, ``ModelError`` where the table is missing, damaged, or was made
    for other weights.
    """
    if not isinstance(encoder, CrateEncoder):
        raise ConfigError(
            f"Only the CRATE judge can say which part of a face differs, and {encoder.id} is none. "
            "Leave --explain out, or --judge and --faces."
        )
    table = PartsTable.load(encoder.folder)
    digest = encoder.id.rpartition("@")[2]
    if table.encoder.rpartition("@")[2] != digest:
        raise ModelError(
            f"{encoder.folder / FILE}: was made for {table.encoder}, not for {encoder.id}. "
            f"Make it again with '{COMMAND}'."
        )
    return table


def _between(ends: tuple[T, T], frames: int) -> T:
    """From the value of one frame to that of a second's mean, by 1 / frames, as a mean's variance goes."""
    share = max(0.0, (1 / max(frames, 1) - 1 / SECOND) / (1 - 1 / SECOND))
    return ends[1] + (ends[0] - ends[1]) * share


def _likelihood(shift: Tensor, covariance: Tensor) -> float:
    """Log density of N(0, covariance) at ``shift`` (D,), but for a constant."""
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, shift[:, None], upper=False)
    return float(-0.5 * white.square().sum() - root.diagonal().log().sum())
