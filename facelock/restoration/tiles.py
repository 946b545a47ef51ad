"""Whole frames through a network: batches of one fixed size, tiles where a frame is too large for the memory.

A tile is what the network sees; of it only the inner part is kept, ``overlap`` pixels or more away from every edge
that is not the frame's own. A network of convolutions whose reach is at most ``overlap`` therefore gives the same
with tiles as without (to the rounding of another order of sums), and one that looks further shows the smaller a
seam, the larger the overlap. Tiles have one size, so that a frame's bits depend on that frame alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from facelock.errors import ConfigError, DeviceError, ModelError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in pixels of the frame: what is seen, and what of it is kept."""

    start: int
    stop: int
    keep: int
    """First pixel kept."""
    until: int
    """First pixel no longer kept."""


def spans(length: int, tile: int, overlap: int, multiple: int = 1) -> list[Span]:
    """Tiles of ``tile`` pixels that cover ``length``, each starting at a multiple of ``multiple``.

    ``tile`` 0, or one as long as the axis, gives the whole. Raises ``ConfigError`` where nothing of a tile would be
    left to keep.
    """
    if not tile or length <= tile:
        return [Span(0, length, 0, length)]
    tile = tile // multiple * multiple
    step = (tile - 2 * overlap) // multiple * multiple
    if step <= 0:
        raise ConfigError(
            f"tiles of {tile} pixels with an overlap of {overlap} leave nothing to keep. "
            "Give a larger tile or a smaller overlap in [restore]."
        )
    last = (length - tile + multiple - 1) // multiple * multiple
    starts = [*range(0, last, step), last]
    stops = [min(start + tile, length) for start in starts]
    seams = [(nxt + stop) // 2 for nxt, stop in zip(starts[1:], stops[:-1], strict=True)]
    keeps = zip([0, *seams], [*seams, length], strict=True)
    return [
        Span(a, b, keep, until)
        for (a, b), (keep, until) in zip(zip(starts, stops, strict=True), keeps, strict=True)
    ]


class TiledFrames:
    """A network applied to frames, each by itself."""

    def __init__(
        self,
        net: Callable[[Tensor], Tensor],
        name: str,
        *,
        scale: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch: int = 1,
        tile: int = 0,
        overlap: int = 40,
        multiple: int = 1,
    ) -> None:
        """``net`` takes (B, 3, h, w) in [0, 1] on ``device`` in ``dtype`` and returns ``scale`` times as much.

        ``name`` stands in errors, ``multiple`` is what the network wants a tile's side to be a multiple of.
        """
        self.net, self.name, self.scale = net, name, scale
        self.device, self.dtype, self.batch = torch.device(device), dtype, batch
        self.tile, self.overlap, self.multiple = tile, overlap, multiple
        self._halved = False

    def __call__(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) → (T, 3, scale·H, scale·W), float32 in [0, 1] where ``frames`` are.

        When the memory does not suffice, tiles of half the size are tried, once, and kept for later frames. Raises
        ``DeviceError`` when that does not help, ``ModelError`` where the result is no number.
        """
        short: BaseException | None = None
        try:
            return self._frames(frames)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            short = out_of_memory(error)
        self._halve(max(frames.shape[-2:]), short)
        try:
            return self._frames(frames)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise self._too_large(out_of_memory(error)) from error

    @torch.no_grad()
    def _frames(self, frames: Tensor) -> Tensor:
        count, channels, height, width = frames.shape
        out = frames.new_empty(count, channels, height * self.scale, width * self.scale)
        for begin in range(0, count, self.batch):
            part = frames[begin : begin + self.batch]
            full = functional.pad(part, (0, 0, 0, 0, 0, 0, 0, self.batch - len(part)))
            large = self._batch(full.to(self.device, self.dtype))[: len(part)].clamp(0, 1)
            self._require_numbers(large, begin)
            out[begin : begin + len(part)] = large
        return out

    def _batch(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        tiles = list(self._tiles(height, width))
        if len(tiles) == 1:
            return self.net(frames)
        s = self.scale
        out = frames.new_empty(*frames.shape[:2], height * s, width * s)
        for y, x in tiles:
            seen = self.net(frames[..., y.start : y.stop, x.start : x.stop].contiguous())
            own = seen[
                ...,
                (y.keep - y.start) * s : (y.until - y.start) * s,
                (x.keep - x.start) * s : (x.until - x.start) * s,
            ]
            out[..., y.keep * s : y.until * s, x.keep * s : x.until * s] = own
        return out

    def _tiles(self, height: int, width: int) -> Iterator[tuple[Span, Span]]:
        rows = spans(height, self.tile, self.overlap, self.multiple)
        columns = spans(width, self.tile, self.overlap, self.multiple)
        return ((y, x) for y in rows for x in columns)

    def _require_numbers(self, large: Tensor, begin: int) -> None:
        good = large.isfinite().flatten(1).all(1).tolist()
        if not all(good):
            raise ModelError(
                f"{self.name}: its result for frame {begin + good.index(False)} of this chunk holds NaN or infinity. "
                "Give float32 as the precision in [restore], or another model."
            )

    def _halve(self, side: int, error: BaseException | None) -> None:
        tile = min(self.tile or side, side) // 2
        if self._halved or tile <= 2 * self.overlap + self.multiple:
            raise self._too_large(error) from error
        logger.warning(
            "%s: out of memory on %s; from here on frames are enlarged in tiles of %d pixels",
            self.name,
            self.device,
            tile,
        )
        self.tile, self.batch, self._halved = tile, 1, True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_large(self, error: BaseException | None) -> DeviceError:
        what = f"in tiles of {self.tile} pixels" if self.tile else "as a whole"
        return DeviceError(
            f"{self.name}: {self.device} has too little memory to enlarge frames {what}. "
            "Give a smaller tile in [restore], a smaller --size, or another device."
        )


def out_of_memory(error: RuntimeError) -> RuntimeError:
    """``error`` if it says that memory ran out, without its traceback, which would hold on to all that lay in memory;
    raised again if it says anything else."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return error.with_traceback(None)
    raise error
