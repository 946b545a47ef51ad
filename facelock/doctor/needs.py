"""Which weights every shipped recipe needs, and whether they are here. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from facelock.errors import FaceLockError, ModelError, caught
from facelock.preflight import lacking
from facelock.recipe import Recipe, load_recipe, model_names, recipe_names
from facelock.weights import digest, is_here, pull_command, require_known
from facelock.weights.catalog import Catalog, Entry

READ = 64 << 20
"""Bytes up to which a weight is read and hashed; of a larger one only its size is looked at, since
``facelock models verify`` reads it."""


@dataclass(frozen=True)
class WeightState:
    """One weight that a recipe needs."""

    name: str
    state: Literal["here", "missing", "damaged"]
    bytes: int
    """0: nobody knows before it is pulled."""
    licence: str = ""
    commercial: bool = True
    pull: str = ""
    """The command that fetches it; empty where nothing does."""


@dataclass(frozen=True)
class RecipeNeeds:
    """One recipe and what it needs."""

    name: str
    purpose: str
    weights: tuple[WeightState, ...] = ()
    error: str = ""
    """Why the recipe itself cannot be read."""
    mistakes: tuple[str, ...] = ()
    """What of it cannot work here besides weights that are missing, a sentence each: :mod:`facelock.preflight`."""
    vram: int = 0
    """Bytes of GPU memory that its weights take without a memory plan, where the recipe says so."""

    @property
    def bytes(self) -> int:
        """Of all its weights, as far as it is known."""
        return sum(weight.bytes for weight in self.weights)

    @property
    def unknown_size(self) -> bool:
        """Whether one of them will only say its size when it is pulled: a checkpoint of a hub, and not a small one."""
        return any(weight.bytes == 0 for weight in self.weights)


def recipes(names: Iterable[str] | None = None) -> tuple[RecipeNeeds, ...]:
    """Every shipped recipe, the default one first; or those ``names``, which may be paths."""
    catalog = Catalog.load()
    if names is None:
        files = sorted(set(recipe_names().values()), key=lambda path: (path.stem != "default", path.stem))
        return tuple(_needs(str(path), catalog) for path in files)
    return tuple(_needs(name, catalog) for name in names)


def _needs(name: str, catalog: Catalog) -> RecipeNeeds:
    try:
        recipe: Recipe = load_recipe(name)
    except FaceLockError as error:
        return RecipeNeeds(Path(name).stem, "", error=str(error).rstrip("."))
    wanted = [
        name
        for name in dict.fromkeys(model_names(recipe).values())
        if not caught(partial(require_known, name))
    ]
    vram = int(float(getattr(recipe, "vram_gib", None) or 0) * 2**30)
    weights = tuple(weight_state(model, catalog) for model in wanted)
    mistakes = tuple(str(error) for error in lacking(recipe, weights=False))
    return RecipeNeeds(recipe.name, recipe.purpose, weights, mistakes=mistakes, vram=vram)


def weight_state(model: str, catalog: Catalog) -> WeightState:
    """Of a catalog name or a path."""
    entry = catalog.find(model)
    if entry is None:
        path = Path(model).expanduser()
        return WeightState(model, "here" if path.exists() else "missing", _size([path]))
    pull = pull_command(entry.name) if entry.fetch else ""
    return WeightState(entry.name, _state(entry), entry.size, entry.licence, entry.commercial, pull)


def _state(entry: Entry) -> Literal["here", "missing", "damaged"]:
    if not is_here(entry):
        return "missing"
    known = entry.digests()
    receipt = entry.receipt()
    if receipt is None and _size(known) > READ:
        return "here" if _size(known) == entry.bytes else "damaged"
    try:
        return "here" if all(_whole(entry, path, sha256) for path, sha256 in known.items()) else "damaged"
    except ModelError:  # it cannot be read
        return "damaged"


def _whole(entry: Entry, path: Path, sha256: str) -> bool:
    """By its digest; of a large file whose digest was recorded, by the size and time it had then."""
    receipt = entry.receipt()
    name = path.name if path == entry.path else path.relative_to(entry.path).as_posix()
    kept = receipt.files.get(name) if receipt else None
    if kept is not None and kept.bytes > READ:
        return kept.is_unchanged(path)
    return digest(path) == sha256


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        files: Sequence[Path] = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        total += sum(file.stat().st_size for file in files)
    return total
