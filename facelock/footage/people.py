"""Who is seen in a clip, and which of them is to have a character's face.

::

    seen = look_around(batches, pack)                 # faces of frames spread over the clip
    casting = find_cast(seen, identities, pack.encoder)
    locker.lock(frames, identities, cast=casting.cast)

One look at the whole clip before anything is changed decides it once: faces are put together into people, the people
are given their parts, and some of each one's faces, as different as they come, are kept as exemplars. From then on
every frame decides alone, by these exemplars; nothing is tracked. People are put together in two steps. From one
sampled frame to the next, faces are chained (optimal assignment above the encoder's threshold at FAR 1e-4, or at FAR
1e-2 where their boxes overlap), so that a face that drifts away slowly, or turns, stays one person. Then chains are
merged by average linkage (Sokal and Michener 1958) above the threshold at FAR 1e-3. Two faces of one frame are never
one person.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from facelock.closed_loop import Cast
from facelock.errors import InputError
from facelock.identity import embedding_of
from facelock.protocols import Encoder, FacePack
from facelock.types import Identity

log = logging.getLogger(__name__)

LOOKS = 200
"""Frames looked at, spread over the clip."""
EXEMPLARS = 16
"""Faces kept of each person."""
SMALLEST = 12.0
"""Pixels of height below which nothing is said of a face."""
_MAIN = 0.2
"""Somebody seen this share as often as the one who is seen most has a part of their own."""
_SURE = 3
"""So many of a person's most similar faces must resemble the reference together."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """The N faces of the sampled frames."""

    frame: Tensor
    """(N,) int64, index of the frame in the clip, rising."""
    box: Tensor
    """(N, 4) x1 y1 x2 y2 in pixels."""
    embedding: Tensor
    """(N, D) unit rows by the loop's encoder."""


@dataclass(frozen=True)
class Casting:
    """Who plays whom, and what should be said about it."""

    cast: Cast
    people: int
    """How many different people were seen for long enough to count."""
    notes: tuple[str, ...] = ()


def sampled(frames: int, looks: int = LOOKS) -> list[int]:
    """Indices of up to ``looks`` frames, evenly spread over a clip of ``frames``, first and last included."""
    return sorted({round(place) for place in np.linspace(0, max(0, frames - 1), min(looks, max(1, frames)))})


def look_around(batches: Iterable[tuple[Sequence[int], Tensor]], pack: FacePack) -> Seen:
    """Find and embed all faces; ``batches`` gives clip indices with their (T, 3, H, W) frames in [0, 1]."""
    frames, boxes, rows = [], [], []
    for index, pictures in batches:
        faces = pack.detect(pictures)
        faces = faces.select(faces.box[:, 3] - faces.box[:, 1] >= SMALLEST)
        frames.append(torch.tensor(list(index), dtype=torch.long)[faces.frame])
        boxes.append(faces.box)
        rows.append(pack.embed(pictures, faces).detach().cpu().float())
    if not rows:
        return Seen(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), torch.zeros(0, 1))
    return Seen(torch.cat(frames), torch.cat(boxes), torch.cat(rows))


def find_cast(
    seen: Seen,
    identities: Sequence[Identity],
    encoder: Encoder,
    *,
    replace: Sequence[Identity] = (),
    swap: bool = True,
) -> Casting:
    """Give each of ``identities`` the person of the clip who is to have that face.

    The person who resembles the reference; else, where ``swap`` allows it and as many people are left as characters,
    those, from left to right; or whoever ``replace`` shows, one per identity. Raises ``InputError`` when no face is
    seen, or nobody can be told to be meant.
    """
    if not len(seen.frame):
        raise InputError("No face is seen in this clip. Give one in which a face can be read.")
    people = cluster(seen, encoder)
    parts, notes = _parts(seen, people, identities, encoder, replace, swap)
    taken = set(parts)
    own = tuple(_exemplars(seen.embedding[people[part]]) for part in parts)
    others = [_exemplars(seen.embedding[rows]) for number, rows in enumerate(people) if number not in taken]
    rest = torch.cat(others) if others else seen.embedding[:0]
    cast = Cast(own, rest, encoder.thresholds.far_1e3)
    return Casting(cast, len(_main(people)), tuple(notes))


def cluster(seen: Seen, encoder: Encoder) -> list[Tensor]:
    """Put faces together into people: indices (n,) of each one's faces, who is seen most first."""
    alike = (seen.embedding.double() @ seen.embedding.double().T).numpy()
    accept, frame = encoder.thresholds, seen.frame.numpy()
    linked = (alike >= accept.far_1e4) | ((alike >= accept.far_1e2) & _overlapping(seen.box.numpy()))
    groups = _merged(_chains(frame, alike, linked), frame, alike, accept.far_1e3)
    groups.sort(key=lambda group: (-len(group), group[0]))
    return [torch.tensor(sorted(group)) for group in groups]


