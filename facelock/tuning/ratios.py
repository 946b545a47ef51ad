"""MagCache's table for a checkpoint: how much larger or smaller its residual gets from step to step.

::

    ratios = measure_ratios(backbone.modules["transformer"], lambda: backbone.extend("a woman", None, seed=1))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def measure_ratios(transformer: Any, run: Callable[[], object]) -> tuple[float, ...]:
    """One ratio per denoising step of ``run``, which must denoise one window; the first is 1.

    The ratio is the mean over tokens of ‖residual‖ / ‖residual of the step before‖, the residual being what all
    blocks together add (MagCache, arXiv:2506.09045, equation 4). Of two passes a step, the first counts.
    """
    levels: list[float] = []
    sizes: list[Tensor] = []
    begun: list[Tensor] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        level = kwargs["timestep"] if "timestep" in kwargs else args[1]
        levels.append(float(level.max()))

    def begin(_: Any, args: Any) -> None:
        begun[:] = [args[0]]

    def end(_: Any, __: Any, output: Any) -> None:
        made = output[0] if isinstance(output, tuple) else output
        sizes.append(torch.linalg.vector_norm((made - begun[0]).float(), dim=-1))

    hooks = [
        transformer.register_forward_pre_hook(note, with_kwargs=True),
        transformer.blocks[0].register_forward_pre_hook(begin),
        transformer.blocks[-1].register_forward_hook(end),
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    first = [i for i, level in enumerate(levels) if i == 0 or level != levels[i - 1]]
    kept = [sizes[i] for i in first]
    pairs = zip(kept[1:], kept, strict=False)
    return (1.0, *(float((now / (before + 1e-8)).mean()) for now, before in pairs))
