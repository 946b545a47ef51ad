"""What of a recipe a device cannot do, and libraries that are there and cannot be imported: what only torch can tell.

The rest of what stands between a recipe and its first frame is told without torch: :mod:`facelock.preflight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from facelock.errors import FaceLockError, caught
from facelock.precision import resolve_dtype
from facelock.preflight import spandrel_is_used
from facelock.recipe import Recipe
from facelock.recipe.uses import Uses, uses
from facelock.restoration.precision import dtype_of
from facelock.tuning.options import attention_misfit


def not_on(recipe: Recipe, device: torch.device, used: Uses) -> list[FaceLockError]:
    """What of ``recipe`` that is ``used`` cannot be on ``device``, and what it needs that cannot be imported."""
    lock, restore = recipe.lock, recipe.restore
    networks = [
        ("blueprint", recipe.blueprint.precision),
        ("lock", lock.faceid.precision if lock.faceid else "float32"),
        ("restore.restorer", restore.faceid.precision if restore.faceid else "float32"),
    ]
    pictures = [
        ("restore.upscaler", restore.upscaler_options()),
        ("restore.restorer", restore.restorer_options()),
    ]
    checks: list[Callable[[], object]] = [
        partial(resolve_dtype, precision, device) for role, precision in networks if uses(used, role)
    ]
    checks += [
        partial(dtype_of, options.get("precision", "float32"), device)
        for role, options in pictures
        if uses(used, role)
    ]
    if spandrel_is_used(recipe, used):
        from facelock.restoration.spandrel_net import require_library

        checks.append(require_library)
    return [*caught(*checks), *(_speed_not_on(recipe, device) if uses(used, "blueprint") else ())]


def _speed_not_on(recipe: Recipe, device: torch.device) -> Iterator[FaceLockError]:
    """What of the blueprint's [speed] choices cannot be on ``device``."""
    speed = recipe.speed.choices()
    if speed.attention:
        precision = recipe.blueprint.precision
        misfit = attention_misfit(speed.attention, gpu=device.type != "cpu", precision=precision)
        yield from [misfit] if misfit else []
    if speed.compile:
        from facelock.tuning.apply import require_compiler

        yield from caught(require_compiler)
