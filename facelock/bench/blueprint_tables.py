"""The figures of ``facelock bench blueprint`` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from facelock.bench.tables import number, table

Figures = Mapping[str, Any]
GOALS = {"hair colour": 0.9, "glasses": 0.9, "action": 0.9, "place": 0.9}
"""Slots that a prompt must control, and the accuracy wanted."""
SIGNALS = {"value": "all signals (≥ .8 wanted)"}
FADING = {
    "levels": ("colour shift, of 255", 1),
    "delta_e": ("ΔE of 16 fields", 1),
    "chroma": ("chroma, last ÷ first", 2),
    "sharpness": ("sharpness, last ÷ first", 2),
    "lightness_slope": ("L* per minute", 2),
    "chroma_slope": ("chroma per minute", 2),
    "sharpness_slope": ("sharpness per minute, %", 1),
}
"""Figure → its column, and digits."""


def body(results: Figures) -> str:
    """All tables, each under a line that says what was measured."""
    parts = [
        f"Accuracy of each slot on {results['prompts']} prompts, read off the first window at "
        f"{results['steps']} steps, unlocked. The classifier's own: on held-out renders of the same prompts, as they "
        "are and through the blueprint's autoencoder.",
        slots(results["slots"]),
        "Motion of unlocked clips ÷ that of true renders of the same words through the autoencoder; beside it, that "
        "of other true renders. Geometric means over prompts.",
        motion(results["stillness"]),
        "Fréchet distance to true renders of the same prompts ÷ their total variance; ± is the ratio's deviation over "
        "prompts. Other true renders: the floor.",
        *(distances(name, found, results["most_steps"]) for name, found in results["frechet"].items()),
        f"Long continuations, {results['long_clips']} characters of {results['seconds']:g} s, low-resolution frames: "
        "the last 10 s (a third, if shorter) against the first; unlocked: on its own last frames alone.",
        fading(results["fading"]),
    ]
    return "\n\n".join(parts)


def estimate(found: Figures, digits: int = 2) -> str:
    """``value [low, high]``."""
    text = number(found.get("value"), digits)
    return (
        text
        if found.get("low") is None
        else f"{text} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    )


def slots(found: Figures) -> str:
    """A row for each slot."""
    names = list(next(iter(found.values()))["blueprints"])
    header = ["slot", "clips", "chance", "classifier: true renders"]
    for name in names:
        header += [f"classifier: autoencoder of {name}", name, f"weakest word of {name}"]
    rows = []
    for slot, row in found.items():
        goal = f" (≥ {GOALS[slot]:.0%} wanted)" if slot in GOALS else ""
        cells = [slot + goal, row["clips"], number(row["chance"], 2), number(row["true"]["value"], 2)]
        for one in row["blueprints"].values():
            word = min(one["words"], key=one["words"].get, default=None)
            weakest = "–" if word is None else f"{word} {one['words'][word]:.2f}"
            cells += [number(one["decoded"]["value"], 2), estimate(one["made"]), weakest]
        rows.append(cells)
    return table(header, rows)


def motion(found: Figures) -> str:
    """A row for each signal."""
    signals = {signal: None for row in found.values() for signal in row}
    labels = {"true": "other true renders"}
    rows = [[SIGNALS.get(s, s), *(estimate(row.get(s, {})) for row in found.values())] for s in signals]
    return table(["variance ÷ true render's", *(labels.get(name, name) for name in found)], rows)


def distances(name: str, found: Figures, most: int) -> str:
    """A row for each set of frames of one blueprint."""
    header = ["frames of " + name]
    for features in found:
        header += [f"samples, {features}", f"distance, {features}", f"÷ {most} steps"]
    rows = []
    for arm in next(iter(found.values())):
        cells: list[Any] = [arm]
        for arms in found.values():
            one = arms[arm]
            deviation = "" if one["deviation"] is None else f" ± {one['deviation']:.2f}"
            cells += [one["samples"], number(one["distance"], 4), number(one["ratio"], 2) + deviation]
        rows.append(cells)
    return table(header, rows)


def fading(found: Figures) -> str:
    """A row for each arm."""
    rows = [
        [arm, *(number(row[key], digits) for key, (_, digits) in FADING.items())]
        for arm, row in found.items()
    ]
    return table(["clip", *(label for label, _ in FADING.values())], rows)
