"""Times of several arms, taken in turn in one run: the first of each is cold, the median of the others warm."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one arm."""

    cold: float
    warm: float
    """The median of the later rounds."""
    busy: float
    """Processor seconds of this process and its children in a warm round, the median."""

    def share(self) -> float:
        """Busy time of all cores ÷ wall time; 1 is a machine with nothing idle."""
        return self.busy / (cores() * self.warm)


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
    told: Callable[[int], None] = lambda _: None,
) -> dict[str, Timing]:
    """Run every arm once cold, then ``rounds`` times in turn; ``told(round)`` after each round."""
    walls: dict[str, list[float]] = {name: [] for name in arms}
    busy: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, work in arms.items():
            gc.collect()
            before, began = _processor(), time.perf_counter()
            work()
            wait_for(device)
            walls[name].append(time.perf_counter() - began)
            busy[name].append(_processor() - before)
        told(turn)
    return {
        name: Timing(found[0], statistics.median(found[1:]), statistics.median(busy[name][1:]))
        for name, found in walls.items()
    }


def wait_for(device: torch.device | str) -> None:
    """Let a GPU finish what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident() -> int:
    """Bytes that this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _processor() -> float:
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system
