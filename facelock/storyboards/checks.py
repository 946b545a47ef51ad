"""Every mistake of a storyboard at once, before any model is loaded.

The checks work on the plain values that were read, so that one mistake does not hide the others. Knows no
torch.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError

from facelock.blueprint import refuse_continuation
from facelock.errors import ConfigError, InputError
from facelock.files import PICTURES
from facelock.job import check_size, parse_size
from facelock.mistakes import Place, did_you_mean, sentence
from facelock.recipe import Recipe, load_recipe
from facelock.storyboard import CHARACTER, Storyboard, default_name, is_file_recipe
from facelock.storyboards.reading import Mistake, Source, read_source

MOST_TOLD = 100
"""Mistakes that a message lists."""
Found = Iterator[tuple[Place, str]]


class StoryboardError(ConfigError):
    """A storyboard has mistakes; ``mistakes`` holds each with its line."""

    def __init__(self, path: Path, mistakes: list[Mistake]) -> None:
        self.mistakes = mistakes
        listed = "\n  ".join(map(str, mistakes[:MOST_TOLD]))
        if len(mistakes) > MOST_TOLD:
            listed += f"\n  and {len(mistakes) - MOST_TOLD} more"
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__(f"{path}: {count}.\n  {listed}\nCorrect the storyboard.")


def checked(path: Path, *, files: bool = True) -> Storyboard:
    """Read and check the storyboard at ``path``; :class:`StoryboardError` lists every mistake.

    Without ``files``, faces and sounds need not be there yet.
    """
    source = read_source(path)
    folder = path.absolute().parent
    board = _validated(source, folder, files)
    if source.mistakes:
        unique = {str(mistake): mistake for mistake in source.mistakes}
        raise StoryboardError(path, sorted(unique.values(), key=lambda mistake: mistake.line or 0))
    if board is None:
        raise StoryboardError(path, [Mistake(None, "is empty")])
    return board


def require_sound(board: Storyboard) -> None:
    """Raise :class:`StoryboardError` for a storyboard that was not loaded and names what is not there."""
    found = semantic_mistakes(board.data(), board.folder)
    mistakes = [Mistake(None, f"{'.'.join(map(str, place))}: {text}") for place, text in found]
    if mistakes:
        raise StoryboardError(Path("the storyboard"), mistakes)


def _validated(source: Source, folder: Path, files: bool) -> Storyboard | None:
    """The storyboard, where its values fit; mistakes go to ``source``."""
    if source.data is None and source.mistakes:
        return None  # nothing could be read
    if not isinstance(source.data, dict):
        source.complain((), "is no storyboard; it begins with 'schema: facelock.storyboard.v1'")
        return None
    board = None
    try:
        board = Storyboard.from_data(source.data, folder)
    except ValidationError as error:
        details = error.errors(include_url=False)
        for detail in details:
            place = detail["loc"]
            if detail["type"] == "too_short" and any(
                other["loc"][:-1][: len(place)] == place for other in details
            ):
                continue  # too few only because of mistakes that are told anyway
            source.complain(place, sentence(detail, Storyboard, "storyboard"))
    for place, text in semantic_mistakes(source.data, folder, files=files):
        source.complain(place, f"{'.'.join(map(str, place))}: {text}" if place else text)
    return board


def semantic_mistakes(data: Mapping[str, Any], folder: Path, *, files: bool = True) -> Found:
    """What no schema sees: unknown characters, two shots with one name, missing files, sizes that do not fit."""
    shots = [(index, shot) for index, shot in enumerate(_items(data.get("shots"))) if isinstance(shot, dict)]
    yield from _names(shots)
    yield from _characters(_mapping(data.get("cast")), shots)
    if files:
        yield from _files(data, shots, folder)
    yield from _transitions(shots)
    yield from _recipes(_mapping(data.get("defaults")), shots, folder)


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


Shots = list[tuple[int, dict[str, Any]]]


def _names(shots: Shots) -> Found:
    taken: dict[str, int] = {}
    for index, shot in shots:
        name = shot.get("name")
        own = name if isinstance(name, str) else default_name(index)
        key = unicodedata.normalize("NFC", own).casefold()
        if key in taken:
            place: Place = ("shots", index, "name") if isinstance(name, str) else ("shots", index)
            yield place, f"{own!r} is the name of shot {taken[key] + 1} too; their files would be the same"
        taken.setdefault(key, index)


def _characters(cast: Mapping[str, Any], shots: Shots) -> Found:
    for index, shot in shots:
        prompt = shot.get("prompt")
        if not isinstance(prompt, str):
            continue
        place: Place = ("shots", index, "prompt")
        named = CHARACTER.findall(prompt)
        for name in dict.fromkeys(named):
            if name not in cast:
                yield place, f"{{{name}}} is not in the cast{did_you_mean(name, cast)}"
        if any(brace in CHARACTER.sub("", prompt) for brace in "{}"):
            yield place, "has a brace without its other half; characters are written {name}"
        elif not named:
            known = ", ".join(f"{{{name}}}" for name in list(cast)[:4]) or "{name}"
            yield place, f"names no character; write {known}"


def _files(data: Mapping[str, Any], shots: Shots, folder: Path) -> Found:
    sounds: list[tuple[Place, Any]] = [(("audio",), data.get("audio"))]
    sounds += [(("shots", index, "audio"), shot.get("audio")) for index, shot in shots]
    faces: list[tuple[Place, Any]] = []
    for name, member in _mapping(data.get("cast")).items():
        several = _mapping(member).get("face")
        faces += [(("cast", name, "face"), face) for face in (_items(several) or [several])]
    for given, problem_of in ((sounds, _sound_problem), (faces, _face_problem)):
        for place, path in given:
            problem = (
                isinstance(path, str) and path and (_file_problem(path, folder) or problem_of(folder / path))
            )
            if problem:
                yield place, problem


def _file_problem(path: str, folder: Path) -> str | None:
    if "://" in path or path.startswith("data:"):
        return f"{path[:80]!r} is an address; only files on this machine are read"
    try:
        if (folder / path).is_file():
            return None
        return f"there is no file {path!r} beside the storyboard"
    except (OSError, ValueError):  # too long, or with a zero byte
        return f"{path[:80]!r} cannot be a file's name"


def _sound_problem(path: Path) -> str | None:
    return None if path.stat().st_size else f"{path.name!r} is empty"


def _face_problem(path: Path) -> str | None:
    """Whether a file begins like a picture or is called a ``.face``; what it shows, the first take tells."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        return f"{path.name!r} cannot be read ({error.strerror})"
    if path.suffix.lower() == ".face" or head[4:8] == b"ftyp":  # HEIC and AVIF
        return None
    with warnings.catch_warnings(), suppress(OSError, ValueError, Image.DecompressionBombError):
        warnings.simplefilter("ignore")
        try:
            Image.open(path, formats=PICTURES).close()
        except UnidentifiedImageError:
            return f"{path.name!r} is no picture; give a JPEG, PNG, WebP, AVIF or TIFF, or a .face file"
    return None


