"""A contact sheet of arms along time: what a figure means to the eye."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

SIDE, GAP, LEFT, TOP = 144, 6, 96, 22
COLUMNS = 9


class Stills:
    """Keeps ``COLUMNS`` frames of each arm, evenly along a clip of ``frames`` frames."""

    def __init__(self, frames: int, fps: float) -> None:
        self.fps = fps
        self.wanted = [round(i * (frames - 1) / (COLUMNS - 1)) for i in range(COLUMNS)]
        self.kept: dict[str, dict[int, Tensor]] = {}

    def see(self, arm: str, frames: Tensor, start: int) -> None:
        """Take what is wanted of (T, 3, H, W) frames that begin at ``start``."""
        row = self.kept.setdefault(arm, {})
        for index in self.wanted:
            if start <= index < start + len(frames):
                row[index] = functional.interpolate(
                    frames[index - start][None].float(), (SIDE, SIDE), mode="area"
                )[0].cpu()

    def save(self, path: Path, reference: Tensor) -> None:
        """Write the sheet: the reference (3, H, W) on the left, a row per arm, the time above."""
        rows = list(self.kept.items())
        width = LEFT + SIDE + GAP + len(self.wanted) * (SIDE + GAP)
        sheet = Image.new("RGB", (width, TOP + len(rows) * (SIDE + GAP)), "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
        pen.text((LEFT, 3), "reference", "black", font)
        portrait = functional.interpolate(reference[None], (SIDE, SIDE), mode="area")[0]
        for column, index in enumerate(self.wanted):
            x = LEFT + (column + 1) * (SIDE + GAP)
            pen.text((x, 3), f"{index / self.fps:.0f} s", "black", font)
        for number, (arm, stills) in enumerate(rows):
            y = TOP + number * (SIDE + GAP)
            pen.multiline_text((4, y + SIDE // 2 - 16), arm.replace(" ", "\n"), "black", font)
            sheet.paste(_image(portrait), (LEFT, y))
            for column, index in enumerate(self.wanted):
                if index in stills:
                    sheet.paste(_image(stills[index]), (LEFT + (column + 1) * (SIDE + GAP), y))
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, optimize=True)


def _image(pixels: Tensor) -> Image.Image:
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())
