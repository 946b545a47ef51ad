"""A storyboard, rendered: takes until each shot meets its target, then the edit.

::

    film = render(Storyboard.load("board.yaml"), "film/", on_event=print)
    film.failed                       # shots of which no take can be used
    film.require()                    # raises, with the exit code that tells

The same call again does only what is missing; after a kill it goes on and gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from facelock.assembly import Assembly
from facelock.errors import ConfigError, InputError, caught, together
from facelock.output import locked
from facelock.recipe import Recipe, model_names
from facelock.storyboard import Storyboard
from facelock.storyboards.checks import require_sound
from facelock.storyboards.edit import make_edit
from facelock.storyboards.events import Event, FilmMade, OnEvent
from facelock.storyboards.film import Film, FilmFolder, ShotRecord, ShotResult, Take, result_of
from facelock.storyboards.plan import Plan, Unit
from facelock.storyboards.takes import Pace, Worker, is_worth_another_seed
from facelock.video.reading import check_audio
from facelock.weights import require_commercial

ENGINES = ("local", "ray")
"""How shots are spread over processes; ``local``: one after the other in this one."""


@dataclass(frozen=True)
class Cluster:
    """Where the engine ``ray`` works."""

    address: str | None = None
    """Of a Ray cluster, or ``auto`` for the one on this machine; None: processes of this machine, begun now."""
    workers: int | None = None
    device: str = "auto"


def render(
    board: Storyboard | str | Path,
    out: str | Path,
    *,
    on_event: OnEvent | None = None,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    vram: int | None = None,
    commercial: bool = False,
) -> Film:
    """Make every shot of ``board``, then the film, into the folder ``out``; returns what came of each shot.

    A shot whose take misses its target is made again with another seed, up to its ``tries``; then it counts as failed,
    ``film.mp4`` is not written, and the other shots are made all the same: see :meth:`Film.require`. ``on_event`` hears
    of each step (:mod:`facelock.storyboards.events`). ``device`` is auto, cpu, cuda or cuda:N. ``engine="ray"`` spreads
    shots over ``workers`` processes (default: one per GPU, or per CPU core) of this machine, or of the Ray cluster at
    ``address``, on which ``out`` must be shared; the bytes are the same. ``vram`` plans for so many GiB of GPU memory
    (8, 12, 16, 24, 48 or 80), now and whenever the film is rendered again; None: what was planned for before.
    ``commercial`` refuses weights whose licence does not allow commercial use, of every shot's recipe, before the first
    shot; before it, too, all that any recipe lacks on this machine is said.

    Raises ``InputError`` for a storyboard or folder that cannot be used, ``ConfigError`` for a refused weight,
    ``ModelError`` for one that is not known, ``OutputBusyError`` while another
    run holds the folder, ``StorageError``, ``InterruptedRunError``.
    """
    if engine not in ENGINES:
        raise ConfigError(f"There is no engine {engine!r}. Give one of {', '.join(ENGINES)}.")
    if engine != "ray" and (address is not None or workers is not None):
        raise ConfigError(
            "--address and --workers are the engine ray's. Give --engine ray, or leave them out."
        )
    board = board if isinstance(board, Storyboard) else Storyboard.load(board)
    require_sound(board)
    folder = _checked_folder(out)
    plan = Plan.of(board)
    plan = plan.planned({unit.name: vram for unit in plan.units})
    require_ready(plan.recipes, device, commercial, here=engine == "local")
    film = FilmFolder(folder)
    with locked(film.folder):
        film.prepare()
        board.save(film.board)
        plan = _planned(plan, film, {unit.name: vram for unit in plan.units})
        cluster = Cluster(address, workers, device) if engine == "ray" else None
        return _render(plan, film, on_event or _nothing, device, cluster)


def retry(
    folder: str | Path,
    shot: str,
    *,
    on_event: OnEvent | None = None,
    device: str = "auto",
    vram: int | None = None,
    commercial: bool = False,
) -> Film:
    """Make new takes of one shot, given by name or by number from 1, of the film in ``folder``; edit again.

    Also when its present take was accepted but is not liked; where no new take meets the target, that one stays.
    ``vram`` plans for so many GiB of GPU memory, for this shot from now on. Raises ``InputError`` for a folder without
    a film or an unknown shot, else like :func:`render`.
    """
    film = FilmFolder(folder)
    board = film.load_board()
    plan = Plan.of(board)
    unit = find_shot(plan, shot)
    require_ready(plan.planned({unit.name: vram}).recipes, device, commercial)
    with locked(film.folder):
        film.prepare()
        record = film.records.get(unit.name, ShotRecord())
        first = max((take.number + 1 for take in record.takes), default=0)
        film.records[unit.name] = replace(record, first=first)
        plan = _planned(plan, film, {unit.name: vram})
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


def require_ready(recipes: Sequence[Recipe], device: str, commercial: bool, *, here: bool = True) -> None:
    """Raise everything that is in the way of any of ``recipes`` on this machine, before the first shot.

    Not ``here``, where others make the shots on machines of their own, only refused licences.
    """
    if here:
        found = caught(*(partial(Assembly, recipe, device, commercial) for recipe in recipes))
    else:
        names = [model_names(recipe).values() for recipe in recipes if commercial]
        found = caught(*(partial(require_commercial, each) for each in names))
    if found:
        raise together("The storyboard cannot be rendered here", found)


def _planned(plan: Plan, film: FilmFolder, vram: Mapping[str, int | None]) -> Plan:
    """``plan`` with what is planned for now, or else was for each shot before; ``film`` remembers it."""
    for unit in plan.units:
        record = film.records.get(unit.name, ShotRecord())
        film.records[unit.name] = replace(record, vram=vram.get(unit.name) or record.vram)
    return plan.planned({name: record.vram for name, record in film.records.items()})


def _checked_folder(out: str | Path) -> Path:
    folder = Path(out).absolute()
    if folder.is_file() or not folder.parent.is_dir():
        what = "is a file" if folder.is_file() else f"the folder {folder.parent} does not exist"
        raise InputError(f"{out}: {what}. Give the name of a folder, such as film/.")
    return folder


def _render(plan: Plan, film: FilmFolder, tell: OnEvent, device: str, cluster: Cluster | None = None) -> Film:
    if plan.board.audio:
        check_audio(plan.board.path(plan.board.audio))  # before the shots, not after them
    worker = Worker(plan.board, film, tell, device)
    film.withdraw(set(film.records) - {unit.name for unit in plan.units})
    film.records = {unit.name: film.records.get(unit.name, ShotRecord()) for unit in plan.units}
    if cluster is None:
        make_here(plan, film, worker)
    else:
        from facelock.storyboards.cluster import make_on_cluster

        make_on_cluster(plan, film, tell, cluster)
    results = tuple(result_of(film, unit.name, unit.target) for unit in plan.units)
    return _edit(plan, film, results, worker, tell)


def by_recipe(plan: Plan) -> list[Unit]:
    """Shots of one recipe together, so that its models are loaded once."""
    recipes = list({id(unit.recipe): None for unit in plan.units})
    return sorted(plan.units, key=lambda unit: recipes.index(id(unit.recipe)))


class ShotLoop:
    """Take after take of one shot until one meets the target or the budget is spent."""

    def __init__(self, unit: Unit, film: FilmFolder) -> None:
        self.unit, self.film = unit, film
        self._tried: set[int] = set()

    @property
    def record(self) -> ShotRecord:
        """What was done so far, by this run and those before."""
        return self.film.records[self.unit.name]

    def begin(self, base: str | None) -> None:
        """Keep what was done before as far as the shot's inputs, whose digest is ``base``, are the same.

        None: they cannot be read; the first take will say why.
        """
        record = self.record
        if base is None:
            record = replace(record, takes=())
        elif record.base and record.base != base:
            record = ShotRecord(base, vram=record.vram)
        self.film.records[self.unit.name] = replace(record, base=base or record.base)

    def next_take(self) -> int | None:
        """Number of the take to make now; None when the shot is done, one way or the other.

        A take that failed before this run is tried again, since what it lacked may be there now; one that
        missed its target is not, since it would come out the same.
        """
        for number in range(self.record.first, self.record.first + self.unit.tries):
            take = self.record.take(number)
            if take is None or (
                number not in self._tried and (take.share is None or not self.film.is_made(take.key))
            ):
                return number
            if self._accepted(take) or not is_worth_another_seed(take):
                return None
        return None

    def add(self, take: Take) -> None:
        """Note how a take came out."""
        self._tried.add(take.number)
        self.film.records[self.unit.name] = self.record.with_take(take)
        self.film.write()

    def finish(self) -> None:
        """Publish the accepted take, or withdraw the shot."""
        accepted = self.record.accepted(self.unit.target)
        if accepted:
            self.film.publish(self.unit.name, accepted.key)
        else:
            self.film.withdraw([self.unit.name])

    def _accepted(self, take: Take) -> bool:
        return take.share is not None and take.share >= self.unit.target


def make_here(plan: Plan, film: FilmFolder, worker: Worker) -> None:
    """The engine ``local``: every shot in this process, on one pipeline that stays loaded."""
    pace = Pace(total=sum(unit.frames for unit in plan.units))
    there = {unit.name for unit in plan.units if film.has_accepted(unit.name, unit.target)}
    pace.spared = sum(unit.frames for unit in plan.units if unit.name in there)
    for unit in by_recipe(plan):
        pace.spared -= unit.frames if unit.name in there else 0
        loop = ShotLoop(unit, film)
        loop.begin(worker.base(unit))
        while (number := loop.next_take()) is not None:
            loop.add(worker.make(unit, number, pace, len(plan.units)))
        loop.finish()
        pace.done += unit.frames


def _edit(
    plan: Plan, film: FilmFolder, results: tuple[ShotResult, ...], worker: Worker, tell: OnEvent
) -> Film:
    made = Film(film.folder, results)
    made = replace(made, files=make_edit(plan, film, made, worker))
    tell(FilmMade(tuple(made.files.values())))
    return made
