"""``facelock storyboard``: check, convert, render, status, retry. It has no logic of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from facelock.cli import AsJson, Debug, Quiet, app
from facelock.terminal import running

storyboard = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(storyboard, name="storyboard", help="Many shots of one cast: check, render, one edit.")

Board = Annotated[
    Path, typer.Argument(metavar="BOARD", help="A storyboard: .yaml, .json, .csv or .fountain.")
]

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
    """Write BOARD in another form; nothing is lost between YAML and JSON."""
    from facelock.storyboard import Storyboard

    with running(True, debug):
        Storyboard.load(board).save(output)
