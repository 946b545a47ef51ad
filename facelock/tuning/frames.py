"""Where a pipeline's frames lie between its stages."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from facelock.tuning.footprint import read_footprint
from facelock.tuning.options import Speed
from facelock.tuning.plan import Plan, Shape, room_for_frames

logger = logging.getLogger(__name__)


def frames_device(
    device: torch.device, speed: Speed, folder: Path, shape: Shape, plan: Plan, usable: int
) -> str:
    """``device``; ``"cpu"`` for the plain code (``--reference``), or where ``usable`` bytes have no room for a chunk's
    frames beside what ``plan`` needs, which is said. ``usable`` 0: nothing is known of the memory, so there is room.
    ``folder`` is the blueprint's checkpoint.
    """
    if device.type == "cpu" or speed.reference:
        return "cpu"
    if folder.is_dir() and usable and not room_for_frames(read_footprint(folder), shape, plan, usable):
        logger.warning(
            "%s has no room for a chunk's frames beside the networks: between stages they lie in the computer's "
            "memory, which is slower. A larger card or --vram, or a smaller window or scale, mends it.",
            device,
        )
        return "cpu"
    return str(device)
