"""A short queue between who makes frames and the pipe to the encoder, so that neither waits for the other.

A thread writes; at most :data:`SLOTS` pieces are in flight, so memory does not grow with the clip.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from torch import Tensor

SLOTS = 3
PIECE = 8 << 20
"""Bytes of a piece, about: small enough to stay in a cache, large enough for a pipe."""


class Ring:
    """Hands pieces of pixels to ``feed`` in order, from a thread of its own."""

    def __init__(self, feed: Callable[[memoryview], None]) -> None:
        """``feed`` gets the bytes of each piece; what it raises is raised by the next :meth:`put` or :meth:`close`."""
        self._feed = feed
        self._free = threading.Semaphore(SLOTS)
        self._full: SimpleQueue[tuple[Tensor, Callable[[], object] | None] | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="facelock-encode", daemon=True)
        self._thread.start()

    def put(self, pixels: Tensor, arrived: Callable[[], object] | None = None) -> None:
        """Queue a contiguous tensor of bytes or 16-bit values on the CPU; waits only while all slots are taken.

        Where the pixels are still on their way, ``arrived`` waits for them; the thread that writes calls it.
        """
        self._free.acquire()
        self._raise()
        self._full.put((pixels, arrived))

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

    def _run(self) -> None:
        while (item := self._full.get()) is not None:
            pixels, arrived = item
            try:
                if arrived is not None:
                    arrived()
                if self._error is None:
                    self._feed(pixels.numpy().data.cast("B"))
            except Exception as error:  # heard by whoever puts or closes
                self._error = self._error or error
            self._free.release()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def pieces(frames: Tensor, bytes_per_frame: int) -> tuple[Tensor, ...]:
    """Cut (T, ...) frames along time into pieces of about :data:`PIECE` bytes."""
    return frames.split(max(1, PIECE // max(1, bytes_per_frame)))
