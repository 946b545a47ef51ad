"""How a recipe fits into a GPU's memory, found out before anything is loaded: :mod:`facelock.tuning.plan` for a recipe.

::

    plan = memory_plan(recipe, torch.device("cuda:0"), folder)      # Plan() on a CPU that was given no size
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from facelock.errors import DeviceError
from facelock.recipe import Recipe, recipe_names
from facelock.tuning.footprint import NOTHING, Footprint, read_footprint
from facelock.tuning.plan import GIB, Plan, Shape, choose_plan, peak, plans

logger = logging.getLogger(__name__)


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU; 0 for the CPU, whose memory is not planned."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def usable_memory(recipe: Recipe, device: torch.device) -> int:
    """Bytes that the recipe may use; 0 where nothing is known of them."""
    return (recipe.memory.vram or 0) * GIB or total_memory(device)


def weights_after(paths: Mapping[str, Path]) -> int:
    """Bytes that the weights of the stages after the blueprint take at most, by their files: role → file or folder."""
    found = {path for role, path in paths.items() if not role.startswith("blueprint.")}
    return sum(_bytes(path) for path in found)


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [*path.rglob("*.safetensors"), *path.rglob("*.onnx")]
    return sum(file.stat().st_size for file in files)


def shape_of(recipe: Recipe, after: int = 0) -> Shape:
    """What a plan has to know of a recipe; ``after`` are the bytes of :func:`weights_after`."""
    low = recipe.blueprint
    return Shape(
        low.size,
        low.window,
        guided=low.guidance_scale > 1,
        precision=low.precision,
        float8=recipe.speed.choices().quantise is not None,
        scale=recipe.restore.scale,
        batch=recipe.restore.batch,
        after=after,
    )


def memory_plan(recipe: Recipe, device: torch.device, folder: Path | None, after: int = 0) -> Plan:
    """How the recipe fits into the memory it may use; ``folder`` holds the blueprint, None where it is not used, and
    ``after`` are the bytes of the other stages' weights.

    Raises ``DeviceError`` where it does not fit what was asked for, or the card has less than that.
    """
    vram, total = recipe.memory.vram, total_memory(device)
    if vram and total and total < 0.9 * vram * GIB:
        raise DeviceError(f"{device} has {total / GIB:.0f} GiB, less than --vram {vram}. Give a smaller one.")
    if (folder is not None and not folder.is_dir()) or not (vram or total):
        return Plan()
    found = NOTHING if folder is None else read_footprint(folder)
    shape, name = shape_of(recipe, after), recipe.name
    if vram:
        smaller = [other for other in recipe_names() if other == "miniature" != name]
        plan = choose_plan(found, shape, vram=vram, recipe=name, smaller=smaller)
    else:
        plan = _plan_for_card(name, found, shape, total / GIB)
    logger.info("memory plan: %s", plan)
    return plan


def _plan_for_card(name: str, found: Footprint, shape: Shape, gib: float) -> Plan:
    """Nobody asked for a plan: what fits the card, or the smallest there is, since an estimate may be wrong."""
    try:
        return choose_plan(found, shape, vram=gib, recipe=name)
    except DeviceError as error:
        logger.warning("%s Trying all the same.", error)
        return min(plans(), key=lambda plan: peak(found, shape, plan))
