"""The contact sheet: first, middle and last frame of every shot, one picture for the whole film."""

from __future__ import annotations

import importlib.util
import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from facelock.files import atomic_write
from facelock.storyboards.cut import Cut, Placed
from facelock.storyboards.splice import fitted
from facelock.video.writing import read_chunks

TILE = 128
"""Pixels of a frame's longer side."""
LABEL = 34
"""Pixels of the two lines under a shot."""
GAP = 6
FRAMES = 3
FRAMES_PER_READ = 24
_GROUND, _INK, _BAD = (24, 24, 26), (230, 230, 230), (240, 110, 100)


def write_sheet(cut: Cut, path: Path) -> None:
    """Write the sheet as a PNG; a shot without a take is an empty frame that says so. Raises ``StorageError``."""
    columns = max(1, math.ceil(math.sqrt(len(cut.shots) / 2)))
    rows = math.ceil(len(cut.shots) / columns)
    width, height = FRAMES * TILE + GAP, _tile_size(cut)[0] + LABEL + GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), _GROUND)
    for index, shot in enumerate(cut.shots):
        left, top = GAP + index % columns * width, GAP + index // columns * height
        _draw(sheet, cut, shot, left, top)
    stored = io.BytesIO()
    sheet.save(stored, "PNG", optimize=True)
    atomic_write(path, stored.getvalue())


def _tile_size(cut: Cut) -> tuple[int, int]:
    height, width = cut.size
    scale = TILE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _draw(sheet: Image.Image, cut: Cut, shot: Placed, left: int, top: int) -> None:
    size = _tile_size(cut)
    pen, font = ImageDraw.Draw(sheet), _font()
    for number, frame in enumerate(pictures(shot, size)):
        pixels = (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(pixels), (left + number * TILE, top))
    good = shot.result.outcome == "accepted"
    if not good:
        pen.rectangle((left, top, left + FRAMES * TILE - 1, top + size[0] - 1), outline=_BAD)
    take = shot.result.take
    share = f", {take.share:.0%}" if take and take.share is not None else ""
    first = f"{shot.unit.name}  {', '.join(shot.unit.characters)}  {shot.result.outcome}{share}"
    pen.text((left, top + size[0] + 1), _fit(first), fill=_INK if good else _BAD, font=font)
    pen.text((left, top + size[0] + 16), _fit(shot.unit.prompt), fill=_INK, font=font)


@cache
def _font() -> Any:
    """Matplotlib's DejaVu Sans, which has Latin, Greek and Cyrillic letters; Pillow's own has ASCII."""
    found = importlib.util.find_spec("matplotlib")
    path = Path(found.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found else Path()
    return ImageFont.truetype(str(path), 12) if path.is_file() else ImageFont.load_default(13)


def _fit(text: str) -> str:
    longest = FRAMES * TILE // 7
    plain = text.replace("\n", " ")
    return plain if len(plain) <= longest else f"{plain[: longest - 3]}..."


def pictures(shot: Placed, size: tuple[int, int]) -> list[Tensor]:
    """First, middle and last frame, (3, h, w) in [0, 1]; none of a shot that was not made."""
    if shot.result.video is None:
        return []
    last = shot.frames - 1
    wanted = {0, last // 2, last}
    found = []
    for chunk in read_chunks(shot.result.video, FRAMES_PER_READ):
        inside = sorted(frame - chunk.start for frame in wanted if 0 <= frame - chunk.start < len(chunk))
        found += [fitted(chunk.frames[[number]], size)[0] for number in inside]
    return found
