"""film.report.json and film.report.html: every shot's outcome, and every character across shots and scenes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Literal

from jinja2 import Environment
from pydantic import Field

from facelock import __version__
from facelock.bootstrap import Figure
from facelock.storyboards.cut import Cut, Placed
from facelock.storyboards.likeness import Sample, likeness, strangers
from facelock.storyboards.timeline import doubtful

SCHEMA: Literal["facelock.film-report.v1"] = "facelock.film-report.v1"


class ShotLine(Figure):
    """One shot."""

    name: str
    scene: str
    characters: tuple[str, ...]
    prompt: str
    start: float
    """Seconds from the film's beginning."""
    seconds: float
    outcome: Literal["accepted", "missed", "failed"]
    takes: int
    """Tried so far."""
    seed: int | None
    """Of the take; null where none was made."""
    target: float
    share: float | None
    """Share of frames that show their characters; null where nothing was made."""
    similarity: dict[str, float | None]
    """Character → mean similarity to its reference."""
    marked: int
    """Stretches of frames in which a face is weak, wrong, unreadable or lost."""
    verdict: str
    """The shot's own report in one sentence, or why it failed."""


class CastLine(Figure):
    """One character across the film."""

    name: str
    shots: tuple[str, ...]
    """Accepted shots in which frames of it could be compared."""
    within: float | None
    """Mean similarity of frames of one shot, averaged over the shots."""
    across: float | None
    """Mean similarity of frames of different shots, averaged over pairs of shots."""
    scenes: float | None
    """The same for pairs of different scenes."""
    loss: float | None
    """within minus across: 0 is a person who is the same in every shot."""
    worst: tuple[str, str] | None
    """The two shots that are least alike."""
    worst_similarity: float | None


class FilmReport(Figure):
    """All shots, and the cast across them."""

    schema_: Literal["facelock.film-report.v1"] = Field(default=SCHEMA, alias="schema")
    facelock: str = __version__
    title: str
    fps: str
    """Exact, as a fraction."""
    frames: int
    seconds: float
    accepted: int
    """Shots with a take that can be used."""
    encoder: str
    """The judge that compared; empty where nothing was compared."""
    threshold: float | None
    """Similarity at which it accepts one stranger in 1000."""
    shots: tuple[ShotLine, ...]
    cast: tuple[CastLine, ...]
    strangers: float | None
    """Mean similarity of frames of different characters."""
    reason: str | None
    """Why characters were not compared across shots."""

    def to_json(self) -> str:
        """Indented JSON."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def film_report(cut: Cut, samples: Sequence[Sample], encoder: str, threshold: float | None) -> FilmReport:
    """Sum the film up; ``samples`` may be empty, then nothing is compared across shots."""
    return FilmReport(
        title=cut.plan.board.title,
        fps=f"{cut.fps.numerator}/{cut.fps.denominator}",
        frames=cut.frames,
        seconds=round(cut.frames / float(cut.fps), 3),
        accepted=sum(shot.result.outcome == "accepted" for shot in cut.shots),
        encoder=encoder if samples else "",
        threshold=threshold if samples else None,
        shots=tuple(_shot(cut, shot) for shot in cut.shots),
        cast=tuple(_cast(name, samples) for name in cut.plan.board.cast),
        strangers=_rounded(strangers(samples)),
        reason=None if samples else "no accepted shot could be compared by the recipe's judge",
    )


def _shot(cut: Cut, shot: Placed) -> ShotLine:
    take, report, fps = shot.result.take, shot.report, float(cut.fps)
    means = {each.name: each.figures.mean.value for each in report.characters} if report else {}
    return ShotLine(
        name=shot.unit.name,
        scene=shot.unit.scene,
        characters=shot.unit.characters,
        prompt=shot.unit.prompt,
        start=round(shot.start / fps, 3),
        seconds=round(shot.frames / fps, 3),
        outcome=shot.result.outcome,
        takes=shot.result.takes,
        seed=take.seed if take else None,
        target=shot.unit.target,
        share=take.share if take else None,
        similarity=means,
        marked=len(doubtful(report.ledger)) if report else 0,
        verdict=take.sentence if take else "not made",
    )


def _cast(name: str, samples: Sequence[Sample]) -> CastLine:
    own = [sample for sample in samples if sample.character == name]
    found = likeness(own)
    known = found.within is not None and found.across is not None
    return CastLine(
        name=name,
        shots=tuple(sample.shot for sample in own),
        within=_rounded(found.within),
        across=_rounded(found.across),
        scenes=_rounded(found.scenes),
        loss=_rounded((found.within or 0) - (found.across or 0)) if known else None,
        worst=found.worst,
        worst_similarity=_rounded(found.worst_similarity),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def render_page(report: FilmReport, sheet: str | None) -> str:
    """The page; ``sheet`` is the contact sheet's file name. Everything that a user wrote is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = files("facelock").joinpath("templates", "film.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(report=report, sheet=sheet)
