"""Training curves of the model cards: what was logged, thinned for ``training.json`` and drawn as a small PNG.

A curve is a list of ``[step, {figure: value}]``, steps ascending; a part has one per sitting, oldest first.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

POINTS = 60
"""Most points of a sitting's curve in ``training.json``."""
WIDTH, PANEL = 480, 118
"""Pixels of a picture's width, and of the height of one figure's panel."""
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 22, 20
PANELS = 5
"""Most figures drawn of a part."""
_GROUND, _GRID, _INK, _LINE = (255, 255, 255), (222, 222, 222), (60, 60, 60), (31, 98, 176)

Curve = Sequence[Sequence[Any]]
"""``[step, {figure: value}]``, steps ascending."""


def thinned(history: Sequence[Mapping[str, float]], points: int = POINTS) -> list[list[Any]]:
    """A training's ``history`` of ``{"step": …, figure: …}`` as a curve of at most ``points``: means of neighbours.

    Each point stands at the last step of those it is the mean of, and has four digits.
    """
    size = max(1, math.ceil(len(history) / max(points, 1)))
    curve = []
    for first in range(0, len(history), size):
        part = history[first : first + size]
        names = [k for k in part[-1] if k != "step"]
        means = {k: sum(row[k] for row in part if k in row) / sum(k in row for row in part) for k in names}
        curve.append([int(part[-1]["step"]), {k: float(f"{v:.4g}") for k, v in means.items()}])
    return curve


def sitting(meta: Mapping[str, str]) -> dict[str, Any]:
    """What ``training.json`` keeps of a training, by the metadata of its ``state.safetensors``.

    ``steps`` and ``last``; ``device``, ``seconds`` and ``samples`` where the state knows them, and the ``curve``.
    """
    history = json.loads(meta["history"])
    last = {k: float(f"{v:.4g}") for k, v in (history or [{}])[-1].items() if k != "step"}
    out: dict[str, Any] = {"steps": int(meta["step"]), "last": last}
    if meta.get("device"):
        out["device"] = meta["device"]
    if float(meta.get("spent", "0")) > 0:
        out["seconds"] = round(float(meta["spent"]), 1)
    if "samples" in meta:
        out["samples"] = int(meta["samples"])
    return out | {"curve": thinned(history)} if history else out


def draw(sittings: Sequence[Mapping[str, Any]]) -> bytes | None:
    """A PNG with one panel per figure over the steps of all ``sittings``; None where no sitting kept two points.

    Sittings follow one another along the axis, parted by a vertical line. One without a curve leaves a gap of its
    length.
    """
    lines, borders = _joined(sittings)
    lines = {name: line for name, line in lines.items() if sum(len(part) for part in line) > 1}
    if not lines:
        return None
    names = list(lines)[:PANELS]
    image = Image.new("RGB", (WIDTH, PANEL * len(names)), _GROUND)
    for row, name in enumerate(names):
        _panel(ImageDraw.Draw(image), row * PANEL, name, lines[name], borders)
    stored = io.BytesIO()
    image.quantize(32).save(stored, "PNG", optimize=True)
    return stored.getvalue()


Line = list[list[tuple[float, float]]]
"""Of each sitting, its (step, value), steps counted through."""


def _joined(sittings: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Line], list[int]]:
    """Figure → its line, and the step at which each sitting ends."""
    lines: dict[str, Line] = {}
    borders, begin = [], 0
    for index, sitting in enumerate(sittings):
        for step, figures in sitting.get("curve", ()):
            for name, value in figures.items():
                if math.isfinite(value):
                    line = lines.setdefault(name, [[] for _ in sittings])
                    line[index].append((begin + step, value))
        begin += int(sitting["steps"])
        borders.append(begin)
    return lines, borders


def _panel(pen: ImageDraw.ImageDraw, top: int, name: str, line: Line, borders: Sequence[int]) -> None:
    values = [value for part in line for _, value in part]
    (low, high), last = _range(values), max(borders[-1], 1)
    upper, lower = top + TOP, top + PANEL - BOTTOM

    def at(step: float, value: float) -> tuple[float, float]:
        share = (min(max(value, low), high) - low) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last, lower - (lower - upper) * share

    font = ImageFont.load_default(11)
    pen.text((LEFT, top + 5), name, fill=_INK, font=font)
    for value in (low, (low + high) / 2, high):
        y = at(0, value)[1]
        pen.line((LEFT, y, WIDTH - RIGHT, y), fill=_GRID)
        pen.text((LEFT - 5, y), f"{value:.3g}", fill=_INK, font=font, anchor="rm")
    free = float(WIDTH)
    for step in reversed((0, *borders)):
        x = at(step, low)[0]
        pen.line((x, upper, x, lower + 3), fill=_GRID)
        said = f"{step:,} steps" if step == borders[-1] else f"{step:,}"
        if x < free:  # labels of close borders would lie over each other
            pen.text((x, lower + 4), said, fill=_INK, font=font, anchor="ra" if step else "la")
            free = x - pen.textlength(said, font=font) - 8
    for part in line:
        pen.line([at(*point) for point in part], fill=_LINE, width=2)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """What the axis spans: all values but the first twentieth, which may start so far off that the rest would be flat.

    What lies outside is drawn at the panel's edge.
    """
    kept = values[len(values) // 20 :]
    low, high = min(kept), max(kept)
    return (low, high) if high - low > 1e-9 * max(1.0, abs(high)) else (low - 0.5, high + 0.5)
