"""A storyboard, rendered: takes until each shot meets its target, then the edit.

::

    film = render(Storyboard.load("board.yaml"), "film/", on_event=print)
    film.failed                       # shots of which no take can be used
    film.require()                    # raises, with the exit code that tells

The same call again does only what is missing; after a kill it goes on and gives the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from facelock.errors import ConfigError, FaceLockError, InputError
from facelock.output import locked
from facelock.storyboard import Storyboard
from facelock.storyboards.checks import require_sound
from facelock.storyboards.edit import make_edit
from facelock.storyboards.events import Event, FilmMade, OnEvent
from facelock.storyboards.film import Film, FilmFolder, ShotRecord, ShotResult, result_of
from facelock.storyboards.plan import Plan, Unit
from facelock.storyboards.takes import Pace, Worker, is_worth_another_seed, stops_everything

ENGINES = ("local",)
"""How shots are spread over processes; ``local``: one after the other in this one."""


def render(
    board: Storyboard | str | Path,
    out: str | Path,
    *,
    on_event: OnEvent | None = None,
    engine: str = "local",
    device: str = "auto",
) -> Film:
    """Make every shot of ``board``, then the film, into the folder ``out``; returns what came of each shot.

    A shot whose take misses its target is made again with another seed, up to its ``tries``; then it counts
    as failed, ``film.mp4`` is not written, and the other shots are made all the same: see
    :meth:`Film.require`. ``on_event`` hears of each step (:mod:`facelock.storyboards.events`). ``device`` is
    auto, cpu, cuda or cuda:N.

    Raises ``InputError`` for a storyboard or folder that cannot be used, ``OutputBusyError`` while another
    run holds the folder, ``StorageError``, ``InterruptedRunError``.
    """
    if engine not in ENGINES:
        raise ConfigError(f"There is no engine {engine!r}. Give one of {', '.join(ENGINES)}.")
    board = board if isinstance(board, Storyboard) else Storyboard.load(board)
    require_sound(board)
    plan = Plan.of(board)
    film = FilmFolder(_checked_folder(out))
    with locked(film.folder):
        film.prepare()
        board.save(film.board)
        return _render(plan, film, on_event or _nothing, device)


def retry(folder: str | Path, shot: str, *, on_event: OnEvent | None = None, device: str = "auto") -> Film:
    """Make new takes of one shot, given by name or by number from 1, of the film in ``folder``; edit again.

    Also when its present take was accepted but is not liked; where no new take meets the target, that one
    stays. Raises ``InputError`` for a folder without a film or an unknown shot, else like :func:`render`.
    """
    film = FilmFolder(folder)
    board = film.load_board()
    plan = Plan.of(board)
    unit = find_shot(plan, shot)
    with locked(film.folder):
        film.prepare()
        record = film.records.get(unit.name, ShotRecord())
        first = max((take.number + 1 for take in record.takes), default=0)
        film.records[unit.name] = replace(record, first=first)
        return _render(plan, film, on_event or _nothing, device)


def find_shot(plan: Plan, shot: str) -> Unit:
    """The shot of that name, or of that number from 1. Raises ``InputError``."""
    for unit in plan.units:
        if shot == unit.name:
            return unit
    if shot.isascii() and shot.isdigit() and 1 <= int(shot) <= len(plan.units):
        return plan.units[int(shot) - 1]
    raise InputError(
        f"There is no shot {shot!r}. Give a number from 1 to {len(plan.units)}, or a name such as "
        f"{plan.units[0].name!r}."
    )


def _nothing(_: Event) -> None:
    """Hear of everything and say nothing."""


def _checked_folder(out: str | Path) -> Path:
    folder = Path(out).absolute()
    if folder.is_file() or not folder.parent.is_dir():
        what = "is a file" if folder.is_file() else f"the folder {folder.parent} does not exist"
        raise InputError(f"{out}: {what}. Give the name of a folder, such as film/.")
    return folder


def _render(plan: Plan, film: FilmFolder, tell: OnEvent, device: str) -> Film:
    worker = Worker(plan.board, film, tell, device)
    pace = Pace(total=sum(unit.frames for unit in plan.units))
    film.withdraw(set(film.records) - {unit.name for unit in plan.units})
    film.records = {unit.name: film.records.get(unit.name, ShotRecord()) for unit in plan.units}
    for unit in by_recipe(plan):
        make_shot(unit, film, worker, pace, len(plan.units))
    results = tuple(result_of(film, unit.name, unit.target) for unit in plan.units)
    return _edit(plan, film, results, worker, tell)


def by_recipe(plan: Plan) -> list[Unit]:
    """Shots of one recipe together, so that its models are loaded once."""
    recipes = list({id(unit.recipe): None for unit in plan.units})
    return sorted(plan.units, key=lambda unit: recipes.index(id(unit.recipe)))


def make_shot(unit: Unit, film: FilmFolder, worker: Worker, pace: Pace, shots: int) -> None:
    """Take after take until one meets the target or the budget is spent; publish it, or withdraw the shot."""
    record = _current(unit, film, worker)
    for number in range(record.first, record.first + unit.tries):
        known = record.take(number)
        if known is None or known.share is None or not film.is_made(known.key):
            known = worker.make(unit, number, pace, shots)
            record = record.with_take(known)
            film.records[unit.name] = record
            film.write()
        if (known.share is not None and known.share >= unit.target) or not is_worth_another_seed(known):
            break
    pace.done += unit.frames
    accepted = record.accepted(unit.target)
    if accepted:
        film.publish(unit.name, accepted.key)
    else:
        film.withdraw([unit.name])


def _current(unit: Unit, film: FilmFolder, worker: Worker) -> ShotRecord:
    """What was done for the shot, as far as its inputs are still the same."""
    record = film.records[unit.name]
    try:
        base = worker.key(unit, 0)
    except FaceLockError as error:
        if stops_everything(error):
            raise
        return replace(record, takes=())  # the take will say what is wrong
    if record.base and record.base != base:
        record = ShotRecord(base)
    return replace(record, base=base)


def _edit(
    plan: Plan, film: FilmFolder, results: tuple[ShotResult, ...], worker: Worker, tell: OnEvent
) -> Film:
    made = Film(film.folder, results)
    made = replace(made, files=make_edit(plan, film, made, worker))
    tell(FilmMade(tuple(made.files.values())))
    return made
