"""True renders under prompts that name every slot of the vocabulary equally often, and what a prompt names.

::

    labels = wanted(8, seed=0)                                  # (8, 9): an index into each slot's words
    clips = act(labels, "heldout", 17, seed=1)                  # drawn, not rendered yet
    named(clips.prompts[0]) == tuple(labels[0].tolist())        # the caption says all of it
    clips.render(slice(0, 2))                                   # (2, 17, 3, 64, 64) in [0, 1]

A label of -1 is a slot that a person does not have (the hair's colour of a bald man, the beard of a woman), or that
a prompt leaves open. What cannot be named by itself has a word of its own here: no glasses, no beard, neutral light.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from facelock.geometry import warp_crops
from facelock.miniature import data, world
from facelock.miniature.motion import clip_nuisance
from facelock.miniature.parameters import (
    ACTIONS,
    HAIR_COLOURS,
    HAIR_STYLES,
    IDENTITY,
    LIGHTS,
    NUISANCE,
    PLACES,
    Params,
    sample_appearance,
    sample_nuisance,
    take,
)
from facelock.miniature.vocabulary import MOTION_PHRASES, SLOTS, caption, words

SIDE = 64
"""Pixels of a rendered frame: what the miniature's blueprint writes."""
MOUTH = 24
"""Pixels along a side of the mouth that is cut out."""
LANDMARK_ERROR = 0.5
"""Standard deviation, in pixels."""
MOUTH_POINTS = torch.tensor(data.ARCFACE) * 0.5 + torch.tensor([-16.0, -34.0])
"""Where the five landmarks come to lie in it: half of ArcFace's template of 112 pixels, the mouth in the middle."""
AT_ONCE = 64
"""Frames that are rendered at once."""
POOL = 4096
"""Identities of a split that clips are drawn from."""
VALUES: dict[str, tuple[str, ...]] = {
    "who": SLOTS["who"],
    "hair style": SLOTS["hair style"],
    "hair colour": SLOTS["hair colour"],
    "glasses": ("no glasses", "glasses"),
    "beard": ("no beard", "beard"),
    "action": SLOTS["action"],
    "head motion": SLOTS["head motion"],
    "place": SLOTS["place"],
    "light": SLOTS["light"],
}
"""Slot → its words, in the order of the labels."""
SLOT = {name: column for column, name in enumerate(VALUES)}
"""Slot → its column in the labels."""
BALD = HAIR_STYLES.index("bald")
WOMAN = SLOTS["who"].index("woman")
SIGNALS: dict[str, tuple[float, float]] = {
    **{k: NUISANCE[k] for k in ("yaw", "pitch", "roll", "open", "smile", "gaze_x", "gaze_y", "temperature")},
    **{k: IDENTITY[k] for k in ("jaw", "chin", "brow_t", "lip_s", "lashes")},
}
"""Parameters of a frame that help the classifier learn (pose, mouth, light, what women and men differ in), ranges."""
TEMPERATURES = ((-0.4, 0.4), (0.4, 1.0), (-1.0, -0.4))
"""Range of the light's temperature of each of ``LIGHTS``."""


@dataclass(frozen=True)
class Clips:
    """N clips of T frames: the parameters of every frame (N · T,), the prompts that name them, and the labels."""

    face: Params
    look: Params
    now: Params
    prompts: list[str]
    labels: Tensor
    """(N, 9) int64."""

    @property
    def frames(self) -> int:
        """T."""
        return len(self.now["yaw"]) // len(self.prompts)

    def render(self, which: slice, step: int = 1) -> Tensor:
        """Every ``step``-th frame of the clips ``which``: (n, T / step rounded up, 3, 64, 64) in [0, 1]."""
        rows = torch.arange(len(self.prompts) * self.frames).view(-1, self.frames)[which, ::step]
        parts = [
            world.render(take(self.face, index), take(self.look, index), take(self.now, index), SIDE)
            for index in rows.reshape(-1).split(AT_ONCE)
        ]
        return torch.cat(parts).view(*rows.shape, 3, SIDE, SIDE)

    def sheets(self, which: slice, step: int, frames: Tensor, seed: int) -> Tensor:
        """:func:`sheets` of (n, t, 3, 64, 64) ``frames`` that show what :meth:`render` draws, cut by the true landmarks
        moved as much as a detector errs."""
        points, _ = world.landmarks(self.face, self.now, SIDE)
        points = points.view(-1, self.frames, 5, 2)[which, ::step].flatten(0, 1)
        points = points + LANDMARK_ERROR * torch.randn(points.shape, generator=data.seeded(602, seed))
        return sheets(frames.flatten(0, 1), points).view(*frames.shape[:2], 3, SIDE + MOUTH, SIDE)

    def signals(self, which: slice, step: int = 1) -> Tensor:
        """``SIGNALS`` of the frames that :meth:`render` draws, each about [-1, 1]: (n, T / step, 13)."""
        both = {**self.face, **self.now}
        columns = [(both[k] - low) / (high - low) * 2 - 1 for k, (low, high) in SIGNALS.items()]
        return torch.stack(columns, -1).view(-1, self.frames, len(SIGNALS))[which, ::step]


