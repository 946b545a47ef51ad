"""Recipes: one complete pipeline as a strict TOML file.

::

    recipe = load_recipe("miniature")     # by name, from the shipped pipelines/ folder
    recipe = load_recipe("my/own.toml")   # or any file
    recipe.lock.ladder                    # (1.0, 1.2, 1.4)

Every key is checked: an unknown one is an error with the nearest known key, and all mistakes of a file
are reported at once. Models are named as in ``models/catalog.toml``, or by a path, which is taken
relative to the recipe's own folder. Knows nothing of torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from facelock.assets import asset_dir
from facelock.errors import ConfigError
from facelock.mistakes import did_you_mean, sentence

SCHEMA = "facelock.recipe.v1"
LARGEST_FILE = 1 << 20
"""Bytes; a recipe is a page of text."""

Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Ladder = Annotated[tuple[Annotated[float, Field(gt=0, le=2)], ...], Field(min_length=1, max_length=16)]
Model = Annotated[str, Field(min_length=1)]
"""Catalog name or path."""
Batch = Annotated[int, Field(ge=1, le=1024)]
"""Rows that a network takes at once on a GPU; on a CPU one to three, side by side (:mod:`facelock.runtime`)."""


def _exact(rate: object) -> object:
    """Read 12, 29.97 or "30000/1001" as an exact fraction."""
    if isinstance(rate, bool) or not isinstance(rate, int | float | str):
        return rate
    try:
        return Fraction(rate).limit_denominator(1001)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError("frames per second must be a number such as 12 or '30000/1001'") from error


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BlueprintRecipe(_Part):
    """Stage 1: which video diffusion checkpoint, and how it is run."""

    kind: str = "skyreels_v2"
    model: Model
    """Catalog name or folder in diffusers format."""
    size: tuple[int, int]
    """(height, width) in pixels of the frames it writes."""
    fps: Annotated[Fraction, BeforeValidator(_exact), Field(gt=0, le=240)]
    window: int = Field(ge=1, le=1025)
    """Frames it denoises at once, context included."""
    context: int = Field(ge=1)
    """Frames of the window that are the locked past."""
    steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=0, le=50)
    flow_shift: float | None = Field(default=None, gt=0)
    """Replaces the checkpoint's own."""
    context_noise: float = Field(default=0.0, ge=0, le=0.06)
    """Share of noise mixed into the locked past, which smooths long clips."""
    anchor: Share = 0.0
    """Share of the first chunk's locked tail in every later context. The lock keeps the face; this keeps the scene
    around it, head and hair included, from drifting by the same rule: one fixed reference."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    negative_prompt: str = ""

    @model_validator(mode="after")
    def _context_fits(self) -> BlueprintRecipe:
        if self.context >= self.window:
            raise ValueError(f"context ({self.context}) must be smaller than window ({self.window})")
        return self


class AcceptRecipe(_Part):
    """Similarities at which a recogniser accepts, per false-accept rate."""

    far_1e2: Cosine
    far_1e3: Cosine
    far_1e4: Cosine


class FacesRecipe(_Part):
    """The face pack inside the loop: detector and recogniser."""

    kind: str = "onnx_pack"
    detector: Model
    encoder: Model
    detection_size: int = Field(default=640, ge=32, le=4096)
    threshold: Share = 0.5
    """Detector score from which a box is a face."""
    batch: Batch = 16
    thresholds: AcceptRecipe | None = None
    """Of the encoder; needed where it is a file that the catalog does not know."""


class ReferenceRecipe(_Part):
    """What a reference photo must offer."""

    minimum_face: float = Field(default=64, gt=0)
    """Height of the face in pixels."""
    minimum_sharpness: float = Field(default=0.0, ge=0)
    """Laplacian variance of the canonical crop; 0 accepts every picture."""
    maximum_yaw: float = Field(default=60, gt=0, le=180)
    """Degrees away from frontal."""


class LockRecipe(_Part):
    """Stage 2: the aligner, its ladder of strengths, and when a face is done."""

    kind: str = "inswapper"
    model: Model
    ladder: Ladder
    target: Cosine
    """Similarity, by the loop's own recogniser, at which a face stops climbing the ladder."""
    batch: Batch = 16


