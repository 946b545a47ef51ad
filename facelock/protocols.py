"""The verbs of FaceLock: what a backbone, an aligner, an upscaler, a restorer and a face pack do.

Frames and crops come in on any device and go out on the same one, a backbone's on its own: in a pipeline they stay on
its device from the decoder to the encoder. Faces, landmarks, embeddings and similarities lie on the CPU.

A pack, an aligner or a restorer that may be called from several threads at once, and whose calls take one core each, as
those of small networks on a CPU do, says so with an attribute ``side_by_side = True``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from facelock.types import CropSpec, Faces, Identity, Sound, Thresholds

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Backbone(Protocol):
    """Stage 1: writes low-resolution frames, chunk by chunk, for any length."""

    size: tuple[int, int]
    """(height, width) of its frames in pixels."""
    fps: float
    chunk: int
    """New frames per call of :meth:`extend` when a context is given."""
    first_chunk: int
    """New frames of the first call, which has no context."""
    context: int
    """Frames it continues from."""

    def extend(
        self, prompt: str, context: Tensor | None, *, seed: int, references: Sequence[Identity] = ()
    ) -> Tensor:
        """Return the next frames, (T, 3, H, W) float32 in [0, 1], T = ``chunk`` or ``first_chunk``, on its device.

        ``context`` is (self.context, 3, H, W), the locked tail, on any device; None for the first chunk. ``seed`` is
        this chunk's own seed: the same arguments give the same bytes on the same device.
        """
        ...


@runtime_checkable
class Guide(Protocol):
    """Edits what stage 1 predicts while it denoises, toward the references' faces (``facelock.guidance``)."""

    def begin(self, references: Sequence[Identity]) -> None:
        """Say whose faces the next window is to show; a backbone calls it before it denoises."""
        ...

    def __call__(self, x0: Tensor, sigma: float, step: int, known: int) -> Tensor:
        """The edited prediction of a window's clean latents, of the same shape.

        ``x0`` is (1, z, F, h, w) float32, normalised; ``sigma`` in [0, 1] the step's noise level; ``step`` its index,
        from 0; the first ``known`` latents are the given past, and never changed. Where there is nothing to do,
        the latents keep their bits.
        """
        ...


@runtime_checkable
class Aligner(Protocol):
    """Stage 2: gives crops the reference's identity. A pure function of each crop.

    One whose crops keep their bits where nothing was to be done may say so with an attribute ``only_changes = True``:
    then only what differs is pasted, and the rest of the face's square keeps the frame's own pixels.

    ``strength`` is how far the closed loop has moved the embedding already: the reference's own at 1, beyond it above.
    An aligner whose strengths mean something else (a share of noise in [0, 1], say) says so with an attribute
    ``takes_strength = True``: it then gets the reference's plain embedding on every rung, and the ladder's number.
    """

    crop: CropSpec
    encoder: str
    """Id of the encoder whose embedding it takes."""

    def align(
        self, crops: Tensor, identity: Tensor, strength: float, *, references: Sequence[Identity] = ()
    ) -> Tensor:
        """Return (N, 3, S, S) crops in [0, 1]; ``identity`` is (N, D) unit norm, ``strength`` in [0, 2].

        ``references`` holds whose face each row is to become, one per row, for aligners that need more of a
        reference than its embedding: its pictures (``Identity.crops``), say.
        """
        ...


@runtime_checkable
class Upscaler(Protocol):
    """Stage 3: whole frames, larger."""

    scale: int

    def upscale(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) → (T, 3, H·scale, W·scale), both float32 in [0, 1]."""
        ...


@runtime_checkable
class FaceRestorer(Protocol):
    """Stage 3: brings a face's detail back, told whose face it is."""

    crop: CropSpec
    encoder: str

    def restore(self, crops: Tensor, identity: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] and (N, D) unit norm → (N, 3, S, S) in [0, 1]."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A recogniser: aligned crops to identity embeddings. The judge is one that no stage optimised."""

    id: str
    """``"<name>@<first 12 hex of the weights' sha256>"``."""
    crop: CropSpec
    thresholds: Thresholds

    def embed_crops(self, crops: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] → (N, D) float32, unit L2 norm."""
        ...


@runtime_checkable
class FacePack(Protocol):
    """Perception shared by lock, restore and the judge: a detector and an encoder."""

    encoder: Encoder

    def detect(self, frames: Tensor) -> Faces:
        """All faces of (T, 3, H, W) frames; each frame's result depends on that frame alone."""
        ...

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        """(N, D) float32 unit-norm embeddings of ``faces`` found in ``frames``."""
        ...


@runtime_checkable
class Cropper(Protocol):
    """A pack that also hands out the crops its encoder looks at, so that they are cut once."""

    encoder: Encoder

    def crops(self, frames: Tensor, faces: Faces) -> Tensor:
        """(N, 3, S, S) float32 in [0, 1] of ``faces`` found in ``frames``."""
        ...


@runtime_checkable
class SpeakingBackbone(Backbone, Protocol):
    """A backbone that writes the sound of its frames as well."""

    sample_rate: int
    """Samples per second."""

    def extend_with_sound(
        self, prompt: str, context: Tensor | None, *, seed: int, references: Sequence[Identity] = ()
    ) -> tuple[Tensor, Sound]:
        """Return what :meth:`extend` returns, and a sound at least as long as those frames."""
        ...


Progress = Callable[["str", "int", "int"], None]
"""``progress(stage, done_frames, total_frames)``; called from the thread that runs the pipeline."""
