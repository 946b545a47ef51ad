"""Characters of a benchmark side by side: on a CPU a process for each core, on a GPU one after the other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from facelock.pipeline import Pipeline
from facelock.runtime import resolve_device

Result = TypeVar("Result")


@cache
def pipeline_of(recipe: str, device: str) -> Pipeline:
    """This process's own pipeline, loaded once."""
    return Pipeline.from_recipe(recipe, device)


def each(work: Callable[[int], Result], count: int, device: str, jobs: int | None = None) -> Iterator[Result]:
    """``work(0)`` to ``work(count - 1)``, in order. ``work`` must be picklable; it runs with one thread.

    ``jobs`` processes; by default one for each core on a CPU, and this process alone on a GPU.
    """
    cores = torch.get_num_threads() if resolve_device(device).type == "cpu" else 1
    jobs = min(count, jobs or cores)
    if jobs == 1:
        yield from map(work, range(count))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, range(count))
