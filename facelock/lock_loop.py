"""Stage 2: every face aligned to its reference identity, measured as the frame shows it, looked at twice if need be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from facelock.closed_loop import Cast, ClosedLoop, Work, keep, similarity, spare
from facelock.geometry import paste_onto
from facelock.protocols import Aligner, FacePack
from facelock.types import AlignRecord, Identity


class Locker(ClosedLoop):
    """Stage 2: every face aligned to its reference identity, at the first strength that reaches the target."""

    def __init__(
        self, pack: FacePack, aligner: Aligner, *, ladder: Sequence[float], target: float, columns: int = 1
    ) -> None:
        """``ladder`` holds the strengths to try, ``target`` the similarity that ends the climb; ``columns`` is how many
        people the blueprint draws side by side, each in a column of its own."""
        super().__init__(pack, aligner.crop, ladder, target, aligner, columns=columns)
        self.aligner = aligner
        self.only_changes = bool(getattr(aligner, "only_changes", False))
        self.takes_strength = bool(getattr(aligner, "takes_strength", False))

    def lock(
        self, frames: Tensor, identities: Sequence[Identity], *, start: int = 0, cast: Cast | None = None
    ) -> tuple[Tensor, list[AlignRecord]]:
        """Lock (T, 3, H, W) frames in [0, 1] to ``identities``; ``start`` is the clip's index of the first.

        With a ``cast`` only faces of the people in it are touched, whoever else is seen. Without one, where a face is
        not even recognised afterwards, its frame is looked at a second time.

        Returns the frames and a record per face that stands for a character. Frames without a face come back bit
        for bit, and so does every pixel outside of the faces' own squares.
        """
        work = self._climbed(frames, identities, cast)
        locked = spare(self.finish(work), work)
        records = work.records(identities, self.target, start, consistency=False)
        if cast is None:
            locked, records = self._second_look(work, locked, records, identities, start)
        return locked, records

    def _climbed(self, frames: Tensor, identities: Sequence[Identity], cast: Cast | None = None) -> Work:
        """The faces of ``frames``, each at the first strength that reaches the target, or at its best."""
        work = self.take(frames, identities, cast)
        climbing = torch.arange(len(work.faces))
        for rung in range(len(self.ladder)):
            if not len(climbing):
                break
            self.each(climbing, partial(self._climb, work, identities, rung))
            climbing = climbing[work.score[climbing] < self.target]
        self.count_failed(work, "the aligner")
        return work

    def _second_look(
        self,
        work: Work,
        locked: Tensor,
        records: list[AlignRecord],
        identities: Sequence[Identity],
        start: int,
    ) -> tuple[Tensor, list[AlignRecord]]:
        """Frames with a face that is not recognised, aligned as it is and then found, aligned and measured anew.

        Landmarks of a smeared face lie aside: it was cut out askew, and a good candidate that is measured at them looks
        bad. A frame is exchanged only where its least alike face gains by the second look.
        """
        poor = torch.nonzero((work.score < self.pack.encoder.thresholds.far_1e3) & ~work.failed).flatten()
        if not len(poor):
            return locked, records
        at, drafts = self._drafts(work, locked, poor, identities)
        again = self._climbed(drafts, identities)
        old, new = _least(work, len(locked))[at], _least(again, len(at))
        gains = torch.nonzero((new[:, 0] >= old[:, 0]) & (new[:, 1] > old[:, 1])).flatten()
        locked[at[gains]] = self.finish(again)[gains]
        frames = {row: start + int(at[row]) for row in gains.tolist()}
        found = {
            (frames[r.frame], r.character): r
            for r in again.records(identities, self.target, 0, consistency=False)
            if r.frame in frames
        }
        return locked, [_updated(r, found.get((r.frame, r.character))) for r in records]

    def _drafts(
        self, work: Work, locked: Tensor, poor: Tensor, identities: Sequence[Identity]
    ) -> tuple[Tensor, Tensor]:
        """Which frames the faces ``poor`` are in, (n,), and these frames with them aligned, whatever that is worth."""
        at = work.faces.frame[poor].unique()
        whose = [identities[k] for k in work.who[poor].tolist()]
        before = work.crops[poor]
        crops = self.aligner.align(before, work.reference[poor], self.ladder[0], references=whose)
        crops = torch.where(crops.isfinite(), crops, before)
        drafts, place = locked[at], torch.searchsorted(at, work.faces.frame[poor])
        paste_onto(drafts, place, work.matrices[poor], crops, self.share(before, crops))
        return at, drafts

    def _climb(self, work: Work, identities: Sequence[Identity], rung: int, index: Tensor) -> None:
        """Align the faces ``index`` at one strength, and keep what became better."""
        strength = self.ladder[rung]
        wanted = toward(work.own[index], work.reference[index], 1.0 if self.takes_strength else strength)
        whose = [identities[k] for k in work.who[index].tolist()]
        crops = self.aligner.align(work.crops[index], wanted, strength, references=whose)
        finite = (
            crops.isfinite().flatten(1).all(1).cpu()
        )  # one bit a face: scores and places are on the CPU too
        if not bool(finite.all()):
            work.failed[index[~finite]] = True
            crops = torch.where(finite[:, None, None, None].to(crops.device), crops, work.crops[index])
        shown = self.paste(work, crops, index)
        score = similarity(self.embed(work, shown, index), work.reference[index])
        better = finite & (score > work.score[index])
        keep(work, index[better], crops[better], shown[better], score[better], rung)


def toward(own: Tensor, reference: Tensor, strength: float) -> Tensor:
    """The embedding to align to: the reference at strength 1, short of it below, beyond it above; unit rows."""
    if strength == 1.0:
        return reference
    return torch.stack(
        [functional.normalize(a + strength * (b - a), dim=0) for a, b in zip(own, reference, strict=True)]
    )


def _least(work: Work, frames: int) -> Tensor:
    """(frames, 2) float32: how many faces each frame has, and the similarity of the least alike."""
    count = torch.bincount(work.faces.frame, minlength=frames).float()
    least = torch.full((frames,), math.inf).scatter_reduce(0, work.faces.frame, work.score.float(), "amin")
    return torch.stack([count, least], 1)


def _updated(record: AlignRecord, second: AlignRecord | None) -> AlignRecord:
    """A face's record after a second look; its first similarity stays."""
    if second is None:
        return record
    return replace(record, after=second.after, rung=max(second.rung, 0), met=second.met)