def _transitions(shots: Shots) -> Found:
    """A dissolve needs both of its shots for as long as it lasts."""
    from facelock.storyboard import Shot

    before: float | None = None
    for index, shot in shots:
        text, seconds = shot.get("transition", "cut"), shot.get("seconds")
        try:
            begins = Shot(prompt="-", seconds=1.0, transition=text).begins
        except ValidationError:
            begins = None
        length = _number(seconds)
        place: Place = ("shots", index, "transition")
        if begins and begins.kind == "dissolve" and index == 0:
            yield place, "there is no shot before the first to dissolve from; use fade"
        elif begins and begins.kind != "cut":
            shortest = min((each for each in (before, length) if each is not None), default=None)
            if shortest is not None and 0 < shortest < 2 * begins.seconds:
                yield place, f"{begins.seconds:g} s is more than half of a shot of {shortest:g} s"
        before = length


def _recipes(defaults: Mapping[str, Any], shots: Shots, folder: Path) -> Found:
    """Recipes that are there, make the film's frame rate, and can make each shot's size and length."""
    load = cache(lambda name: _loaded(name, folder))
    general = defaults.get("recipe")
    if isinstance(general, str) and isinstance(load(general), str):
        yield ("defaults", "recipe"), str(load(general))
    film: Recipe | None = None
    for index, shot in shots:
        place: Place = ("shots", index)
        name = next((each for each in (shot.get("recipe"), general) if each is not None), "miniature")
        recipe = load(name) if isinstance(name, str) else None
        if isinstance(recipe, str):
            if "recipe" in shot:
                yield (*place, "recipe"), recipe
        elif recipe:
            film = film or recipe
            yield from _fits(recipe, shot, defaults, place)
            if recipe.blueprint.fps != film.blueprint.fps and defaults.get("fps") is None:
                yield place, f"{_rate(recipe)}, {_rate(film)}; a film has one rate"


def _rate(recipe: Recipe) -> str:
    return f"the recipe {recipe.name} makes {float(recipe.blueprint.fps):g} frames per second"


def _loaded(name: str, folder: Path) -> Recipe | str:
    try:
        return load_recipe(folder / name if is_file_recipe(name) else name)
    except ConfigError as error:
        return str(error).rstrip(".")


def _fits(recipe: Recipe, shot: Mapping[str, Any], defaults: Mapping[str, Any], place: Place) -> Found:
    """Frame rate, size and length of one shot, as far as they are numbers at all."""
    rate, fps, seconds = recipe.blueprint.fps, _number(defaults.get("fps")), _number(shot.get("seconds"))
    if fps and abs(float(rate) - fps) > 1e-3:
        where = place if "recipe" in shot else ("defaults", "fps")
        yield where, f"{_rate(recipe)}, not {fps:g}"
    size = shot.get("size")
    problem = _size_problem(defaults.get("size") if size is None else size, recipe)
    if problem:
        yield (*(place if size is not None else ("defaults",)), "size"), problem
    if seconds and Fraction(seconds) * rate < Fraction(1, 2):
        yield (*place, "seconds"), f"{seconds:g} s is less than one frame of {float(1 / rate):.3f} s"
    low = recipe.blueprint
    try:
        refuse_continuation(
            low.kind, window=low.window, frames=round(Fraction(seconds or 0) * rate), fps=rate
        )
    except InputError as error:
        yield (*place, "seconds"), str(error).rstrip(".")


def _number(value: object) -> float | None:
    """A positive number of sane size; None for all else, which the schema refuses."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
    return float(value) if fits and isinstance(value, int | float) else None


def _size_problem(size: object, recipe: Recipe) -> str | None:
    if isinstance(size, bool) or not isinstance(size, int | str):
        return None
    try:
        sides = parse_size(str(size))
    except ConfigError:
        return None  # the schema says so
    try:
        check_size(sides, recipe.native_size)
    except ConfigError as error:
        return str(error).rstrip(".")
    return None
