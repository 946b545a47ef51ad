"""The prompts the miniature understands, as documented in docs/vocabulary.md."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from facelock.miniature.parameters import (
    ACTIONS,
    HAIR_COLOURS,
    HAIR_STYLES,
    LIGHTS,
    MOTIONS,
    PLACES,
    Params,
)

SLOTS: dict[str, tuple[str, ...]] = {
    "who": ("woman", "man"),
    "hair style": HAIR_STYLES,
    "hair colour": tuple(HAIR_COLOURS),
    "accessory": ("glasses", "beard"),
    "action": ACTIONS,
    "head motion": MOTIONS,
    "place": PLACES,
    "light": LIGHTS,
}
"""What a prompt can control, and the words for it."""

FILLERS = (
    "a",
    "an",
    "the",
    "with",
    "and",
    "in",
    "at",
    "on",
    "of",
    "hair",
    "her",
    "his",
    "head",
    "light",
    "wearing",
)
PLACE_PHRASES = ("in a studio", "in a forest", "on a beach", "in the city", "in an office", "at sunset")
MOTION_PHRASES = ("still", "turning the head", "nodding", "looking around")


def vocabulary() -> tuple[str, ...]:
    """Every known word, sorted."""
    words = {w for values in SLOTS.values() for value in values for w in value.split()}
    return tuple(sorted(words | set(FILLERS)))


def words(prompt: str) -> list[str]:
    """Lower-case words of ``prompt``."""
    return re.findall(r"[a-zà-öø-ÿ']+", prompt.lower())


BEFORE_PERSON = ("a", "an", "the", "bald")
"""Words that may stand before "woman" or "man" and belong to the same person."""


def one_each(prompt: str) -> list[str]:
    """The prompt of each person named in ``prompt``, in order, with the place and the light, which all share.

    ::

        one_each("a woman with red hair talking and a man smiling in a forest")
        # ["a woman with red hair talking in a forest", "a man smiling in a forest"]

    A prompt that names nobody, or one, comes back as it is.
    """
    known = words(prompt)
    people = [i for i, word in enumerate(known) if word in SLOTS["who"]]
    if len(people) < 2:
        return [prompt]
    begins = [_begin(known, i) for i in people]
    scene = [_phrase(known, SLOTS["place"], PLACE_PHRASES), _light_phrase(known)]
    shared = {*SLOTS["place"], *SLOTS["light"]}
    prompts = []
    for begin, end in zip(begins, [*begins[1:], len(known)], strict=True):
        own = [word for word in known[begin:end] if word not in shared]
        while own and own[-1] in FILLERS and own[-1] not in ("hair", "head"):
            own.pop()
        prompts.append(" ".join([*own, *filter(None, scene)]))
    return prompts


def _begin(known: Sequence[str], person: int) -> int:
    """Where the words about a person begin."""
    while person and known[person - 1] in BEFORE_PERSON:
        person -= 1
    return person


def _phrase(known: Sequence[str], values: Sequence[str], phrases: Sequence[str]) -> str:
    """The phrase of the first of ``values`` that is named, or nothing."""
    return next((phrases[values.index(word)] for word in known if word in values), "")


def _light_phrase(known: Sequence[str]) -> str:
    return _phrase(known, LIGHTS, [f"in {light} light" for light in LIGHTS])


def unknown_words(prompt: str) -> list[tuple[str, list[str]]]:
    """Words of ``prompt`` outside the vocabulary, each with up to three of the closest known words."""
    known = vocabulary()
    seen: dict[str, list[str]] = {}
    for word in words(prompt):
        if word not in known and word not in seen:
            seen[word] = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return list(seen.items())


def caption(
    identity: Params,
    appearance: Params,
    base: Params,
    action: int,
    motion: int,
    i: int,
    keep: Sequence[bool] = (True,) * 8,
) -> str:
    """Describe clip ``i``; ``keep`` drops hair style, hair colour, glasses, beard, action, motion, place, light."""
    who = "woman" if float(identity["feminine"][i]) > 0.5 else "man"
    style = HAIR_STYLES[min(int(appearance["hair_style"][i]), len(HAIR_STYLES) - 1)]
    colour = list(HAIR_COLOURS)[min(int(appearance["hair_colour"][i]), len(HAIR_COLOURS) - 1)]
    text = f"a bald {who}" if style == "bald" and keep[0] else f"a {who}"
    extras = []
    if style != "bald" and (keep[0] or keep[1]):
        extras.append(" ".join([style] * keep[0] + [colour] * keep[1] + ["hair"]))
    extras += ["glasses"] * (keep[2] and float(appearance["glasses"][i]) > 0)
    extras += ["a beard"] * (keep[3] and float(appearance["beard"][i]) > 0)
    text += (" with " + " and ".join(extras)) if extras else ""
    doing = [ACTIONS[action]] * keep[4] + [MOTION_PHRASES[motion]] * keep[5]
    text += (" " + " and ".join(doing)) if doing else ""
    text += f" {PLACE_PHRASES[min(int(base['place'][i]), len(PLACES) - 1)]}" if keep[6] else ""
    light = light_name(base["temperature"][i])
    return text + (f" in {light} light" if keep[7] and light != "neutral" else "")


def light_name(temperature: Tensor | float) -> str:
    """Warm, neutral or cold, by the light's temperature in [-1, 1]."""
    value = float(temperature)
    return "warm" if value > 0.4 else "cold" if value < -0.4 else "neutral"


def random_keep(generator: torch.Generator) -> list[bool]:
    """Which slots a training caption names: mostly all, so that partial prompts work too.

    Always glasses and beard: they have no word for their absence, so a prompt without theirs must mean none.
    """
    keep: list[bool] = (torch.rand(8, generator=generator) < 0.85).tolist()
    keep[2] = keep[3] = True
    return keep
