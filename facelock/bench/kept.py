"""What speed choices leave of identity: whole clips of the miniature, blueprint to judge, with them and without.

::

    similarity(recipe_with(load_recipe("miniature"), EVERYTHING), "cpu")     # against the recipe's own
"""

from __future__ import annotations

from dataclasses import asdict
from statistics import fmean

from facelock.bench import cast
from facelock.job import Job
from facelock.pipeline import Pipeline
from facelock.recipe import Recipe
from facelock.recipe.sections import SpeedRecipe
from facelock.tuning import Speed, StepCache

CLIPS = 4
"""Held-out characters; a choice writes another clip, so that one alone says little."""
SECONDS = 29 / 12
"""Of a clip: two chunks, the second continued from the first one's locked tail."""
EVERYTHING = Speed(
    attention="native_math",
    cache=StepCache("first_block", threshold=0.1),
    quantise="float8",
    channels_last=True,
    vae_precision="bfloat16",
    overlap=True,
)
"""All at once of what any machine can do."""


def recipe_with(recipe: Recipe, speed: Speed) -> Recipe:
    """The recipe with these choices, as its [speed] table would say them."""
    return recipe.model_copy(update={"speed": SpeedRecipe.model_validate(asdict(speed))})


def similarity(recipe: Recipe, device: str, seed: int = 0, clips: int = CLIPS) -> float:
    """The judge's mean similarity over all frames of ``clips`` whole clips, locked and restored."""
    pipeline = Pipeline.from_recipe(recipe, device)
    seen: list[float] = []
    for k in range(clips):
        who = cast.member(k)
        job = Job(who.prompt, SECONDS, seed + k)
        for made in pipeline.run(job, [cast.identity(who, pipeline.parts)]):
            seen += [row.similarity for row in made.records.ledger if row.similarity is not None]
    return fmean(seen)
