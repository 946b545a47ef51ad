"""What each shot of a storyboard asks for, with the defaults filled in, and what the film will cost.

::

    plan = Plan.of(Storyboard.load("board.yaml"))
    plan.cost().chunks

Loads recipes but no model; knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from facelock.errors import ConfigError, ModelError
from facelock.job import Job, check_size, parse_size, plan_chunks
from facelock.recipe import Recipe, load_recipe, model_names, tuned
from facelock.recipe.words import crowd_warnings
from facelock.storyboard import Storyboard, Transition, is_file_recipe, seed_of
from facelock.weights import require_here

BYTES_PER_PIXEL = 0.25
"""Of H.264 at crf 16 on busy pictures, as :mod:`facelock.clip` reckons."""


@dataclass(frozen=True)
class Unit:
    """One shot as work: all that it needs to be made, apart from its models."""

    index: int
    name: str
    prompt: str
    characters: tuple[str, ...]
    """In the order in which the prompt names them."""
    seconds: float
    seed: int
    """Of the first take; see :meth:`seed_of_take`."""
    recipe: Recipe
    size: tuple[int, int] | None
    """(height, width) in pixels; None: the recipe's own."""
    target: float
    """Share in [0, 1] of frames that must show their characters."""
    tries: int
    audio: Path | None
    begins: Transition
    scene: str
    lock: bool
    restore: bool

    def seed_of_take(self, take: int) -> int:
        """The shot's own seed for take 0; each later take draws another from it."""
        return self.seed if take == 0 else seed_of(self.seed, "take", take)

    def job(self, take: int = 0) -> Job:
        """What the pipeline is asked for."""
        return Job(self.prompt, self.seconds, self.seed_of_take(take), self.size, self.lock, self.restore)

    @property
    def fps(self) -> Fraction:
        """Frames per second, exact."""
        return self.recipe.blueprint.fps

    @property
    def frames(self) -> int:
        """Frames of the shot."""
        return self.job().frame_count(self.fps)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the final frames."""
        return check_size(self.size, self.recipe.native_size)

    @property
    def chunks(self) -> int:
        """Chunks that the backbone makes one after the other."""
        blueprint = self.recipe.blueprint
        new = blueprint.window - blueprint.context
        return len(plan_chunks(self.frames, first=blueprint.window, chunk=new))


@dataclass(frozen=True)
class Cost:
    """What one take of every shot costs; each shot may need several."""

    shots: int
    characters: int
    frames: int
    seconds: float
    chunks: int
    steps: int
    """Denoising steps."""
    bytes: int
    """Room on the disk, at most, with the joined film."""
    most_takes: int
    """If no shot ever met its target."""

    def __str__(self) -> str:
        shots, characters, frames, chunks, steps, takes = (
            f"{count} {word}{'s' * (count != 1)}"
            for count, word in (
                (self.shots, "shot"), (self.characters, "character"), (self.frames, "frame"), (self.chunks, "chunk"),
                (self.steps, "denoising step"), (self.shots, "take"),
            )
        )  # fmt: skip
        return (
            f"{shots}, {characters}, {self.seconds:.1f} s: {frames} in {chunks} ({steps}), "
            f"up to {math.ceil(self.bytes / 2**20)} MiB of disk; {takes} if every shot meets its target, "
            f"{self.most_takes} at most"
        )


@dataclass(frozen=True)
class Plan:
    """All shots of a storyboard, in order."""

    board: Storyboard
    units: tuple[Unit, ...]

    @classmethod
    def of(cls, board: Storyboard) -> Plan:
        """Fill the defaults in and load the recipes. Raises :class:`ConfigError` for what does not fit."""
        recipes: dict[str, Recipe] = {}
        units = tuple(_unit(board, index, recipes) for index in range(len(board.shots)))
        rates = {unit.fps for unit in units}
        if len(rates) > 1:
            shown = ", ".join(f"{float(rate):g}" for rate in sorted(rates))
            raise ConfigError(
                f"The shots have different frame rates ({shown}). Give recipes of one rate; a film has one."
            )
        return cls(board, units)

    def planned(self, vram: Mapping[str, int | None]) -> Plan:
        """The same with a memory plan for so many GiB for the shots named in ``vram``; None: as the recipe says.

        Raises :class:`ConfigError` for a size that no plan is for.
        """
        made: dict[tuple[int, int | None], Recipe] = {}
        units = []
        for unit in self.units:
            key = id(unit.recipe), vram.get(unit.name)
            if key not in made:  # one recipe for all shots of it, since models are kept from shot to shot
                made[key] = unit.recipe if key[1] is None else tuned(unit.recipe, vram=key[1])
            units.append(replace(unit, recipe=made[key]))
        return Plan(self.board, tuple(units))

    @property
    def fps(self) -> Fraction:
        """Of the film."""
        return self.units[0].fps

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Each once, in the order of the shots."""
        return tuple({id(unit.recipe): unit.recipe for unit in self.units}.values())

    def cost(self) -> Cost:
        """What one take of every shot costs."""
        room = sum(unit.frames * unit.shape[0] * unit.shape[1] for unit in self.units)
        return Cost(
            shots=len(self.units),
            characters=len(self.board.cast),
            frames=sum(unit.frames for unit in self.units),
            seconds=sum(unit.frames for unit in self.units) / float(self.fps),
            chunks=sum(unit.chunks for unit in self.units),
            steps=sum(unit.chunks * unit.recipe.blueprint.steps for unit in self.units),
            bytes=int(2 * room * BYTES_PER_PIXEL),
            most_takes=sum(unit.tries for unit in self.units),
        )

    def warnings(self) -> list[str]:
        """What can be made but may not be what is meant."""
        sentences = []
        for unit in self.units:
            crowd = crowd_warnings(unit.recipe, len(unit.characters))
            sentences += [f"shot {unit.name}: {sentence}" for sentence in crowd]
        for recipe in self.recipes:
            try:
                require_here(model_names(recipe).values())
            except ModelError as error:
                sentences.append(f"the recipe {recipe.name} cannot run yet: {str(error).rstrip('.')}")
        unused = set(self.board.cast) - {name for unit in self.units for name in unit.characters}
        sentences += [f"{name} is in the cast but in no shot" for name in sorted(unused)]
        return sentences


def _unit(board: Storyboard, index: int, recipes: dict[str, Recipe]) -> Unit:
    shot, defaults = board.shots[index], board.defaults
    name = shot.recipe or defaults.recipe
    if name not in recipes:
        recipes[name] = load_recipe(board.path(name) if is_file_recipe(name) else name)
    recipe, size = recipes[name], shot.size or defaults.size
    target = next((each for each in (shot.target, defaults.target) if each is not None), recipe.target)
    return Unit(
        index=index,
        name=board.name(index),
        prompt=board.prompt(index),
        characters=board.characters(index),
        seconds=shot.seconds,
        seed=board.seed(index),
        recipe=recipe,
        size=check_size(parse_size(size), recipes[name].native_size) if size else None,
        target=target,
        tries=shot.tries or defaults.tries,
        audio=board.path(shot.audio) if shot.audio else None,
        begins=shot.begins,
        scene=shot.scene,
        lock=shot.lock,
        restore=shot.restore,
    )