def sheets(frames: Tensor, points: Tensor) -> Tensor:
    """(T, 3, 64 + 24, 64) uint8: frames in [0, 1], and below each its mouth, upright and always of one size.

    ``points`` (T, 5, 2) are landmarks in pixels; NaN where there is no face, and so nothing below.
    """
    seen = points.isfinite().flatten(1).all(1)
    below = torch.zeros(len(frames), 3, MOUTH, SIDE)
    if bool(seen.any()):
        matrices = data.fit_similarity(points[seen].float(), MOUTH_POINTS)
        below[seen, :, :, :MOUTH] = warp_crops(frames, seen.nonzero()[:, 0], matrices, MOUTH)
    return (torch.cat([frames, below], 2) * 255).round().clamp(0, 255).byte()


def wanted(count: int, seed: int) -> Tensor:
    """Labels (count, 9) in which every word of a slot comes up equally often, independently of the other slots."""
    g = data.seeded(600, seed)
    columns = []
    for words_ in VALUES.values():
        values = torch.arange(count) % len(words_)
        columns.append(values[torch.randperm(count, generator=g)])
    labels = torch.stack(columns, 1)
    woman, style = labels[:, SLOT["who"]] == WOMAN, labels[:, SLOT["hair style"]]
    other = 1 + torch.randint(len(HAIR_STYLES) - 1, (count,), generator=g)
    labels[:, SLOT["hair style"]] = torch.where(woman & (style == BALD), other, style)
    labels[:, SLOT["hair colour"]][labels[:, SLOT["hair style"]] == BALD] = -1
    labels[:, SLOT["beard"]][woman] = -1
    return labels


def act(labels: Tensor, split: str, frames: int, seed: int) -> Clips:
    """Clips of people of ``split`` (``train``, ``judge`` or ``heldout``) that look and move as ``labels`` say."""
    count, g = len(labels), data.seeded(601, seed)
    people = data.identities(split, POOL)
    face = take(people, _people(labels[:, SLOT["who"]], people["feminine"] > 0.5, g))
    look = _dressed(labels, sample_appearance(count, g), g)
    base = _lit(labels, sample_nuisance(count, g), g)
    action, motion = labels[:, SLOT["action"]], labels[:, SLOT["head motion"]]
    now = clip_nuisance(base, action, motion, frames, g)
    prompts = [caption(face, look, base, int(action[i]), int(motion[i]), i) for i in range(count)]
    same = torch.arange(count).repeat_interleave(frames)
    return Clips(take(face, same), take(look, same), now, prompts, labels)


def _people(who: Tensor, woman: Tensor, generator: torch.Generator) -> Tensor:
    """Index of a random person for each of ``who`` (N,); ``woman`` (P,) says who is one."""
    groups = {WOMAN: woman.nonzero()[:, 0], 1 - WOMAN: (~woman).nonzero()[:, 0]}
    draws = torch.rand(len(who), generator=generator)
    picks = [groups[int(w)][int(d * len(groups[int(w)]))] for w, d in zip(who, draws, strict=True)]
    return torch.stack(picks)


def _dressed(labels: Tensor, look: Params, generator: torch.Generator) -> Params:
    """``look`` with the hair, glasses and beard of ``labels``."""
    inside = 0.02 + 0.96 * torch.rand(2, len(labels), generator=generator)
    style, colour = labels[:, SLOT["hair style"]], labels[:, SLOT["hair colour"]].clamp(min=0)
    out = dict(look)
    out["hair_style"], out["hair_colour"] = style + inside[0], colour + inside[1]
    for name in ("glasses", "beard"):
        size = 0.02 + 0.98 * torch.rand(len(labels), generator=generator)
        out[name] = torch.where(labels[:, SLOT[name]] == 1, size, -size)
    return out


def _lit(labels: Tensor, base: Params, generator: torch.Generator) -> Params:
    """``base`` with the place and the light of ``labels``."""
    inside = 0.02 + 0.96 * torch.rand(2, len(labels), generator=generator)
    low, high = torch.tensor(TEMPERATURES)[labels[:, SLOT["light"]]].unbind(1)
    out = dict(base)
    out["place"] = labels[:, SLOT["place"]] + inside[0]
    out["temperature"] = low + (high - low) * inside[1]
    return out


def named(prompt: str) -> tuple[int, ...]:
    """What ``prompt`` names: a label for each slot of ``VALUES``, -1 where it leaves the slot open.

    A person without a word of glasses, beard or light has none, none and neutral light; a woman's beard is open.
    """
    said = words(prompt)
    who = _first(said, SLOTS["who"])
    moves = [phrase.split()[0] for phrase in MOTION_PHRASES]
    found = {
        "who": who,
        "hair style": _first(said, HAIR_STYLES),
        "hair colour": _first(said, tuple(HAIR_COLOURS)),
        "glasses": int("glasses" in said),
        "beard": -1 if who == WOMAN else int("beard" in said),
        "action": _first(said, ACTIONS),
        "head motion": _first(said, moves),
        "place": _first(said, PLACES),
        "light": max(0, _first(said, LIGHTS)),
    }
    return tuple(found[slot] for slot in VALUES)


def _first(said: Sequence[str], values: Sequence[str]) -> int:
    """Index of the first of ``values`` that was said, or -1."""
    return next((index for index, value in enumerate(values) if value in said), -1)