class RestoreRecipe(_Part):
    """Stage 3: frames enlarged, faces restored under two constraints."""

    upscaler_kind: str = "onnx_upscaler"
    upscaler: Model
    scale: int = Field(default=4, ge=1, le=8)
    restorer_kind: str = "onnx_restorer"
    restorer: Model | None = None
    """None: the upscaler alone."""
    ladder: Ladder = (1.0,)
    target: Cosine = 0.5
    consistency: float = Field(default=0.1, gt=0, le=1)
    """Largest RMS difference between the restored face, downsampled, and the locked one."""
    batch: Batch = 16


class JudgeRecipe(_Part):
    """The recogniser that measures and that no stage optimises."""

    kind: str = "crate"
    encoder: Model
    thresholds: AcceptRecipe | None = None
    minimum_face: float = Field(default=24, gt=0)
    """Pixels of height below which a face is unreadable."""
    maximum_yaw: float = Field(default=60, gt=0, le=180)
    minimum_sharpness: float = Field(default=0.0, ge=0)


class EncodeRecipe(_Part):
    """H.264 settings; 16 is visually lossless."""

    crf: int = Field(default=16, ge=0, le=51)


class Recipe(_Part):
    """One complete pipeline."""

    schema_: Literal["facelock.recipe.v1"] = Field(alias="schema")
    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    purpose: str = ""
    vocabulary: Literal["miniature"] | None = None
    """The bounded world of words the backbone knows; None: free text."""
    target: Share = 0.99
    """Share of readable frames that must match the identity."""
    blueprint: BlueprintRecipe
    faces: FacesRecipe
    reference: ReferenceRecipe = ReferenceRecipe()
    lock: LockRecipe
    restore: RestoreRecipe
    judge: JudgeRecipe
    encode: EncodeRecipe = EncodeRecipe()

    def settings(self) -> dict[str, Any]:
        """The whole recipe as plain JSON values, defaults included: what a report and a journal keep."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the final frames when no size is asked for."""
        height, width = self.blueprint.size
        return height * self.restore.scale, width * self.restore.scale


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
        raise ConfigError(f"{path}: {'; '.join(mistakes)}. Correct the recipe.") from None
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
    "faces": ("detector", "encoder"),
    "lock": ("model",),
    "restore": ("upscaler", "restorer"),
    "judge": ("encoder",),
}


def _with_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Resolve model names that are files beside the recipe; catalog names stay as they are."""
    parts = {}
    for part, keys in _MODEL_KEYS.items():
        section = getattr(recipe, part)
        found = {key: _beside(getattr(section, key), folder) for key in keys}
        parts[part] = section.model_copy(update=found)
    return recipe.model_copy(update=parts)


def _beside(model: str | None, folder: Path) -> str | None:
    with suppress(OSError):  # a name too long
        if model and (folder / model).exists():
            return str(folder / model)
    return model


def model_names(recipe: Recipe) -> dict[str, str]:
    """Role (``"lock.model"``) → catalog name or path, of every model the recipe uses."""
    pairs = (
        (f"{part}.{key}", getattr(getattr(recipe, part), key))
        for part, keys in _MODEL_KEYS.items()
        for key in keys
    )
    return {role: name for role, name in pairs if name}


def vocabulary_warnings(recipe: Recipe, prompt: str) -> list[str]:
    """A sentence for each word that the recipe's bounded world does not know, with the closest it knows."""
    if recipe.vocabulary != "miniature":
        return []
    from facelock.miniature.vocabulary import unknown_words

    sentences = []
    for word, near in unknown_words(prompt):
        known = f"the closest known words are {', '.join(near)}" if near else "no known word is close"
        sentences.append(f"the miniature does not know the word {word!r} and passes over it; {known}")
    return sentences
