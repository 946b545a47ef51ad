"""The closed loop that lock and restore share: change a face, measure it, try harder, keep the best.

Each face of each frame is worked on by itself, against one fixed reference identity: no frame sees another, so no
error can accumulate. Networks run in batches of one fixed, padded shape, so a face's bits do not depend on which
other faces came along: ``lock(frames[order]) == lock(frames)[order]``, and one frame alone equals it in its clip.

What is measured is what the frame will show: a candidate is pasted back, cut out again and embedded.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from facelock.geometry import paste_onto, similarity_from_landmarks, soft_mask, warp_crops
from facelock.identity import embedding_of
from facelock.lanes import side_by_side
from facelock.protocols import FacePack
from facelock.runtime import BUSY_BATCH
from facelock.types import AlignRecord, CropSpec, Faces, Identity, Thresholds

logger = logging.getLogger(__name__)

EDGE = 0.22
"""Fading part of a crop's mask, from the middle to the border."""
GROUP = BUSY_BATCH
"""Frames or faces that a lane takes at once: one batch of the networks', and few enough that all lanes end together."""


@dataclass(frozen=True)
class Cast:
    """Who is who in a clip: faces seen in it, fixed for all of its frames (``facelock.footage.people`` finds them)."""

    own: tuple[Tensor, ...]
    """Per character (E, D) unit rows: the person that is to have its face, as it looks here and there in the clip."""
    others: Tensor
    """(B, D) unit rows: everybody else. A face nearest to one of these is never touched."""
    floor: float
    """Similarity below which a face belongs to nobody known."""


