"""The number format that a restoration network runs in."""

from __future__ import annotations

import torch

from facelock.errors import ConfigError
from facelock.precision import resolve_dtype


def dtype_of(precision: str, device: torch.device | str) -> torch.dtype:
    """torch's type for ``precision`` on ``device``. Raises ``ConfigError`` for an unknown name, and on a CPU for all
    but float32: half precision is no faster there, and its results differ from those of a GPU."""
    if precision in ("bfloat16", "float16") and torch.device(device).type == "cpu":
        raise ConfigError(
            f"restoration in {precision} needs a GPU. Give float32 as the precision in [restore], or --device cuda."
        )
    return resolve_dtype(precision, device)
