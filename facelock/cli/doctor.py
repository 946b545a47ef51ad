"""The command line's ``facelock doctor``. It has no logic of its own; everything is imported when it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from facelock import __version__
from facelock.cli.options import AsJson, Debug
from facelock.errors import ConfigError, EnvironmentFailure

if TYPE_CHECKING:
    from facelock.doctor import Diagnosis, Machine, Standing

GIB = 2**30
SHOWN = ("diffusers", "transformers", "onnxruntime", "onnxruntime-gpu", "opencv-python", "opencv-python-headless",
         "insightface", "torchvision", "spandrel")  # fmt: skip

EXAMPLES = """\
Examples:

\b
  facelock doctor
  facelock doctor --recipe skyreels-v2-1.3b --json
  facelock doctor --recipe my.toml"""


def doctor(
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="NAME|PATH",
            help="The recipe that must run here, shipped or a .toml file; else: exit code 3.",
        ),
    ] = "miniature",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what works on this machine, which recipes can run, and the commands that mend what is wrong.

    Every device and encoder is tried, not only looked up. Exit code 0 when the recipe runs as it stands, else 3, or 2
    where the recipe itself cannot be read.
    """
    from facelock.doctor import diagnose, examine, recipes
    from facelock.recipe import find_recipe

    needs = recipes()
    known = {need.name for need in needs}
    if recipe not in known:
        needs = (*recipes([str(find_recipe(recipe))]), *needs)
        if needs[0].error:
            raise ConfigError(f"{needs[0].error}.")
    diagnosis = diagnose(examine(), needs)
    asked = diagnosis.standing(recipe) if recipe in known else diagnosis.standings[0]
    if as_json:
        typer.echo(json.dumps(diagnosis.as_dict() | {"recipe": recipe, "runs": asked.runs}))
    else:
        typer.echo("\n".join([*text(diagnosis), *to_mend(recipe, asked, diagnosis)]))
    if not asked.runs:
        raise EnvironmentFailure(
            f"The recipe {recipe} does not run here: {', '.join(asked.reasons)}. {_next(recipe, diagnosis, asked)}."
        )


def to_mend(recipe: str, asked: Standing, diagnosis: Diagnosis) -> Iterator[str]:
    """What the recipe that was asked for lacks, with the commands that bring it, as lines."""
    if asked.runs:
        yield from () if diagnosis.problems else ("", "No problems found.")
        return
    yield from ("", f"The recipe {recipe} does not run here:")
    yield from (f"  {mistake}" for mistake in (*asked.mistakes, *(f"{why}." for why in asked.why)))
    yield from (f"  {weight.name} is {weight.state}." for weight in asked.missing)
    if any(weight.pull for weight in asked.missing):
        yield f"    facelock models pull --recipe {recipe}"


def _next(recipe: str, diagnosis: Diagnosis, asked: Standing) -> str:
    if diagnosis.problems:
        return "Give the commands under 'Problems'"
    if asked.mistakes:
        return "Correct the recipe, or install what it needs"
    if asked.why or not any(weight.pull for weight in asked.missing):
        return "See 'facelock doctor' for what it needs"
    return f"Get them with: facelock models pull --recipe {recipe}"


def text(diagnosis: Diagnosis) -> Iterator[str]:
    """The whole diagnosis as lines of plain text."""
    yield from _machine(diagnosis.machine)
    yield ""
    yield from _recipes(diagnosis.standings)
    yield from _missing(diagnosis.standings)
    notes = [finding for finding in diagnosis.findings if finding.level == "note"]
    for title, found in (("Notes", notes), ("Problems", list(diagnosis.problems))):
        if found:
            yield from ("", f"{title}:")
        for finding in found:
            yield f"  {finding.topic}: {finding.what}"
            yield from (f"    {command}" for command in finding.mend)


def _machine(machine: Machine) -> Iterator[str]:
    yield f"FaceLock {__version__}, Python {machine.python}, {machine.system}, {machine.memory / GIB:.1f} GiB memory"
    build = f"built for CUDA {machine.torch_cuda}" if machine.torch_cuda else "built for the CPU"
    versions = [f"{name} {machine.packages[name]}" for name in SHOWN if name in machine.packages]
    yield f"torch {machine.packages.get('torch', 'missing')} ({build}), {', '.join(versions)}"
    for index, gpu in enumerate(machine.gpus):
        yield (
            f"GPU {index}: {gpu.name}, {gpu.memory / GIB:.1f} GiB ({gpu.free / GIB:.1f} free), "
            f"compute capability {gpu.capability}, driver {machine.driver}"
        )
    if not machine.gpus:
        yield "GPU: none"
    running = [provider.name for provider in machine.providers if provider.ok]
    yield f"onnxruntime computes on: {', '.join(running) or 'nothing'}"
    working = [encoder.name for encoder in machine.encoders if encoder.ok]
    ffmpeg = f"ffmpeg {machine.ffmpeg_version}, {machine.ffmpeg}" if machine.ffmpeg else "no ffmpeg"
    yield f"encoders that work: {', '.join(working) or 'none'} ({ffmpeg})"
    yield f"weights: {machine.cache}, {machine.cache_free / GIB:.1f} GiB free"


def _recipes(standings: Sequence[Standing]) -> Iterator[str]:
    rows = [("RECIPE", "RUNS", "ON", "WHY NOT")]
    for standing in standings:
        lost = [f"{len(standing.missing)} of its weights to get"] if standing.missing else []
        wrong = len(standing.mistakes)
        lost += [f"{wrong} mistake{'s' * (wrong > 1)} in it"] if wrong else []
        why = ", ".join([*standing.why, *lost]) or standing.hint
        rows.append((standing.name, "yes" if standing.runs else "no", standing.device or "-", why))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _missing(standings: Sequence[Standing]) -> Iterator[str]:
    """Each weight that is missing or damaged, once, with the command that brings it."""
    from facelock.weights import mebibytes

    lost = {weight.name: weight for standing in standings for weight in standing.missing}
    if lost:
        yield from ("", "Weights to get:")
    for weight in lost.values():
        about = f"{mebibytes(weight.bytes)}, " if weight.bytes else ""
        allowed = "" if weight.commercial else ", not for commercial use"
        how = weight.pull or "no longer offered by its publisher"
        yield f"  {how}    # {weight.state}: {about}{weight.licence}{allowed}"
