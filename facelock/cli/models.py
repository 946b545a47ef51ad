"""The command line's ``facelock models``: list, pull, verify. It has no logic of its own.

Imported by :mod:`facelock.cli`, which runs it; everything else is imported when a command runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from facelock.cli.options import AsJson, Debug, Quiet

if TYPE_CHECKING:
    from facelock.protocols import Progress
    from facelock.weights.catalog import Entry
    from facelock.weights.inventory import Standing

MIB = 2**20
LINE_EVERY = 5.0
"""Seconds between two plain lines of progress."""
RESUME_HINT = "What has come is kept; give the same command again to go on."

EXAMPLES = """\
Examples:

\b
  facelock models list --commercial
  facelock models pull opencv/yunet opencv/sface
  facelock models pull --recipe skyreels-v2-1.3b
  facelock models verify"""

models = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, epilog=EXAMPLES)


@models.command("list")
def list_models(
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Only weights whose licence allows commercial use.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show every known weight: task, size, licence, and whether it is on this machine."""
    from facelock.weights.inventory import inventory

    found = inventory(commercial=commercial)
    if as_json:
        typer.echo(json.dumps([standing.as_dict() for standing in found]))
    else:
        typer.echo(table(found))


def table(found: Sequence[Standing]) -> str:
    """The list as aligned plain text, one weight a line."""
    from facelock.weights import mebibytes

    rows = [("NAME", "TASK", "SIZE", "HERE", "COMMERCIAL", "LICENCE", "USED BY")]
    for standing in found:
        entry = standing.entry
        allowed = "yes" if entry.commercial else "no"
        size, users = mebibytes(entry.size), ", ".join(entry.used_by)
        rows.append((entry.name, entry.task, size, standing.state, allowed, entry.licence, users))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


@models.command("pull", epilog=EXAMPLES)
def pull_models(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="Names as 'facelock models list' shows them; a shipped recipe's stands for all that it needs.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME|PATH", help="Every weight that a recipe names, besides."),
    ] = None,
    only: Annotated[
        bool, typer.Option("--only", help="The weights of these very names, not what a recipe needs besides.")
    ] = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Refuse weights whose licence does not allow commercial use.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch public weights into the cache folder, verified by their sha256; print where they are.

    The folder is $FACELOCK_HOME/models, else ~/.cache/facelock/models. Interrupted, the same command goes on
    where it stopped. Nothing is fetched when one of them is not known, refused by --commercial, or offered by nobody.
    Repositories that ask for an account are given the token in $HF_TOKEN; $HF_ENDPOINT names a
    mirror of the hub.
    """
    from facelock.cli.terminal import Signals, show_log
    from facelock.preflight import wanted
    from facelock.weights.pull import find_all

    named = wanted(names or (), recipe, only=only)
    if len(named) > len(names or ()) and not recipe:
        _say(f"the recipe needs {', '.join(named)} (--only: {', '.join(names or ())} alone)", quiet)
    entries = find_all(named, commercial=commercial, own_files=recipe is not None)
    show_log(quiet, debug)
    with Signals(RESUME_HINT):
        for entry in entries:
            _pull(entry, quiet)
            if not quiet:
                typer.echo(f"{entry.name}: {entry.path}")


def _pull(entry: Entry, quiet: bool) -> None:
    """Fetch one weight unless it is here; say first how large it is and what its licence allows."""
    from facelock.weights import mebibytes
    from facelock.weights.pull import first_damage, pull_entry

    if first_damage(entry) is None:
        _say(f"{entry.name}: is here already", quiet)
        return
    size = (entry.fetch.bytes if entry.fetch else 0) or entry.size
    about = "" if entry.sha256 or entry.files else "about " if size else "of a size its publisher will say, "
    _say(f"{entry.name}: {entry.task}, {about}{mebibytes(size) + ', ' if size else ''}{entry.licence}", quiet)
    if entry.is_recorded:
        _say(f"{entry.name}: from {entry.source}", quiet)
    if not entry.commercial:
        _say(f"{entry.name}: its licence does not allow commercial use", quiet)
    with _bytes_shown(quiet) as tell:
        pull_entry(entry, progress=tell)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        typer.echo(f"facelock: {text}", err=True)


@contextmanager
def _bytes_shown(quiet: bool) -> Iterator[Progress]:
    """A progress callback in bytes: a bar on a terminal, a line every few seconds elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield _Lines(quiet).show
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (rich.BarColumn(), rich.DownloadColumn(binary_units=True), rich.TransferSpeedColumn())
    bar = rich.Progress(
        rich.TextColumn("{task.description}"),
        *columns,
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


class _Lines:
    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._printed = time.monotonic()

    def show(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._quiet and now - self._printed >= LINE_EVERY:
            self._printed = now
            sys.stderr.write(f"facelock: {name} {done / MIB:.1f}/{total / MIB:.1f} MiB\n")


@models.command("verify")
def verify_models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Default: all that are on this machine.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read every weight on this machine and compare its sha256 with the catalog's; a damaged one: exit code 3."""
    from facelock.weights.inventory import check, require_whole

    checks = check(names or ())
    if as_json:
        rows = [{"name": c.entry.name, "state": c.state, "path": str(c.path)} for c in checks]
        typer.echo(json.dumps(rows))
    elif not quiet:
        for found in checks:
            if names or found.state != "missing":
                typer.echo(f"{found.entry.name}: {found.state}")
    require_whole(checks, named=bool(names))
