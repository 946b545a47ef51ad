"""Every speed choice leaves the miniature's identity figures where they are: the judge's mean within 0.01."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from facelock.assembly import Assembly
from facelock.bench.kept import EVERYTHING, recipe_with
from facelock.bench.kept import similarity as similarity_of
from facelock.bench.stages import backbone, speeds
from facelock.pipeline import Pipeline
from facelock.recipe import load_recipe, tuned
from facelock.runtime import derive_seed
from facelock.tuning import Speed
from facelock.tuning.placement import Placement
from facelock.tuning.plan import Plan
from facelock.tuning.ratios import measure_ratios

FACE = Path(__file__).parents[1] / "samples" / "faces" / "maria.png"
PROMPT = "a woman with red hair talking in a forest"


@pytest.fixture(scope="session")
def miniature() -> SimpleNamespace:
    """The bundled models, loaded once, and the figure that each choice is held against: of eight steps a cache can
    spare one, of the recipe's six it cannot.
    """
    recipe = load_recipe("miniature")
    recipe = recipe.model_copy(update={"blueprint": recipe.blueprint.model_copy(update={"steps": 8})})
    parts = Assembly(recipe, "cpu")
    found = SimpleNamespace(recipe=recipe, parts=parts, cast=Pipeline(recipe, parts).identities(FACE))
    plain = backbone(recipe, "cpu")
    found.ratios = measure_ratios(plain.modules["transformer"], lambda: plain.extend(PROMPT, None, seed=1))
    found.similarity = similarity(found, plain)
    return found


def similarity(miniature: SimpleNamespace, model: object) -> float:
    """The judge's mean over two seconds, 17 + 12 frames, locked and continued from the locked tail."""
    parts, tail, seen = miniature.parts, None, []
    with torch.no_grad():
        for chunk in range(2):
            raw = model.extend(PROMPT, tail, seed=derive_seed(5, chunk))
            locked, _ = parts.locker.lock(raw, miniature.cast)
            tail = locked[-5:]
            rows = parts.judge.measure(parts.upscaler.upscale(locked), miniature.cast)
            seen += [row.similarity for row in rows if row.similarity is not None]
    assert len(seen) == 29
    return sum(seen) / len(seen)


CHOICES = [*speeds((1.0,) * 8)]


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_keeps_the_identity(miniature: SimpleNamespace, name: str) -> None:
    fast = backbone(miniature.recipe, "cpu", speeds(miniature.ratios)[name])
    assert similarity(miniature, fast) == pytest.approx(miniature.similarity, abs=0.01)


def test_the_smallest_plan_keeps_the_identity(miniature: SimpleNamespace) -> None:
    steps = miniature.recipe.blueprint.steps
    place = Placement(torch.device("cpu"), Speed(), Plan(groups=1, text="layers", tiling=True), steps=steps)
    small = backbone(miniature.recipe, "cpu", place=place)
    assert similarity(miniature, small) == miniature.similarity


def test_the_reference_path_keeps_the_identity(miniature: SimpleNamespace) -> None:
    plain = backbone(miniature.recipe, "cpu", reference=True)
    assert similarity(miniature, plain) == pytest.approx(miniature.similarity, abs=0.01)


def test_full_runs_with_everything_keep_the_identity(miniature: SimpleNamespace) -> None:
    """Blueprint to judge, all choices at once in the smallest memory plan; and by --reference as without."""
    everything = recipe_with(miniature.recipe, EVERYTHING)
    plain, fast, reference = (
        similarity_of(recipe, "cpu", clips=1)
        for recipe in (miniature.recipe, tuned(everything, vram=8), tuned(everything, reference=True))
    )
    assert fast == pytest.approx(plain, abs=0.01) and fast != plain
    assert reference == pytest.approx(plain, abs=0.01)
