"""The number formats that networks run in: their names, and full precision for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from facelock.errors import ConfigError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Name, as recipes give it → type."""


def resolve_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16`` → torch's type, if ``device`` can work in it.

    Raises ``ConfigError`` for another name, and for float16 on a CPU, where a step takes minutes.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"No precision is called {precision!r}. Give one of: {', '.join(PRECISIONS)}.")
    if precision == "float16" and torch.device(device).type == "cpu":
        raise ConfigError("float16 takes hours on a CPU. Give float32 or bfloat16 as the recipe's precision.")
    return PRECISIONS[precision]


@contextmanager
def in_float32(network: torch.nn.Module) -> Iterator[None]:
    """Hold all parameters in float32 for a while; each returns to its own type without loss."""
    kept = [(parameter, parameter.dtype) for parameter in network.parameters()]
    for parameter, _ in kept:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in kept:
            parameter.data = parameter.data.to(dtype)
