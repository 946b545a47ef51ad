"""The number formats that networks run in: their names, and full precision for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    """Hold all parameters in float32 for a while, and read what the network is given in it; each parameter returns to
    its own type without loss."""
    kept = [(parameter, parameter.dtype) for parameter in network.parameters()]
    hook = network.register_forward_pre_hook(_inputs_in_float32, with_kwargs=True)
    try:
        for parameter, _ in kept:
            parameter.data = parameter.data.float()
        yield
    finally:
        hook.remove()
        for parameter, dtype in kept:
            parameter.data = parameter.data.to(dtype)


def _inputs_in_float32(_: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _as_float32(args), _as_float32(kwargs)


def _as_float32(given: Any) -> Any:
    """``given`` with every floating tensor in it, however deep, in float32."""
    if isinstance(given, torch.Tensor):
        return given.float() if given.is_floating_point() else given
    if type(given) in (list, tuple):
        return type(given)(_as_float32(each) for each in given)
    if type(given) is dict:
        return {key: _as_float32(each) for key, each in given.items()}
    return given
