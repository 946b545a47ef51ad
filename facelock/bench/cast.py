"""The held-out cast of the benchmarks: faces that no training saw, with their pictures and prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facelock.miniature import data, world
from facelock.miniature.motion import clip_nuisance
from facelock.miniature.parameters import (
    ACTIONS,
    APPEARANCE,
    HAIR_COLOURS,
    HAIR_STYLES,
    MOTIONS,
    NUISANCE,
    PLACES,
    Params,
    sample_nuisance,
    take,
)
from facelock.miniature.samples import PORTRAIT
from facelock.miniature.vocabulary import MOTION_PHRASES, PLACE_PHRASES
from facelock.parts import Parts
from facelock.types import Identity


@dataclass(frozen=True)
class Member:
    """One held-out character: the face, the look that the prompt names, and the prompt."""

    index: int
    face: Params
    look: Params
    prompt: str

    @property
    def name(self) -> str:
        """``heldout-07``."""
        return f"heldout-{self.index:02d}"


def member(index: int) -> Member:
    """The ``index``-th held-out character; looks, places and actions go round so that all occur."""
    face = take(data.identities("heldout", index + 1), slice(index, index + 1))
    woman = float(face["feminine"]) > 0.5
    style = 1 + index % (len(HAIR_STYLES) - 1)
    colour = (index * 5 + 1) % len(HAIR_COLOURS)
    look = {k: torch.full((1,), (lo + hi) / 2) for k, (lo, hi) in APPEARANCE.items()}
    look |= {"hair_style": torch.tensor([style + 0.5]), "hair_colour": torch.tensor([colour + 0.5])}
    look |= {"glasses": torch.tensor([-1.0]), "beard": torch.tensor([-1.0])}
    who = "woman" if woman else "man"
    doing = f"{ACTIONS[1 + index % 3]} and {MOTION_PHRASES[(index // 2) % len(MOTIONS)]}"
    hair = f"{HAIR_STYLES[style]} {list(HAIR_COLOURS)[colour]} hair"
    return Member(index, face, look, f"a {who} with {hair} {doing} {PLACE_PHRASES[index % len(PLACES)]}")


def portrait(who: Member, size: int = 512) -> Tensor:
    """The reference picture, (1, 3, size, size)."""
    now = {k: torch.zeros(1) for k in NUISANCE} | {k: torch.tensor([v]) for k, v in PORTRAIT.items()}
    now["cloth_hue"] = torch.tensor([(who.index * 0.37) % 1])
    return world.render(who.face, who.look, now, size)


def identity(who: Member, parts: Parts) -> Identity:
    """The character as a user would give it: from the reference picture alone."""
    from PIL import Image

    picture = (portrait(who)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    return parts.identity(Image.fromarray(picture), name=who.name, face=None)


def true_clip(who: Member, frames: int, size: int, seed: int) -> tuple[Tensor, Params]:
    """A clip of true renders of the character (frames, 3, size, size), moving as the training clips do."""
    g = data.seeded(500, seed, who.index)
    base = sample_nuisance(1, g)
    action = torch.tensor([1 + who.index % 3])
    motion = torch.tensor([(who.index // 2) % len(MOTIONS)])
    now = clip_nuisance(base, action, motion, frames, g)
    same = torch.zeros(frames, dtype=torch.long)
    return world.render(take(who.face, same), take(who.look, same), now, size), now


def ceiling(who: Member, parts: Parts, size: int, frames: int = 48) -> float:
    """Mean judge similarity of true renders of the character to its reference picture: what is reachable."""
    rows = parts.judge.measure(true_clip(who, frames, size, 1)[0], [identity(who, parts)], start=0)
    values = [r.similarity for r in rows if r.similarity is not None]
    return sum(values) / len(values)
