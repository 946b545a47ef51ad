"""From a GPU to the computer's memory: pixels cross while both sides work on.

Pageable memory takes a hundred times as long as pinned memory, and a copy in the stream of everything else would wait
behind the next chunk's denoising. So pixels are made and copied in a stream of their own, into pinned memory, and
whoever needs them waits for that copy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Arrived = Callable[[], object]
"""Waits until the pixels are there."""


def _here() -> None:
    """Nothing to wait for."""


class Crossing:
    """The way of one segment's frames to the CPU. Without CUDA it is a plain copy, and none for what is there."""

    def __init__(self) -> None:
        self._stream: Any = None

    @contextmanager
    def begin(self, frames: Tensor) -> Iterator[None]:
        """Everything inside runs in the stream of its own, after what made ``frames``; no code outside waits for it."""
        if frames.device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(frames.device)
        self._stream.wait_stream(torch.cuda.current_stream(frames.device))
        frames.record_stream(self._stream)  # its memory is not given to others before this stream is done
        with torch.cuda.stream(self._stream):
            yield

    def send(self, pixels: Tensor) -> tuple[Tensor, Arrived]:
        """``pixels``, made within :meth:`begin`, on the CPU, to be read once the second value was called."""
        if pixels.device.type != "cuda":
            return pixels.cpu(), _here
        there = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        there.copy_(pixels, non_blocking=True)
        event = torch.cuda.Event()
        event.record(self._stream)
        return there, event.synchronize
