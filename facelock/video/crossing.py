"""Between a GPU and the computer's memory: pixels cross as whole numbers, through pinned memory, beside other work.

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


def lifted(pixels: Tensor, device: torch.device | str) -> Tensor:
    """(T, 3, H, W) uint8 or uint16 as a file holds them → float32 in [0, 1] on ``device``.

    They become numbers with a fraction there: a quarter or half of the bytes crosses.
    """
    place = torch.device(device)
    if place.type == "cuda":
        pixels = pixels.pin_memory()
    pixels = pixels.to(place, non_blocking=place.type == "cuda")
    white = torch.full(
        (), float(torch.iinfo(pixels.dtype).max), device=place
    )  # a plain number is multiplied on a GPU
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(white)


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
