"""What a prompt is to a recipe: words that its world does not know, people that it cannot show, parts for regions."""

from __future__ import annotations

from facelock.recipe.sections import Recipe


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


def backbone_prompt(recipe: Recipe, prompt: str) -> str:
    """What the backbone is told of a user's ``prompt``: for regions, one part per person, divided by ``|``.

    Who has not divided it, and writes in the miniature's words, has it divided at the people it names.
    """
    if recipe.blueprint.regions == 1 or "|" in prompt or recipe.vocabulary != "miniature":
        return prompt
    from facelock.miniature.vocabulary import one_each

    return " | ".join(one_each(prompt)[: recipe.blueprint.regions])


def crowd_warnings(recipe: Recipe, people: int) -> list[str]:
    """A sentence where the bounded world draws fewer people at once than there are faces."""
    room = recipe.blueprint.regions
    if recipe.vocabulary != "miniature" or people <= room:
        return []
    return [
        f"the recipe {recipe.name} draws {room} at a time and {people} faces are given: the others will be absent. "
        "Give --recipe miniature-two for two people"
    ]
