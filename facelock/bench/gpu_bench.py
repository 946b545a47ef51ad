"""What ``facelock bench gpu`` measures with: lines that end in a figure or in a reason, within a time budget.

::

    bench = Bench(TINY, torch.device("cpu"), rounds=1)
    bench.time("matrix product", lambda: left @ left, key="matrix")
    bench.seconds("matrix")

The first run of a line is its cold one, and FLOPs are counted in it.
"""

from __future__ import annotations

import gc
import logging
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from facelock.bench.gpu_sizes import Sizes
from facelock.bench.timing import Timing, wait_for
from facelock.errors import first_line

log = logging.getLogger(__name__)
GIB = 2**30
LATE = "not started: the time budget was used up"


@dataclass
class Line:
    """One line of the table."""

    what: str
    timing: Timing | None = None
    flops: float = 0.0
    memory: float | None = None
    """Most GiB of the device that were taken by tensors, models included."""
    ratio: float | None = None
    goal: str = ""
    note: str = ""
    trace: str = ""
    """Where it failed, for the JSON file."""


@dataclass
class Bench:
    """One device, and the lines measured so far."""

    sizes: Sizes
    device: torch.device
    rounds: int
    budget: float | None = None
    """Seconds from the beginning after which nothing new is started."""
    told: Callable[[Line], None] = lambda _: None
    """Called with every line when it is there."""
    rate: float = 0.0
    """FLOP/s of a large matrix product."""
    lines: list[Line] = field(default_factory=list)
    keys: dict[str, Line] = field(default_factory=dict)
    """Lines that others refer to."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Models that several parts use."""
    began: float = field(default_factory=time.perf_counter)

    @property
    def on_gpu(self) -> bool:
        """Whether this is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def where(self) -> str:
        """What every line says."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "CPU, tiny shapes"

    def add(self, line: Line, key: str = "") -> Line:
        """Keep and tell a line."""
        self.lines.append(line)
        if key:
            self.keys[key] = line
        self.told(line)
        return line

    def fits(self, cost: float) -> bool:
        """Whether ``cost`` more seconds, as they are on an H100, are within the budget."""
        spent = time.perf_counter() - self.began
        return self.budget is None or spent + (cost if self.on_gpu else 0.0) <= self.budget

    def seconds(self, key: str) -> float | None:
        """Warm seconds of a line; None where it was not measured."""
        line = self.keys.get(key)
        return line.timing.warm if line and line.timing else None

    def time(
        self, what: str, work: Callable[[], object], *, key: str = "", cost: float = 0.0, rounds: int | None = None,
        **more: Any,
    ) -> Line:  # fmt: skip
        """Measure ``work`` alone; ``rounds`` 0: one run, cold as it is."""
        return self.compare({what: work}, keys=[key], cost=cost, rounds=rounds, **more)[0]

    def compare(
        self, arms: Mapping[str, Callable[[], object]], *, keys: list[str], cost: float = 0.0,
        rounds: int | None = None, **more: Any,
    ) -> list[Line]:  # fmt: skip
        """Measure several arms in turn: a line each, all with the reason where one of them fails."""
        lines = [Line(name, **more) for name in arms]
        if not self.fits(cost):
            for line in lines:
                line.note = LATE
        else:
            with self.guarded(lines), torch.no_grad():
                turns = self.rounds if rounds is None else min(rounds, self.rounds)
                self._measure(lines, arms, turns, max(2.0, 1.5 * cost))
        return [self.add(line, key) for line, key in zip(lines, keys, strict=True)]

    def _measure(
        self, lines: list[Line], arms: Mapping[str, Callable[[], object]], rounds: int, most: float
    ) -> None:
        """Each arm once cold and then ``rounds`` times, in turn; fewer times once ``most`` seconds have passed."""
        clear(self.device)
        walls: list[list[float]] = [[] for _ in lines]
        began = time.perf_counter()
        for turn in range(rounds + 1):
            if turn > 1 and self.on_gpu and time.perf_counter() - began > most:
                break
            for line, work, spans in zip(lines, arms.values(), walls, strict=True):
                spans.append(self._once(partial(_counted, line, work) if turn == 0 else work))
        for line, spans in zip(lines, walls, strict=True):
            line.timing = Timing(spans[0], statistics.median(spans[1:] or spans), 0.0)
            line.memory = peak(self.device)

    def _once(self, work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        wait_for(self.device)
        return time.perf_counter() - began

    @contextmanager
    def guarded(self, lines: list[Line]) -> Iterator[None]:
        """What is raised within becomes the note of ``lines``; the device's memory is given back."""
        try:
            yield
        except Exception as error:  # a line that fails must not take the others along
            for line in lines:
                line.timing, line.note = None, f"failed: {type(error).__name__}: {first_line(error, 200)}"
                line.trace = traceback.format_exc()
            log.warning("%s: %s", lines[0].what, lines[0].note)
            _forget(error)
        finally:
            clear(self.device)

    def part(self, name: str, work: Callable[[Bench], None], cost: float) -> None:
        """Run a part of the benchmark; where it cannot even begin, a line says why."""
        line = Line(name)
        if self.fits(cost):
            with self.guarded([line]):
                work(self)
        else:
            line.note = LATE
        if line.note:
            self.add(line)


def _forget(error: BaseException | None) -> None:
    """Let go of what an error and its causes hold on to: all that lay in memory when they were raised."""
    while error is not None:
        error.__traceback__, error = None, error.__cause__ or error.__context__


def _counted(line: Line, work: Callable[[], object]) -> None:
    with FlopCounterMode(display=False) as counter:
        work()
    line.flops = float(counter.get_total_flops())


def clear(device: torch.device) -> None:
    """Give back what nobody holds, and begin to watch the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float | None:
    """GiB of the device at most since :func:`clear`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
