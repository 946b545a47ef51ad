"""What the pipeline's loop asks of its stages, whoever implements them.

The real ones come from :class:`facelock.assembly.Assembly`; the tests put toys in their place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from facelock.protocols import Backbone, Upscaler
from facelock.types import AlignRecord, Identity, LedgerRow, Thresholds

if TYPE_CHECKING:
    from torch import Tensor


class Locker(Protocol):
    """Stage 2 as the loop sees it: :class:`facelock.lock_loop.Locker`."""

    def lock(
        self, frames: Tensor, identities: Sequence[Identity], *, start: int = 0
    ) -> tuple[Tensor, Sequence[AlignRecord]]:
        """(T, 3, H, W) → the same shape, and what was done to each face."""
        ...


class Restorer(Protocol):
    """Stage 3 as the loop sees it: :class:`facelock.restore_loop.RestoreLoop`."""

    def restore(
        self, frames: Tensor, identities: Sequence[Identity], *, start: int = 0
    ) -> tuple[Tensor, Sequence[AlignRecord]]:
        """(T, 3, H, W) → (T, 3, H·scale, W·scale), and what was done to each face."""
        ...


class Judge(Protocol):
    """The measure that no stage optimises."""

    @property
    def thresholds(self) -> Thresholds:
        """Of its encoder."""
        ...

    @property
    def encoder(self) -> str:
        """Its encoder's id."""
        ...

    def measure(
        self, frames: Tensor, identities: Sequence[Identity], *, start: int = 0, before: Tensor | None = None
    ) -> Sequence[LedgerRow]:
        """A row per frame and character; ``before`` (3, H, W) is the clip's frame before the first."""
        ...

    def thumbnails(
        self, frames: Tensor, rows: Sequence[LedgerRow], *, start: int = 0, at: Collection[int] | None = None
    ) -> Mapping[int, str]:
        """Clip frame index → base64 JPEG of a face, for the frames ``at`` or a few of its own choice."""
        ...


class Parts(Protocol):
    """The stages of one pipeline, loaded or loading on first use: :class:`facelock.assembly.Assembly`."""

    @property
    def backbone(self) -> Backbone: ...
    @property
    def locker(self) -> Locker: ...
    @property
    def restorer(self) -> Restorer: ...
    @property
    def upscaler(self) -> Upscaler: ...
    @property
    def judge(self) -> Judge: ...
    @property
    def device(self) -> str:
        """What it all runs on: ``"cpu"``, ``"cuda:0"``."""
        ...

    @property
    def frames_device(self) -> str:
        """Where frames lie between the stages: ``device``, or ``"cpu"`` where that is asked for or has to be."""
        ...

    @property
    def weights(self) -> Mapping[str, str]:
        """Role of each model → sha256 of its weights."""
        ...

    def identity(self, reference: Any, *, name: str | None, face: int | None) -> Identity:
        """Read one reference and embed it with every encoder in use."""
        ...