@dataclass
class Work:
    """The N faces in hand: where they are, whose they should be, and the best of each so far."""

    frames: Tensor
    faces: Faces
    who: Tensor
    """(N,) index of the identity."""
    reference: Tensor
    """(N, D) its embedding."""
    own: Tensor
    """(N, D) embedding of the face as it came."""
    matrices: Tensor
    crops: Tensor
    """(N, 3, S, S) as they came."""
    best: Tensor
    """(N, 3, S, S) as they are kept."""
    score: Tensor
    """(N,) similarity of the best."""
    rung: Tensor
    """(N,) index of the strength kept, -1 for none."""
    consistency: Tensor
    """(N,) RMS of the best against its input; zero where nothing was asked."""
    share: Tensor
    """(N,) share of the restored face in the best; zero where nothing was asked."""
    alone: Tensor
    """(N,) whether the face is the only one in hand of its frame: its candidate's frame is then the result."""
    result: Tensor
    """(T, 3, H, W) the frames with the best of every face that is alone."""
    failed: Tensor
    """(N,) whether an attempt at the face gave NaN or infinity, which is never kept."""
    spared: Faces | None = None
    """Other people's faces, whose pixels stay whatever is pasted beside them; None: not asked for."""

    def records(
        self, identities: Sequence[Identity], target: float, start: int, *, consistency: bool
    ) -> list[AlignRecord]:
        """One record per face, in the order of the frames."""
        before = similarity(self.own, self.reference)
        return [
            AlignRecord(
                frame=start + int(self.faces.frame[i]),
                character=identities[int(self.who[i])].name,
                before=float(before[i]),
                after=float(self.score[i]),
                rung=int(self.rung[i]),
                met=bool(self.score[i] >= target),
                consistency=float(self.consistency[i]) if consistency else None,
                share=float(self.share[i]) if consistency else None,
            )
            for i in range(len(self.faces))
        ]


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of unit rows (N, D), summed in float64 so that the order of summation does not show."""
    return (
        torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).float()
        if len(a)
        else a.new_zeros(0)
    )


def likeness_bar(thresholds: Thresholds, people: int, columns: int) -> float:
    """Similarity from which a face is told by its likeness (``strangers`` of :func:`assign`): FAR 1e-2.

    Infinite where the blueprint draws each of the ``people`` in a column of its own (``columns``): there the place is
    sure, and a stranger of its first window who happens to be like the other character would get that one's face.
    """
    return math.inf if people == columns > 1 else thresholds.far_1e2


def assign(
    faces: Faces, own: Tensor, references: Tensor, strangers: float, width: int, cast: Cast | None = None
) -> tuple[Tensor, Tensor]:
    """Which face is which character, frame by frame: indices of faces and of identities, both (N,).

    By similarity (optimal assignment). A face that resembles nobody yet (similarity below ``strangers``) is told by
    where it is: characters stand from left to right in the order of the identities, each in a column of the frame.
    Where no face resembles anyone, the largest are taken. With a ``cast`` a face is somebody's
    only if it is nearer to a character's reference or exemplars than to anybody else's, and above the floor.
    """
    chosen: list[tuple[int, int]] = []
    for frame in sorted(set(faces.frame.tolist())):
        here = torch.nonzero(faces.frame == frame).flatten()
        if cast is not None:
            chosen += _of_cast(own[here], here.tolist(), references, cast)
            continue
        scores = torch.stack([similarity(own[here], r.expand(len(here), -1)) for r in references], 1)
        chosen += _of_frame(faces.box[here], here.tolist(), scores, strangers, width)
    if not chosen:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    pairs = torch.tensor(chosen)
    return pairs[:, 0], pairs[:, 1]


def _of_frame(
    box: Tensor, here: list[int], scores: Tensor, strangers: float, width: int
) -> list[tuple[int, int]]:
    known, people = scores >= strangers, scores.shape[1]
    kept = torch.arange(len(here))
    if not known.any():
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        kept = area.argsort(descending=True, stable=True)[:people].sort().values
    column = (torch.arange(people) + 0.5) * width / people
    away = (((box[:, 0] + box[:, 2])[:, None] / 2 - column) / width).square()
    # a likeness counts for more than any place, and a place only among those who are like nobody
    worth = torch.where(known, 2 + scores, -away).double()[kept]
    rows, columns = linear_sum_assignment(-worth.numpy())
    pairs = zip(kept[torch.from_numpy(rows)].tolist(), columns.tolist(), strict=True)
    return [(here[face], k) for face, k in sorted(pairs)]


def _of_cast(own: Tensor, here: list[int], references: Tensor, cast: Cast) -> list[tuple[int, int]]:
    known = [torch.cat([row[None], seen]) for row, seen in zip(references, cast.own, strict=True)]
    scores = torch.stack([torch.stack([_nearest(face, rows) for rows in known]) for face in own])
    others = torch.stack([_nearest(face, cast.others) for face in own])
    allowed = (scores >= cast.floor) & (scores > others[:, None])
    worth = torch.where(allowed, scores, -4.0)
    rows, columns = linear_sum_assignment(-worth.numpy())
    return [
        (here[face], k) for face, k in zip(rows.tolist(), columns.tolist(), strict=True) if allowed[face, k]
    ]


def _nearest(face: Tensor, rows: Tensor) -> Tensor:
    """The best cosine of one face (D,) to unit ``rows`` (E, D), float64; -2 where there are none."""
    if not len(rows):
        return torch.tensor(-2.0, dtype=torch.float64)
    return (face.double() * rows.double()).sum(-1).amax()


def _bystanders(faces: Faces, index: Tensor) -> Faces:
    """Faces that nobody was given, but second finds of a face that somebody was."""
    left = torch.ones(len(faces), dtype=torch.bool)
    left[index] = False
    for i in torch.nonzero(left).flatten().tolist():
        same = index[faces.frame[index] == faces.frame[i]]
        x, y = (faces.box[i, :2] + faces.box[i, 2:]) / 2
        inside = [
            bool((box[0] <= x) & (x <= box[2]) & (box[1] <= y) & (y <= box[3])) for box in faces.box[same]
        ]
        left[i] = not any(inside)
    return faces.select(left)


def runs_beside(part: object) -> bool:
    """Whether calls of a pack, aligner or restorer are worth making from several threads at once, and may be."""
    return bool(getattr(part, "side_by_side", False))


def joined(works: Sequence[Work], frames: Tensor) -> Work:
    """The work on consecutive groups of ``frames`` as one; the frames themselves, which may take gigabytes, are not
    copied."""
    if len(works) == 1:
        return works[0]
    lengths = [len(work.frames) for work in works]
    spared = [work.spared for work in works if work.spared is not None]
    columns = {
        name: torch.cat([getattr(work, name) for work in works])
        for name in (each.name for each in fields(Work))
        if name not in ("frames", "faces", "spared")
    }
    return Work(
        frames=frames,
        faces=Faces.together([work.faces for work in works], lengths),
        spared=Faces.together(spared, lengths) if spared else None,
        **columns,
    )


class ClosedLoop:
    """What lock and restore have in common: find, assign, cut, paste, embed."""

    def __init__(
        self,
        pack: FacePack,
        crop: CropSpec,
        ladder: Sequence[float],
        target: float,
        *workers: object,
        columns: int = 1,
    ) -> None:
        """``workers`` are the networks besides ``pack`` that attempts call; ``columns`` as for :func:`likeness_bar`."""
        self.pack, self.crop, self.ladder, self.target = pack, crop, tuple(ladder), target
        self.columns = columns
        self.side_by_side = all(runs_beside(part) for part in (pack, *workers))
        """Whether faces are worked on some beside others, and the loop may be called from several threads at once."""
        self.mask = soft_mask(crop.size, EDGE)
        self.only_changes = False
        self.not_finite = 0
        """Faces so far that were left as they came because what was made of them is not finite."""

    def count_failed(self, work: Work, what: str) -> None:
        """Count the faces of ``work`` that failed and were left as they came; the first time, say so."""
        failed = int((work.failed & (work.rung < 0)).sum())
        if failed and not self.not_finite:
            logger.warning(
                "%s gave NaN or infinity for %d faces: they stay as they came, and so will others. The report counts "
                "them as left as they were.",
                what,
                failed,
            )
        self.not_finite += failed

    def take(self, frames: Tensor, identities: Sequence[Identity], cast: Cast | None = None) -> Work:
        """Detect, embed, assign to characters, cut out: some frames beside others, where the pack is made for it."""
        encoder = self.pack.encoder
        references = torch.stack([embedding_of(identity, encoder.id) for identity in identities])
        groups = frames.split(GROUP) if len(frames) and runs_beside(self.pack) else [frames]
        return joined(side_by_side(lambda group: self._take(group, references, cast), groups), frames)

    def _take(self, frames: Tensor, references: Tensor, cast: Cast | None) -> Work:
        faces, encoder = self.pack.detect(frames), self.pack.encoder
        own = self.pack.embed(frames, faces)
        strangers = likeness_bar(encoder.thresholds, len(references), self.columns)
        width = int(frames.shape[-1])
        index, who = assign(faces, own, references, strangers, width, cast)
        spared = None if cast is None else _bystanders(faces, index)
        faces, own = faces.select(index), own[index]
        matrices = similarity_from_landmarks(faces.landmarks, self.crop)
        crops = warp_crops(frames, faces.frame, matrices, self.crop.size)
        count = len(faces)
        per_frame = torch.bincount(faces.frame, minlength=len(frames))
        return Work(
            frames,
            faces,
            who,
            references[who],
            own,
            matrices,
            crops,
            crops.clone(),
            similarity(own, references[who]),
            torch.full((count,), -1),
            torch.zeros(count),
            torch.zeros(count),
            per_frame[faces.frame] == 1,
            frames.clone(),
            torch.zeros(count, dtype=torch.bool),
            spared=spared,
        )

    def each(self, index: Tensor, attempt: Callable[[Tensor], None]) -> None:
        """``attempt`` the faces ``index`` (n,), some beside others where pack and workers are made for it.

        An attempt writes to the rows of its own faces only.
        """
        side_by_side(attempt, index.split(GROUP) if len(index) and self.side_by_side else [index])

    def paste(self, work: Work, crops: Tensor, index: Tensor) -> Tensor:
        """One new frame per face of ``index``: its own frame with its candidate in place, (n, 3, H, W)."""
        if not len(index):
            return work.frames[:0]
        own = work.frames[work.faces.frame[index]]
        mask = self.share(work.crops[index], crops)
        paste_onto(own, torch.arange(len(index)), work.matrices[index], crops, mask)
        return own

    def share(self, before: Tensor, after: Tensor) -> Tensor:
        """The part of the crops (N, 3, S, S) that is pasted: (S, S), or (N, S, S) for what differs only."""
        return self.mask.to(after) * changed(before, after) if self.only_changes else self.mask

    def embed(self, work: Work, shown: Tensor, index: Tensor) -> Tensor:
        """Embeddings of the faces ``index`` in frames of their own, at the landmarks where they were found."""
        faces = work.faces.select(index)
        own = Faces(torch.arange(len(index)), faces.box, faces.landmarks, faces.score)
        return self.pack.embed(shown, own)

    def finish(self, work: Work) -> Tensor:
        """The frames with the best of every face; a face that nothing improved keeps its pixels."""
        left = torch.nonzero((work.rung >= 0) & ~work.alone).flatten()
        if len(left):
            where, mask = work.faces.frame[left], self.share(work.crops[left], work.best[left])
            paste_onto(work.result, where, work.matrices[left], work.best[left], mask)
        return work.result


def spare(frames: Tensor, work: Work) -> Tensor:
    """``frames`` with the pixels of other people's faces as they came, whatever was pasted beside them."""
    if work.spared is None or not len(work.spared):
        return frames
    frames, (height, width) = frames.clone(), frames.shape[-2:]
    for frame, box in zip(work.spared.frame.tolist(), work.spared.box, strict=True):
        left, right = box[0::2].clamp(0, width).tolist()
        top, bottom = box[1::2].clamp(0, height).tolist()
        rows, columns = slice(int(top), math.ceil(bottom)), slice(int(left), math.ceil(right))
        frames[frame, :, rows, columns] = work.frames[frame, :, rows, columns]
    return frames


def changed(before: Tensor, after: Tensor) -> Tensor:
    """(N, S, S) in [0, 1]: 1 where two crops (N, 3, S, S) differ, fading to 0 within four pixels of it."""
    differs = (before != after).any(1, keepdim=True).float()
    near = functional.max_pool2d(differs, 5, 1, 2)
    return functional.avg_pool2d(near, 5, 1, 2)[:, 0]


def keep(work: Work, index: Tensor, crops: Tensor, shown: Tensor, score: Tensor, rung: int) -> None:
    """Remember better candidates of the faces ``index``, and the frames that show them."""
    work.best[index], work.score[index], work.rung[index] = crops, score, rung
    alone = work.alone[index]
    work.result[work.faces.frame[index[alone]]] = shown[alone]
