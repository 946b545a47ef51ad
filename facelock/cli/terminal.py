"""The command line's side of a run: progress, log lines and signals.

::

    with running(quiet=False, debug=False) as display:
        clip = facelock.generate(..., progress=display.step)

A bar per stage with ETA on a terminal, plain lines elsewhere. All of it goes to stderr; stdout is for
results. Ctrl-C and SIGTERM end the run after its current step.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from facelock.errors import InterruptedRunError

if TYPE_CHECKING:
    from types import FrameType

    from rich.progress import Progress, TaskID

GRACE = 4.0
"""Seconds a running step may take to end after Ctrl-C before it is cut short."""
LINE_EVERY = 5.0
"""Seconds between two plain lines."""


class Display:
    """Progress of one command; on a terminal with rich bars, elsewhere as plain lines."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.before_step: Callable[[], None] | None = None
        """Called first at every step; may raise to end the run between two steps."""
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._began: float | None = None
        self._first = 0
        self._printed = 0.0

    def __enter__(self) -> Display:
        if not self.quiet and sys.stderr.isatty():
            self._bars = _bars()
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def say(self, text: str) -> None:
        """One line of what goes on."""
        if self._bars:
            self._bars.console.print(f"facelock: {text}", style="dim")
        elif not self.quiet:
            sys.stderr.write(f"facelock: {text}\n")

    def step(self, stage: str, done: int, total: int) -> None:
        """A stage has finished ``done`` of ``total`` frames: the ``progress`` callback of the library."""
        if self.before_step:
            self.before_step()
        if self._bars:
            if stage not in self._tasks:
                unit = "photos" if stage == "photos" else "frames"
                self._tasks[stage] = self._bars.add_task(stage, total=total, unit=unit)
            self._bars.update(self._tasks[stage], completed=done, total=total)
        elif not self.quiet:
            self._line(stage, done, total)

    def _line(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began, self._first = now, done
        if stage not in ("encode", "judge") or (done < total and now - self._printed < LINE_EVERY):
            return
        self._printed = now
        made = done - self._first
        left = (
            f", about {(now - self._began) / made * (total - done):.0f} s left"
            if made > 0 and done < total
            else ""
        )
        sys.stderr.write(f"facelock: {stage} {done}/{total} frames{left}\n")


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        Remaining(),
        console=Console(stderr=True),
    )


@contextmanager
def running(quiet: bool, debug: bool, hint: str = "") -> Iterator[Display]:
    """Show progress and log lines of one command, and turn signals into :class:`InterruptedRunError`.

    ``hint`` ends the message of an interrupted run.
    """
    show_log(quiet, debug)
    with Display(quiet) as display, Signals(hint) as signals:
        display.before_step = signals.check
        try:
            yield display
        except Exception as error:
            if signals.received and not isinstance(error, InterruptedRunError):
                raise signals.error() from error  # Ctrl-C reaches ffmpeg too, which then seems to fail
            raise


def show_log(quiet: bool, debug: bool) -> None:
    """Send the library's warnings to stderr as ``facelock: warning: ...``."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogLine())
    handler.addFilter(_Once())
    log = logging.getLogger("facelock")
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.DEBUG if debug else logging.ERROR if quiet else logging.INFO)


class _Once(logging.Filter):
    """Lets no message through twice: a storyboard's pipelines each tell the same of the machine."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self._told
        self._told.add(text)
        return new


class _LogLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"facelock: {level}{record.getMessage()}"


class Signals:
    """Ctrl-C and SIGTERM end the run after its current step, a second one or :data:`GRACE` at once."""

    def __init__(self, hint: str = "") -> None:
        self.hint = hint
        self.received: str | None = None
        self.stepping = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Between two steps: leave if asked to."""
        self.stepping = True
        if self.received:
            raise self.error()

    def error(self) -> InterruptedRunError:
        """What the run ends with."""
        return InterruptedRunError(f"Interrupted by {self.received}. {self.hint}".rstrip())

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        again = self.received is not None
        if number != signal.SIGALRM:
            self.received = self.received or signal.Signals(number).name
        if again or not self.stepping:
            raise self.error()
        signal.setitimer(signal.ITIMER_REAL, GRACE)
