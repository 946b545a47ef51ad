"""The number format that a restoration network runs in."""

from __future__ import annotations

import torch

from facelock.errors import ConfigError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names that a recipe can give."""


def dtype_of(precision: str, device: torch.device | str) -> torch.dtype:
    """torch's type for ``precision`` on ``device``. Raises ``ConfigError`` for an unknown name, and on a CPU for all
    but float32: half precision is slower there, not faster, and its results differ from those of a GPU."""
    if precision not in PRECISIONS:
        raise ConfigError(f"no precision is called {precision!r}. Give one of {', '.join(PRECISIONS)}.")
    if precision != "float32" and torch.device(device).type == "cpu":
        raise ConfigError(
            f"restoration in {precision} needs a GPU. Give float32 as the precision in [restore], or --device cuda."
        )
    return PRECISIONS[precision]
