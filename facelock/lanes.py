"""Work done beside other work: lanes of threads for rows that do not depend on each other, and chunks made ahead.

::

    side_by_side(embed, crops.split(3))          # in order, one thread per core
    for chunk in ahead(chunks): ...              # the next one is made meanwhile
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

T = TypeVar("T")
R = TypeVar("R")
U = TypeVar("U")

_here = threading.local()


@lru_cache(maxsize=4)
def _lanes(count: int) -> ThreadPoolExecutor:
    """The one pool of ``count`` threads that everything which runs side by side shares."""
    return ThreadPoolExecutor(count, "facelock-lane", _enter_lane, (count,))


def _enter_lane(count: int) -> None:
    """In a lane torch takes one thread for itself: as many lanes as cores are busy already.

    Torch keeps the number per thread once it was asked for it, but setting it also decides what new threads start
    with, so a passing thread sets that back.
    """
    _here.lane = True
    torch.get_num_threads()
    torch.set_num_threads(1)
    passing = threading.Thread(target=torch.set_num_threads, args=(count,))
    passing.start()
    passing.join()


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``work`` of every item, in order, on as many threads as torch has; without gradients.

    Within such work it is one after the other. Raises what the first item that fails raises.
    """
    waiting, count = list(items), torch.get_num_threads()
    if count < 2 or len(waiting) < 2 or getattr(_here, "lane", False):
        return [_without_gradients(work, item) for item in waiting]
    return list(_lanes(count).map(lambda item: _without_gradients(work, item), waiting))


def _without_gradients(work: Callable[[T], R], item: T) -> R:
    with torch.no_grad():
        return work(item)


def scratch(*shape: int) -> NDArray[np.float32]:
    """This thread's own array of that shape, holding anything, until the thread asks for the next.

    Fresh megabytes for each picture would cost as much in page faults as filling them.
    """
    held = getattr(_here, "scratch", None)
    if held is None or held.shape != shape:
        held = _here.scratch = np.empty(shape, np.float32)
    return held


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each being made while the one before it is used. What making raises is raised here."""
    end = object()
    with ThreadPoolExecutor(1, "facelock-ahead") as worker:
        waiting: Future[Any] = worker.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = worker.submit(next, items, end)
            yield item


def kept_behind(items: Iterable[T], keep: Callable[[T], U]) -> Generator[U, None, None]:
    """``keep`` of each item, done while the next item is made; at most one is in the works.

    The last item made is kept even if making the next one fails; what ``keep`` raises is raised here.
    """
    with ThreadPoolExecutor(1, "facelock-behind") as worker:
        waiting: Future[U] | None = None
        try:
            for item in items:
                before, waiting = waiting, None
                if before:
                    yield before.result()
                waiting = worker.submit(keep, item)
        except Exception:
            if waiting:
                waiting.result()
            raise
        if waiting:
            yield waiting.result()
