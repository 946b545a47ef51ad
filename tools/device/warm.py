"""Compiles the blueprint's blocks for a training that comes later on this machine: the compiler keeps what it made.

    python tools/device/warm.py          # beside a training that leaves the GPU room

Four steps on noise, three of windows and one of stills, with the shapes that ``train blueprint --device cuda`` has.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from facelock.miniature.diffusion import DiffusionTask
from facelock.miniature.tasks import BATCH, compiled
from facelock.miniature.trainer import Trainer


def main() -> None:
    """Run four steps, and say how long they took."""
    started = time.monotonic()
    torch.set_float32_matmul_precision("high")
    latents = torch.randn(4, 2, 16, 5, 16, 16, device="cuda", dtype=torch.float16)
    weights = torch.ones(4, 2, 5, 16, 16, device="cuda", dtype=torch.float16)
    task = compiled(
        DiffusionTask(latents, ["a woman talking"] * 4, 4, BATCH, torch.zeros(2, 16, 145), weights)
    )
    with tempfile.TemporaryDirectory() as folder:
        Trainer(task, Path(folder), device="cuda").run()
    print(f"compiled in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
