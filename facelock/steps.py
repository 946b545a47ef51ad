"""One step of the pipeline's loop: timed, checked, reported; and where frames lie between two of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from facelock.errors import DeviceError, FaceLockError
from facelock.job import Span
from facelock.protocols import Progress

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Home:
    """Where frames lie between the stages: on the GPU while its memory suffices, else in the computer's own."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def leave(self, stage: str) -> None:
        """Give the GPU up, because ``stage`` ran out of memory there."""
        if self.device.type == "cpu":
            return
        logger.warning(
            "Memory is short on %s in the stage %s: from here on frames lie in the computer's memory between stages, "
            "which is slower.",
            self.device,
            stage,
        )
        self.device = torch.device("cpu")


class Steps:
    """Runs the stages of one chunk: timed, checked, without gradients, reporting progress."""

    def __init__(self, span: Span, frames: int, progress: Progress | None, home: Home | None = None) -> None:
        self.span, self.frames, self.progress, self.home = span, frames, progress, home or Home()
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        began = time.perf_counter()
        with torch.no_grad():
            result = self._attempt(stage, work, args, kwargs)
        self._check(stage, result[0] if isinstance(result, tuple) else result)
        self.seconds[stage] = time.perf_counter() - began
        if self.progress:
            self.progress(stage, self.span.end, self.frames)
        return result

    def _attempt(
        self, stage: str, work: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Result:
        """Run ``work``; out of memory, once more with the caches emptied and the frames off the GPU."""
        for last in (False, True):
            try:
                return work(*args, **kwargs)
            except (torch.OutOfMemoryError, MemoryError) as error:
                if last:
                    raise DeviceError(
                        f"Chunk {self.span.index}, stage {stage}: out of memory "
                        f"({str(error)[:120] or 'RAM'}). "
                        "Free memory or choose a smaller recipe; the same command resumes."
                    ) from error
            self.home.leave(stage)
            args = tuple(each.cpu() if isinstance(each, Tensor) else each for each in args)
            torch.cuda.empty_cache()
        raise AssertionError("unreachable")

    def _check(self, stage: str, frames: object) -> None:
        if not isinstance(frames, Tensor):
            return
        where = f"Chunk {self.span.index} (frames from {self.span.start}), stage {stage}"
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.shape[0] < self.span.length:
            raise FaceLockError(
                f"{where}: got frames of shape {tuple(frames.shape)} where ({self.span.length}, 3, H, W) was "
                "expected. This is a bug in that stage; please report it."
            )
        if not bool(torch.isfinite(frames).all()):
            raise FaceLockError(
                f"{where}: the frames hold NaN or infinity. Try another seed or device; finished chunks are "
                "kept."
            )
