"""Side-by-side pictures of the model cards: one named row per kind of picture, one column per case."""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LIMIT = 250_000
"""Most bytes of a sheet."""
LABEL, GAP = 92, 2
"""Pixels of the rows' names on the left, and between pictures."""
_GROUND, _INK = (255, 255, 255), (60, 60, 60)


def difference(a: Tensor, b: Tensor, gain: float = 4.0) -> Tensor:
    """``gain`` times the absolute difference of pictures in [0, 1], clipped."""
    return ((a - b).abs() * gain).clamp(0, 1)


def sheet(rows: Mapping[str, Tensor], *, zoom: int = 1, limit: int = LIMIT) -> bytes:
    """A PNG of at most ``limit`` bytes of rows of pictures (N, 3, H, W) in [0, 1], each pixel ``zoom`` wide.

    Colours are reduced as far as the limit asks, the pixels' places never. Raises ``ValueError`` where even 16 colours
    are too many bytes.
    """
    image = _lay_out(rows, zoom)
    for colours in (None, 256, 128, 64, 32, 16):
        stored = io.BytesIO()
        (image.quantize(colours) if colours else image).save(stored, "PNG", optimize=True)
        if stored.tell() <= limit:
            return stored.getvalue()
    raise ValueError(f"{len(rows)} rows of pictures do not fit into {limit} bytes")


def _lay_out(rows: Mapping[str, Tensor], zoom: int) -> Image.Image:
    count, _, height, width = next(iter(rows.values())).shape
    step_x, step_y = width * zoom + GAP, height * zoom + GAP
    image = Image.new("RGB", (LABEL + count * step_x, len(rows) * step_y), _GROUND)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for row, (name, pictures) in enumerate(rows.items()):
        pen.multiline_text((4, row * step_y + 4), name, fill=_INK, font=font)
        for column, picture in enumerate(pictures):
            pixels = (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
            tile = Image.fromarray(pixels.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).numpy())
            image.paste(tile, (LABEL + column * step_x, row * step_y))
    return image
