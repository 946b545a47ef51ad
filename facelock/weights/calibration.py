"""What is known of recognisers by the digest of their weights: name, licence, thresholds (models/calibration.toml).

::

    known = calibrated(sha256)          # a Calibration, or None
    accepted_from(sha256, "my.onnx")    # its thresholds, else careful ones and one warning

A threshold belongs to weights, not to a file's name; so does the name by which identities remember an encoder.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from facelock.assets import asset_dir
from facelock.errors import ModelError
from facelock.types import Thresholds

logger = logging.getLogger(__name__)

CAREFUL = Thresholds(far_1e2=0.32, far_1e3=0.42, far_1e4=0.50)
"""For recognisers nobody has calibrated: no lower than what any of the calibrated ones needs (a test holds it)."""


@dataclass(frozen=True)
class Calibration:
    """One recogniser, known by its weights."""

    name: str
    thresholds: Thresholds
    measured: str
    """How its thresholds were found, in words."""
    licence: str = ""
    commercial: bool = False


@cache
def table() -> Mapping[str, Calibration]:
    """sha256 → what is known. Raises ``ModelError`` when the file cannot be read."""
    path = asset_dir("models") / "calibration.toml"
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["recognisers"]
        return {sha256: _calibration(row) for sha256, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read ({error!r}). Reinstall FaceLock.") from error


def _calibration(row: Mapping[str, object]) -> Calibration:
    values = dict(row)
    return Calibration(**{**values, "thresholds": Thresholds(**values["thresholds"])})  # type: ignore[arg-type]


def calibrated(sha256: str) -> Calibration | None:
    """What is known of the recogniser with these weights."""
    return table().get(sha256)


def accepted_from(sha256: str, name: str) -> Thresholds:
    """The thresholds of the recogniser with these weights; careful ones where it is not known, and says so once."""
    known = calibrated(sha256)
    if known is None:
        _warn(sha256, name)
        return CAREFUL
    return known.thresholds


@cache
def _warn(sha256: str, name: str) -> None:
    logger.warning(
        "%s (sha256 %s) is not calibrated: similarities above %.2f, %.2f and %.2f are taken for false-accept rates "
        "of 1e-2, 1e-3 and 1e-4. Calibrate it, or give thresholds in a recipe.",
        name,
        sha256[:12],
        CAREFUL.far_1e2,
        CAREFUL.far_1e3,
        CAREFUL.far_1e4,
    )
