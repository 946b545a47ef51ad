"""``facelock storyboard``: check, convert, render, status, retry. It has no logic of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facelock.cli.options import AsJson, Commercial, Debug, Device, Quiet, Vram
from facelock.cli.terminal import Display, running

if TYPE_CHECKING:
    from facelock.storyboards.film import Film

storyboard = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

Board = Annotated[
    Path, typer.Argument(metavar="BOARD", help="A storyboard: .yaml, .json, .csv or .fountain.")
]

FilmFolder = Annotated[Path, typer.Argument(metavar="FILM", help="The folder of a film that was rendered.")]
RESUME_HINT = "Finished shots and chunks are kept; give the same command again to resume."

CHECK_EXAMPLES = """\
Example:

\b
  facelock storyboard check samples/storyboards/three-friends.yaml"""


@storyboard.command(epilog=CHECK_EXAMPLES)
def check(board: Board, quiet: Quiet = False, as_json: AsJson = False, debug: Debug = False) -> None:
    """Find all mistakes of BOARD at once, with line numbers, or say what it will cost. Loads no model."""
    from facelock.storyboard import Storyboard
    from facelock.storyboards.plan import Plan

    with running(quiet, debug) as display:
        plan = Plan.of(Storyboard.load(board))
        for sentence in plan.warnings():
            display.say(f"warning: {sentence}")
    if as_json:
        typer.echo(json.dumps({"board": str(board), **vars(plan.cost()), "warnings": plan.warnings()}))
    elif not quiet:
        typer.echo(f"{board}: {plan.cost()}")


@storyboard.command()
def convert(
    board: Board,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Where to: .yaml, .json or .csv.")],
    debug: Debug = False,
) -> None:
    """Write BOARD in another form; nothing is lost between YAML and JSON but comments.

    The files that it names need not be there yet.
    """
    from facelock.storyboard import Storyboard

    with running(True, debug):
        Storyboard.load(board, files=False).save(output)


RENDER_EXAMPLES = """\
Example:

\b
  facelock storyboard render samples/storyboards/three-friends.yaml -o film/

Interrupted or killed, the same command goes on where it stopped; a changed shot is made anew, alone."""


@storyboard.command(epilog=RENDER_EXAMPLES)
def render(
    board: Board,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILM", help="Folder of the film; made if need be.")
    ],
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="local, or ray: shots side by side.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="ADDRESS", help="Of a Ray cluster, or auto. Default: this machine."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Of ray. Default: one per GPU or CPU core.")
    ] = None,
    device: Device = "auto",
    vram: Vram = None,
    commercial: Commercial = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make every shot of BOARD and the film: film.mp4, film.otio, contact sheet and report in FILM.

    A shot that misses its target is made again with another seed, up to its tries. Exit code 4: some shot
    missed it every time; the others are kept.
    """
    from facelock.storyboard import Storyboard
    from facelock.storyboards.film import require_free

    with running(quiet, debug, RESUME_HINT) as display:
        storyboard = Storyboard.load(board)
        require_free(output)
        display.say("loading")
        from facelock.storyboards.render import render as run

        film = run(
            storyboard,
            output,
            on_event=_teller(display),
            engine=engine,
            address=address,
            workers=workers,
            device=device,
            vram=vram,
            commercial=commercial,
        )
    _tell(film, as_json=as_json, quiet=quiet)


@storyboard.command()
def retry(
    film: FilmFolder,
    shot: Annotated[str, typer.Option("--shot", metavar="N|NAME", help="Number from 1, or name.")],
    device: Device = "auto",
    vram: Vram = None,
    commercial: Commercial = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make new takes of one shot of FILM with other seeds, whether it failed or is not liked; edit again.

    --vram holds for that shot from then on; so does render's for all shots, until another is given.
    """
    from facelock.storyboards.film import require_free

    with running(quiet, debug, RESUME_HINT) as display:
        require_free(film)
        display.say("loading")
        from facelock.storyboards.render import retry as run

        made = run(film, shot, on_event=_teller(display), device=device, vram=vram, commercial=commercial)
    _tell(made, as_json=as_json, quiet=quiet)


@storyboard.command()
def status(film: FilmFolder, debug: Debug = False) -> None:
    """Say how each shot of FILM stands. Loads no model; can be asked while it is rendered."""
    from facelock.storyboards.film import status_lines

    with running(True, debug):
        lines = status_lines(film)
    typer.echo("\n".join(lines))


def _teller(display: Display) -> Any:
    """What shows a film's events on the command line."""
    from facelock.storyboards import events

    def tell(event: events.Event) -> None:
        if isinstance(event, events.ShotBegan):
            again = f", take {event.take + 1}" if event.take else ""
            display.say(f"shot {event.number}/{event.shots} {event.shot}{again}, seed {event.seed}")
        elif isinstance(event, events.StageDone) and display.before_step:
            display.before_step()
        elif isinstance(event, events.ChunkMade):
            display.step("encode", event.film_frame, event.film_frames)
        elif isinstance(event, events.ShotEnded):
            display.say(f"shot {event.shot} {event.outcome}{' before' * event.reused}: {event.sentence}")

    return tell


def _tell(film: Film, *, as_json: bool, quiet: bool) -> None:
    """The result on stdout, then the error that unusable shots are."""
    if as_json:
        shots = [
            {
                "name": shot.name,
                "outcome": shot.outcome,
                "takes": shot.takes,
                **(vars(shot.take) if shot.take else {}),
            }
            for shot in film.shots
        ]
        files = {kind: str(path) for kind, path in film.files.items()}
        typer.echo(json.dumps({"film": str(film.folder), "shots": shots, "files": files}))
    elif not quiet and not film.failed:
        made = film.files.get("video", film.folder)
        typer.echo(f"{made}: {len(film.shots)} of {len(film.shots)} shots accepted")
    film.require()
