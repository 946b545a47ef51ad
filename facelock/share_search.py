"""How much of a restored face is kept: a search per face, with two answers to each try.

Share 0 is the plainly enlarged face, share 1 the restored one. Each try is pasted, embedded and compared with its
frame by :class:`facelock.restore_loop.RestoreLoop`; the searches here only say what to try next. A face's search
looks at that face's figures alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Search(Protocol):
    """What is tried next, for all faces of a chunk at once."""

    def next(self) -> tuple[Tensor, Tensor]:
        """The faces to try (n,) int64 and the share of each (n,) in (0, 1]; none when the search is over."""
        ...

    def tell(self, faces: Tensor, score: Tensor, agrees: Tensor, best: Tensor) -> Tensor:
        """Take the answers for some of the faces that :meth:`next` named, and return which to keep, (n,) bool.

        ``score`` (n,) are their similarities with that share, ``agrees`` (n,) whether they are still consistent with
        their frames, ``best`` (n,) the similarities of what is kept so far.
        """
        ...


class Ladder:
    """Fixed shares, strongest first; a face is done at the first one that helps it and reaches the target."""

    def __init__(self, shares: Sequence[float], plain: Tensor, *, target: float) -> None:
        """``plain`` (N,) are the similarities of the plainly enlarged faces."""
        self._shares, self._target = tuple(shares), target
        self._open = torch.ones(len(plain), dtype=torch.bool)
        self._step = -1

    def next(self) -> tuple[Tensor, Tensor]:
        """See :class:`Search`."""
        self._step += 1
        if self._step >= len(self._shares):
            return torch.zeros(0, dtype=torch.long), torch.zeros(0)
        faces = torch.nonzero(self._open).flatten()
        return faces, torch.full((len(faces),), self._shares[self._step])

    def tell(self, faces: Tensor, score: Tensor, agrees: Tensor, best: Tensor) -> Tensor:
        """See :class:`Search`."""
        better = agrees & (score > best)
        self._open[faces] = ~(better & (score >= self._target))
        return better


class Bisection:
    """The largest share at which identity and data consistency both hold, by a fixed number of halvings.

    Identity holds at similarity ≥ max(``target``, plain − ``tolerance``). The whole restored face is tried first;
    where it fails, ``steps`` halvings of (0, 1) follow, so that the share found lies less than 2 ** -steps below the
    largest one, provided that both measures are monotone in the share. A share that breaks consistency is too large;
    one that is consistent but not the character is too large if it scores below the plain face, and too small if it
    scores above it. Where no share is found, the best one that is consistent and better than the plain face is kept,
    short of the target; where there is none either, the plain face stays.
    """

    def __init__(self, plain: Tensor, *, target: float, tolerance: float, steps: int) -> None:
        """``plain`` (N,) are the similarities of the plainly enlarged faces."""
        self._plain, self._bound = plain.clone(), (plain - tolerance).clamp(min=target)
        self._low, self._high = torch.zeros(len(plain)), torch.ones(len(plain))
        self._share = torch.ones(len(plain))
        self._open = torch.ones(len(plain), dtype=torch.bool)
        self._found = torch.zeros(len(plain), dtype=torch.bool)
        self._left = steps + 1

    def next(self) -> tuple[Tensor, Tensor]:
        """See :class:`Search`."""
        self._left -= 1
        faces = torch.nonzero(self._open).flatten() if self._left >= 0 else torch.zeros(0, dtype=torch.long)
        return faces, self._share[faces]

    def tell(self, faces: Tensor, score: Tensor, agrees: Tensor, best: Tensor) -> Tensor:
        """See :class:`Search`."""
        share, found = self._share[faces], self._found[faces]
        holds = agrees & (score >= self._bound[faces])
        rises = agrees & (score > self._plain[faces])
        up = holds | (rises & ~found)
        self._low[faces] = torch.where(up, share, self._low[faces])
        self._high[faces] = torch.where(up, self._high[faces], share)
        self._share[faces] = (self._low[faces] + self._high[faces]) / 2
        self._found[faces] = found | holds
        self._open[faces] = ~((share == 1) & up)
        return holds | (rises & ~found & (score > best))


def search_for(
    kind: str, plain: Tensor, *, ladder: Sequence[float], target: float, tolerance: float, steps: int
) -> Search:
    """The search ``kind``, ``"ladder"`` or ``"bisect"``, for faces whose plain similarities are ``plain`` (N,)."""
    if kind == "ladder":
        return Ladder(ladder, plain, target=target)
    return Bisection(plain, target=target, tolerance=tolerance, steps=steps)
