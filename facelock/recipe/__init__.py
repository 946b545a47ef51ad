"""Recipes: one complete pipeline as a strict TOML file.

::

    recipe = load_recipe("miniature")     # by name, from the shipped pipelines/ folder
    recipe = load_recipe("my/own.toml")   # or any file
    recipe.lock.ladder                    # (1.0, 1.2, 1.4)

Every key is checked: an unknown one is an error with the nearest known key, and all mistakes of a file
are reported at once. Models are named as in ``models/catalog.toml``, or by a path, which is taken
relative to the recipe's own folder. :mod:`facelock.recipe.sections` has the keys. Knows nothing of torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from facelock.assets import asset_dir
from facelock.errors import ConfigError
from facelock.mistakes import did_you_mean, listed, sentence
from facelock.recipe.sections import MemoryRecipe, Recipe, SpeedRecipe
from facelock.recipe.uses import ALL, Uses, uses
from facelock.tuning.plan import VRAM

SCHEMA = "facelock.recipe.v1"
LARGEST_FILE = 1 << 20
"""Bytes; a recipe is a page of text."""


def tuned(recipe: Recipe, *, vram: int | None = None, reference: bool = False) -> Recipe:
    """The recipe with a memory plan for ``vram`` GiB, or on the plain code path, where that is asked for.

    Raises :class:`ConfigError` for a size that no plan is for.
    """
    changed: dict[str, Any] = {}
    if vram is not None:
        if vram not in VRAM:
            known = ", ".join(str(size) for size in VRAM)
            raise ConfigError(f"There is no plan for --vram {vram}. Give one of: {known}.")
        changed["memory"] = MemoryRecipe.model_validate({"vram": vram})
    if reference:
        changed["speed"] = SpeedRecipe(reference=True)
    return recipe.model_copy(update=changed)


def recipe_names() -> dict[str, Path]:
    """Shipped recipes: name and file stem → file."""
    names: dict[str, Path] = {}
    for path in sorted(asset_dir("pipelines").glob("*.toml")):
        names[path.stem] = path
        names.setdefault(str(_parse(path).get("name", path.stem)), path)
    return names


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by name (``miniature``) or by path (anything ending in ``.toml``).

    Raises :class:`ConfigError` with the nearest known names.
    """
    if isinstance(name, Path) or name.endswith(".toml") or "/" in name:
        path = Path(name)
        try:
            found = path.is_file()
        except OSError:  # a name too long
            found = False
        if not found:
            raise ConfigError(
                f"{str(path)[:200]}: there is no such recipe file. Check the path given to --recipe."
            )
        return path
    known = recipe_names()
    if name in known:
        return known[name]
    guess = did_you_mean(name, known)
    choice = ", ".join(sorted(known))
    raise ConfigError(
        f"No recipe is called {name!r}{guess or '.'} Give one of {choice}, or the path of a .toml file."
    )


def load_recipe(name: str | Path = "miniature") -> Recipe:
    """Read and check a recipe by name or path; :class:`ConfigError` lists every mistake at once."""
    path = find_recipe(name)
    try:
        recipe = Recipe.model_validate(_parse(path))
    except ValidationError as error:
        mistakes = [sentence(detail, Recipe, "recipe") for detail in error.errors(include_url=False)]
        raise ConfigError(f"{path}: {listed(mistakes)} Correct the recipe.") from None
    return _with_paths(recipe, path.resolve().parent)


def _parse(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes is no recipe. Give a recipe file.")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Check the file.") from error
    except (ValueError, RecursionError) as error:  # bad syntax, no UTF-8, a number of thousands of digits
        raise ConfigError(f"{path}: is not valid TOML ({error}). Correct the recipe.") from error


_MODEL_KEYS: Mapping[str, tuple[str, ...]] = {
    "blueprint": ("model",),
    "guidance": ("decoder",),
    "faces": ("detector", "encoder"),
    "lock": ("model",),
    "lock.faceid": ("adapter", "encoder"),
    "restore": ("upscaler", "restorer"),
    "restore.faceid": ("adapter", "encoder"),
    "judge": ("encoder",),
}


def _with_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Resolve model names that are files beside the recipe; catalog names stay as they are."""
    for part, keys in _MODEL_KEYS.items():
        section = _section(recipe, part)
        found = {key: _beside(getattr(section, key), folder) for key in keys if section}
        recipe = _replaced(recipe, part.split("."), found)
    return recipe


def _section(recipe: Recipe, part: str) -> Any:
    """The section called ``part``, dots leading inwards; None where the recipe leaves it out."""
    section: Any = recipe
    for name in part.split("."):
        section = section and getattr(section, name)
    return section


def _replaced(section: Any, path: Sequence[str], values: Mapping[str, Any]) -> Any:
    """A copy of ``section`` with other values in the section that ``path`` leads to."""
    if section is None or not path:
        return section and section.model_copy(update=values)
    inner = _replaced(getattr(section, path[0]), path[1:], values)
    return section.model_copy(update={path[0]: inner})


def _beside(model: str | None, folder: Path) -> str | None:
    with suppress(OSError):  # a name too long
        if model and (folder / model).exists():
            return str(folder / model)
    return model


def model_names(recipe: Recipe, used: Uses = ALL) -> dict[str, str]:
    """Role (``"lock.model"``) → catalog name or path, of every model of the recipe that is ``used``."""
    pairs = (
        (f"{part}.{key}", getattr(_section(recipe, part), key, None))
        for part, keys in _MODEL_KEYS.items()
        for key in keys
    )
    return {role: name for role, name in pairs if name and uses(used, role)}