def _overlapping(box: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N, N) whether two boxes share a third of what they cover together."""
    low, high = np.maximum(box[:, None, :2], box[None, :, :2]), np.minimum(box[:, None, 2:], box[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    area = (box[:, 2:] - box[:, :2]).prod(-1)
    return shared * 3 >= area[:, None] + area[None] - shared


def _chains(frame: NDArray[np.int64], alike: Floats, linked: NDArray[np.bool_]) -> list[list[int]]:
    """Faces followed from one sampled frame to the next, where they are ``linked``."""
    groups: list[list[int]] = []
    before: list[list[int]] = []
    for moment in np.unique(frame):
        here = np.flatnonzero(frame == moment)
        now: dict[int, list[int]] = {int(face): [int(face)] for face in here}
        if before:
            ends = np.array([group[-1] for group in before])
            scores = np.where(linked[ends][:, here], alike[ends][:, here], -4)
            for old, new in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
                if scores[old, new] > -4:
                    before[old].append(int(here[new]))
                    now[int(here[new])] = before[old]
        groups += [group for face, group in now.items() if group == [face]]
        before = list(now.values())
    return groups


def _merged(
    groups: list[list[int]], frame: NDArray[np.int64], alike: Floats, threshold: float
) -> list[list[int]]:
    """Average linkage: the two most alike groups become one while their mean similarity is above ``threshold``."""
    owner = np.zeros((len(groups), len(frame)))
    for number, group in enumerate(groups):
        owner[number, group] = 1
    moments = np.stack([owner[:, frame == moment].sum(1) for moment in np.unique(frame)], 1) > 0
    sums, sizes, alive = owner @ alike @ owner.T, owner.sum(1), np.ones(len(groups), dtype=bool)
    while alive.sum() > 1:
        means = sums / np.outer(sizes, sizes)
        together = (moments.astype(float) @ moments.T.astype(float)) > 0
        means[together | ~alive[:, None] | ~alive[None]] = -2
        np.fill_diagonal(means, -2)
        one, other = np.unravel_index(int(means.argmax()), means.shape)
        if means[one, other] < threshold:
            break
        groups[one] = groups[one] + groups[other]
        sums[one] += sums[other]
        sums[:, one] += sums[:, other]
        sizes[one] += sizes[other]
        moments[one] |= moments[other]
        alive[other] = False
    return [group for group, kept in zip(groups, alive, strict=True) if kept]


def _parts(
    seen: Seen,
    people: list[Tensor],
    identities: Sequence[Identity],
    encoder: Encoder,
    replace: Sequence[Identity],
    swap: bool,
) -> tuple[list[int], list[str]]:
    """For each identity, the number of the person who plays it; and what to say."""
    if replace and len(replace) != len(identities):
        raise InputError(
            f"{len(replace)} pictures of whom to replace are given for {len(identities)} faces. Give one for each."
        )
    wanted = [embedding_of(identity, encoder.id) for identity in (replace or identities)]
    scores = np.array([[_likeness(row, seen.embedding[rows]) for rows in people] for row in wanted])
    known = scores >= encoder.thresholds.far_1e2
    parts: dict[int, int] = {}
    for k, person in zip(*linear_sum_assignment(np.where(known, scores, -4), maximize=True), strict=True):
        if known[k, person]:
            parts[int(k)] = int(person)
    missing = [k for k in range(len(identities)) if k not in parts]
    if not missing:
        return [parts[k] for k in range(len(identities))], []
    free = [person for person in _main(people) if person not in parts.values()]
    if replace or not swap or len(free) != len(missing):
        raise _unclear([identities[k].name for k in missing], free, bool(replace), swap)
    free.sort(key=lambda person: float(seen.box[people[person]][:, 0::2].mean()))
    parts |= dict(zip(missing, free, strict=True))
    return [parts[k] for k in range(len(identities))], [_swapped(identities, missing)]


def _likeness(reference: Tensor, faces: Tensor) -> float:
    """Mean similarity of a person's most similar faces to the reference."""
    scores = (faces.double() * reference.double()).sum(-1)
    return float(scores.topk(min(_SURE, len(scores))).values.mean())


def _main(people: list[Tensor]) -> list[int]:
    """Numbers of those who are seen often enough to have a part."""
    least = _MAIN * len(people[0])
    return [number for number, rows in enumerate(people) if len(rows) >= least]


def _swapped(identities: Sequence[Identity], missing: Sequence[int]) -> str:
    names = ", ".join(identities[k].name for k in missing)
    if len(missing) == 1:
        return f"nobody in the clip resembles {names}; the one person who is left is given that face"
    return f"nobody in the clip resembles {names}; {len(missing)} people are given those faces, from left to right"


def _unclear(names: Sequence[str], free: Sequence[int], replace: bool, swap: bool) -> InputError:
    who = ", ".join(names)
    if replace:
        return InputError(
            f"Nobody in the clip resembles the picture of whom to replace by {who}. Give another."
        )
    if not swap:
        return InputError(f"Nobody in the clip resembles {who}. Give a picture of somebody who is in it.")
    count = {0: "nobody else is", 1: "1 other person is"}.get(len(free), f"{len(free)} people are")
    return InputError(
        f"Nobody in the clip resembles {who}, and {count} seen. "
        "Say whose face is meant with --replace PICTURE, a picture of that person as the clip shows them."
    )


def _exemplars(rows: Tensor, count: int = EXEMPLARS) -> Tensor:
    """(≤ ``count``, D) of ``rows``, each as far as can be from those before it (Gonzalez 1985); the first is the most
    typical one."""
    wide = rows.double()
    chosen = [int((wide @ wide.mean(0)).argmax())]
    nearest = wide @ wide[chosen[0]]
    while len(chosen) < min(count, len(rows)):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, wide @ wide[chosen[-1]])
    return rows[chosen].clone()
