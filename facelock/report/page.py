"""``clip.report.html``: the report as one self-contained page, light or dark, with nothing to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from facelock.bootstrap import Estimate
from facelock.report.explained import said, where
from facelock.report.figures import ClipFigures, PerThreshold
from facelock.report.model import Character, LedgerEntry, Report, SheetFrame, Step
from facelock.report.plot import similarity_plot
from facelock.report.verdict import clock, interval
from facelock.types import Status

NONE = "–"
STATUS_MEANING = {
    "verified": "above the threshold at which one stranger in 10 000 is accepted",
    "weak": "between the thresholds of one in 100 and one in 10 000",
    "wrong": "a readable face, but somebody else's",
    "unreadable": "a face, but too small, blurred or turned away to be judged",
    "absent": "no face found",
}
HEADLINE = {
    "held": "The face holds",
    "doubtful": "Look again",
    "lost": "Somebody else appears",
    "unseen": "No face to judge",
}


def render_page(report: Report) -> str:
    """The page of a report. Everything that a user wrote (prompt, names, settings) is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(clock=clock, number=number, share=share, where=where, said=said)
    template = environment.from_string(
        files("facelock").joinpath("templates", "report.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        report=report,
        headline=HEADLINE[report.outcome],
        prompt=_prompt(report.settings),
        statuses=STATUS_MEANING,
        characters=[_character(report, each) for each in report.characters],
        sheet=[_tile(report, moment) for moment in report.sheet if not moment.worst],
        worst=[_tile(report, moment) for moment in report.sheet if moment.worst],
        settings=list(_flat(report.settings)),
        stages=_stages(report),
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number with a true minus sign, or a dash for null."""
    return NONE if value is None else f"{value:.{digits}f}".replace("-", "−")


def share(value: float | None) -> str:
    """A share as a percentage that says 100 % for all of it only."""
    if value is None:
        return NONE
    return "100 %" if value == 1 else f"{min(100 * value, 99.9):.1f} %"


def _prompt(settings: Mapping[str, Any]) -> str:
    inputs = settings.get("inputs")
    prompt = inputs.get("prompt") if isinstance(inputs, Mapping) else settings.get("prompt")
    return str(prompt or settings.get("video") or "")


def _character(report: Report, character: Character) -> dict[str, Any]:
    rows = [row for row in report.ledger if row.character == character.name]
    fps = report.clip.frames / report.clip.seconds if report.clip.seconds else 1.0
    return {
        "of": character,
        "plot": Markup(similarity_plot(rows, report.judge, fps)),  # noqa: S704 - our own SVG, names escaped
        "figures": _figure_table(character),
        "stages": [
            _stage("lock", [row.lock for row in rows if row.lock]),
            _stage("restore", [row.restore for row in rows if row.restore]),
        ],
    }


def _figure_table(character: Character) -> list[tuple[str, str, str, str]]:
    """(name, with the lock, without, meaning) of each line."""
    ours, other = _figure_cells(character.figures), None
    if character.unlocked is not None:
        other = _figure_cells(character.unlocked)
    return [
        (name, cell, other[name][0] if other else NONE, meaning) for name, (cell, meaning) in ours.items()
    ]


def _figure_cells(figures: ClipFigures) -> dict[str, tuple[str, str]]:
    above, below = figures.share_above, figures.longest_below
    return {
        "coverage": (share(figures.coverage), "frames with a readable face ÷ all frames"),
        "mean similarity": (_stated(figures.mean, sign=False), "over readable frames"),
        "minimum": (number(figures.minimum), "the least alike frame"),
        "1st percentile": (number(figures.p1), "one frame in a hundred is below"),
        "above the thresholds": (_three(above, share), "share of readable frames at FAR 1e-2 · 1e-3 · 1e-4"),
        "longest run below": (_three(below, _seconds), "at FAR 1e-2 · 1e-3 · 1e-4"),
        "drift": (_stated(figures.drift), "first 15 % of readable frames minus the last 15 %; + is loss"),
        "slope per minute": (_stated(figures.slope), "least squares; − is loss"),
        "corrected slope": (_stated(figures.corrected_slope), "with pose, size and sharpness as covariates"),
        "of the ceiling": (share_or_more(figures.ceiling.fraction), "mean ÷ that of real second pictures"),
    }


def share_or_more(value: float | None) -> str:
    """A fraction that may be above one."""
    return NONE if value is None else f"{100 * value:.1f} %"


def _stated(estimate: Estimate, *, sign: bool = True) -> str:
    missing = estimate.value is None or estimate.low is None
    return interval(estimate, sign=sign) + (f" ({estimate.reason})" if missing and estimate.reason else "")


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f} s"


def _three(values: PerThreshold, text: Any) -> str:
    return " · ".join(text(value) for value in (values.far_1e2, values.far_1e3, values.far_1e4))


def _stage(name: str, steps: Sequence[Step]) -> dict[str, Any]:
    """What a closed loop did to all faces: how many met its target, at which rung of its ladder."""
    rungs: dict[int, int] = {}
    for step in steps:
        rungs[step.rung] = rungs.get(step.rung, 0) + 1
    return {
        "name": name,
        "faces": len(steps),
        "met": share(_mean([float(step.met) for step in steps])),
        "before": number(_mean([step.before for step in steps])),
        "after": number(_mean([step.after for step in steps])),
        "rungs": ", ".join(f"{_rung(rung)}: {count}" for rung, count in sorted(rungs.items())) or NONE,
    }


def _rung(rung: int) -> str:
    return "left as it was" if rung < 0 else f"strength {rung + 1}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _tile(report: Report, moment: SheetFrame) -> dict[str, Any]:
    rows = _rows_of(report, moment.frame)
    status = next((row.status for row in rows if row.status is not Status.VERIFIED), Status.VERIFIED)
    numbers = " / ".join(number(row.similarity, 2) for row in rows)
    return {"of": moment, "status": status.value, "similarity": numbers}


def _rows_of(report: Report, frame: int) -> tuple[LedgerEntry, ...]:
    cast = max(len(report.characters), 1)
    return report.ledger[frame * cast : (frame + 1) * cast]


def _stages(report: Report) -> list[tuple[str, str, str]]:
    length = report.clip.seconds or 1.0
    rows = [(name, seconds) for name, seconds in report.stage_seconds.items()]
    rows += [("all", sum(report.stage_seconds.values()))] if rows else []
    return [(name, f"{seconds:.1f} s", f"{seconds / length:.2f} ×") for name, seconds in rows]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    result: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            result.append((f"{prefix}{key}", text))
    return result
