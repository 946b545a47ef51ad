"""Stage 3: the frame enlarged, then each face restored under two constraints, or left as it was enlarged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from facelock.closed_loop import Cast, ClosedLoop, Work, keep, similarity, spare
from facelock.geometry import crop_window, paste_onto
from facelock.protocols import FacePack, FaceRestorer, Upscaler
from facelock.share_search import Search, search_for
from facelock.types import AlignRecord, Identity

logger = logging.getLogger(__name__)

AT_ONCE = 16
"""Candidates in hand at once: each is a whole frame in its final size. A face's bits do not depend on it."""


@dataclass(frozen=True)
class Patch:
    """Where a face's crop lies in the locked frame, and how much of each pixel there is the crop's."""

    rows: slice
    columns: slice
    weight: Tensor
    """(3, h, w) float64 in [0, 1]."""


class RestoreLoop(ClosedLoop):
    """Stage 3: the frame enlarged, then each face restored under two constraints.

    **Identity**: the restored face must match the reference at least as well as ``target``, or better than the plainly
    enlarged one. **Data consistency**: scaled down again, it must agree with the locked frame (RMS ≤ ``consistency``).
    How much of the restored face is kept is searched per face (:mod:`facelock.share_search`): down a ``ladder`` of
    shares, strongest first, or by bisection. Where no share satisfies both, the plainly enlarged face stays, and the
    record says so (rung -1, share 0).
    """

    def __init__(
        self,
        pack: FacePack,
        upscaler: Upscaler,
        restorer: FaceRestorer | None,
        *,
        ladder: Sequence[float],
        target: float,
        consistency: float,
        search: str = "ladder",
        tolerance: float = 0.0,
        steps: int = 5,
        columns: int = 1,
    ) -> None:
        """Without a ``restorer`` the frames are enlarged and measured only.

        ``search`` is ``"ladder"`` or ``"bisect"``. ``tolerance`` (how much similarity a face above the target may
        lose) and ``steps`` (halvings) are the bisection's. A restorer with a true ``graded`` is asked for each share
        (``restore_by``), any other for its restored faces once, which are then blended with the plain ones.
        ``columns`` is the lock's.
        """
        crop = restorer.crop if restorer else pack.encoder.crop
        workers = [restorer] if restorer else []
        super().__init__(pack, crop, ladder if restorer else (), target, *workers, columns=columns)
        self.upscaler, self.restorer, self.consistency = upscaler, restorer, consistency
        self.search, self.tolerance, self.steps = search, tolerance, steps

    def restore(
        self, frames: Tensor, identities: Sequence[Identity], *, start: int = 0, cast: Cast | None = None
    ) -> tuple[Tensor, list[AlignRecord]]:
        """(T, 3, H, W) → (T, 3, H·scale, W·scale) in [0, 1], and a record per face."""
        work = self.take(self.upscaler.upscale(frames), identities, cast)
        if self.restorer and len(work.faces):
            everyone = torch.arange(len(work.faces))
            self.each(everyone, partial(self._search, work, frames, self.restorer))
            self.count_failed(work, "the restorer")
        return spare(self.finish(work), work), work.records(identities, self.target, start, consistency=True)

    def _search(self, work: Work, frames: Tensor, restorer: FaceRestorer, trying: Tensor) -> None:
        """Try shares for the faces ``trying`` until the search is over; the best of each is kept in ``work``."""
        plain, reference = work.crops[trying], work.reference[trying]
        restored = plain if getattr(restorer, "graded", False) else restorer.restore(plain, reference)
        patches = self._patches(work, trying)
        search = self._searching(work.score[trying])
        rung, (faces, shares) = 0, search.next()
        while len(faces):
            for rows, share in zip(faces.split(AT_ONCE), shares.split(AT_ONCE), strict=True):
                index = trying[rows]
                crops, finite = self._candidates(work, restored[rows], index, share)
                shown = self.paste(work, crops, index)
                score = similarity(self.embed(work, shown, index), reference[rows])
                distance = self._distance(shown, frames, work.faces.frame[index], [patches[i] for i in rows])
                good = search.tell(rows, score, finite & (distance <= self.consistency), work.score[index])
                keep(work, index[good], crops[good], shown[good], score[good], rung)
                work.consistency[index[good]], work.share[index[good]] = distance[good], share[good]
                work.failed[index[~finite]] = True
            rung, (faces, shares) = rung + 1, search.next()

    def _searching(self, plain: Tensor) -> Search:
        options = {
            "ladder": self.ladder,
            "target": self.target,
            "tolerance": self.tolerance,
            "steps": self.steps,
        }
        return search_for(self.search, plain, **options)  # type: ignore[arg-type]

    def _candidates(
        self, work: Work, restored: Tensor, index: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(n, 3, S, S) crops of the faces ``index`` with ``share`` (n,) of ``restored`` (n, 3, S, S) in them, and (n,)
        whether each is made of numbers; where not, it is the plain crop, which is not to be kept."""
        plain = work.crops[index]
        if getattr(self.restorer, "graded", False):
            crops = self.restorer.restore_by(plain, work.reference[index], share)  # type: ignore[union-attr]
        else:
            crops = plain + share.to(plain)[:, None, None, None] * (restored - plain)
        finite = crops.isfinite().flatten(1).all(1)
        return torch.where(finite[:, None, None, None], crops, plain), finite.cpu()

    def _patches(self, work: Work, faces: Tensor) -> list[Patch]:
        """One per face of ``faces``, in the pixels of the locked frames."""
        blank, white = torch.zeros_like(work.frames[:1]), torch.ones_like(work.crops[:1])
        found, scale = [], self.upscaler.scale
        for matrix in work.matrices[faces]:
            rows, columns = _square(matrix, self.crop.size, blank.shape[-2:], scale)
            paste_onto(blank, torch.zeros(1, dtype=torch.long), matrix[None], white, self.mask)
            under = blank[..., _larger(rows, scale), _larger(columns, scale)]
            found.append(Patch(rows, columns, functional.avg_pool2d(under, scale)[0].double()))
            under.zero_()
        return found

    def _distance(self, shown: Tensor, frames: Tensor, frame: Tensor, patches: Sequence[Patch]) -> Tensor:
        """(n,) RMS in [0, 1] between each candidate's frame, scaled down, and the locked frame, under the mask; on the
        CPU."""
        scale, out = self.upscaler.scale, []
        for large, index, at in zip(shown, frame.tolist(), patches, strict=True):
            low = functional.avg_pool2d(large[:, _larger(at.rows, scale), _larger(at.columns, scale)], scale)
            error = (low.double() - frames[index, :, at.rows, at.columns].double()).square() * at.weight
            out.append((error.sum() / at.weight.sum().clamp(min=1e-9)).sqrt())
        return torch.stack(out).float().cpu()


def _square(matrix: Tensor, size: int, limits: Sequence[int], scale: int) -> tuple[slice, slice]:
    """Rows and columns of the locked frame under a crop of ``size`` in the frame enlarged by ``scale``; one pixel of
    them for a face outside of the frame. ``limits`` is the enlarged frame's (height, width)."""
    left, top, width, height = crop_window(matrix, size, limits)
    return _span(top, height, limits[0], scale), _span(left, width, limits[1], scale)


def _span(start: int, length: int, limit: int, scale: int) -> slice:
    first = min(start // scale, limit // scale - 1)
    return slice(first, max(-(-(start + length) // scale), first + 1))


def _larger(span: slice, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)
