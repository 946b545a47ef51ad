"""A short queue between who makes frames and the pipe to the encoder, so that neither waits for the other.

A thread writes; at most :data:`SLOTS` pieces are in flight, so memory does not grow with the clip. Pieces from a GPU
are copied into pinned buffers, which are used again and again: a pageable copy is some hundred times slower.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

SLOTS = 3
PIECE = 8 << 20
"""Bytes of a piece, about: small enough to stay in a cache, large enough for a pipe."""


class Ring:
    """Hands pieces of pixels to ``feed`` in order, from a thread of its own."""

    def __init__(self, feed: Callable[[memoryview], None]) -> None:
        """``feed`` gets the bytes of each piece; what it raises is raised by the next :meth:`put` or :meth:`close`."""
        self._feed = feed
        self._free: SimpleQueue[Tensor | None] = SimpleQueue()
        for _ in range(SLOTS):
            self._free.put(None)
        self._full: SimpleQueue[tuple[Tensor, Any] | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="facelock-encode", daemon=True)
        self._thread.start()

    def put(self, pixels: Tensor) -> None:
        """Queue a contiguous tensor of bytes or 16-bit values; waits only while all slots are taken."""
        buffer = self._free.get()
        self._raise()
        self._full.put(self._from_gpu(pixels, buffer) if pixels.is_cuda else (pixels, None))

    def close(self) -> None:
        """Wait until everything is fed."""
        self._full.put(None)
        self._thread.join()
        self._raise()

    def abandon(self) -> None:
        """Drop what is queued. Whoever reads the pipe must be gone, or the thread may wait for it."""
        self._error = self._error or BrokenPipeError()
        self._full.put(None)
        self._thread.join()

    def _from_gpu(self, pixels: Tensor, buffer: Tensor | None) -> tuple[Tensor, Any]:
        """Start the copy into a pinned buffer; the event says when it is done."""
        if buffer is None or buffer.shape != pixels.shape or buffer.dtype != pixels.dtype:
            buffer = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        buffer.copy_(pixels, non_blocking=True)
        done = torch.cuda.Event()
        done.record()  # type: ignore[no-untyped-call]
        return buffer, done

    def _run(self) -> None:
        while (piece := self._full.get()) is not None:
            pixels, done = piece
            try:
                if done is not None:
                    done.synchronize()
                if self._error is None:
                    self._feed(pixels.numpy().data.cast("B"))
            except Exception as error:  # heard by whoever puts or closes
                self._error = self._error or error
            self._free.put(pixels if done is not None else None)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def pieces(frames: Tensor, bytes_per_frame: int) -> tuple[Tensor, ...]:
    """Cut (T, ...) frames along time into pieces of about :data:`PIECE` bytes."""
    return frames.split(max(1, PIECE // max(1, bytes_per_frame)))
