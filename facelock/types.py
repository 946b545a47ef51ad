"""The nouns of FaceLock: frozen dataclasses that the stages hand to each other.

Shape legend: ``T`` frames of a chunk, ``N`` faces, ``C`` channels (always 3, RGB), ``H`` ``W`` pixels,
``D`` embedding size, ``S`` side of a canonical crop, ``K`` characters.

Frames are ``torch.Tensor`` of shape (T, 3, H, W), float32, RGB, range [0, 1]. Between the stages they lie on the
pipeline's device; what is measured of them (faces, embeddings, records) lies on the CPU. Pixel coordinates follow
OpenCV: the centre of the top-left pixel is (0, 0), x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sound:
    """What is heard while frames are shown."""

    samples: Tensor
    """(C, N) float32 in [-1, 1] on the CPU."""
    rate: int
    """Samples per second."""
    lead: int = 0
    """First samples that belong before the first frame: another version of the end of what was heard so far, for a
    crossfade with it."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive frames of a clip, the one unit that is streamed."""

    frames: Tensor
    """(T, 3, H, W) float32 RGB in [0, 1]; within the pipeline on its device, for whoever iterates a clip on the CPU."""
    start: int
    """Index in the clip of the first frame."""
    fps: Fraction
    """Frames per second, exact."""
    times: tuple[Fraction, ...] = ()
    """Seconds at which the frames are shown, where a file says so; empty: ``start`` and ``fps`` tell."""
    sound: Sound | None = None
    """Of a blueprint that makes some: exactly as long as the frames, with what leads to it before."""

    def __len__(self) -> int:
        return int(self.frames.shape[0])

    def cpu(self) -> Chunk:
        """The chunk with its frames in the computer's memory; itself where they lie there."""
        return self if self.frames.device.type == "cpu" else replace(self, frames=self.frames.cpu())


@dataclass(frozen=True)
class Faces:
    """All faces of a batch of frames, as a struct of arrays (CPU tensors)."""

    frame: Tensor
    """(N,) int64, index of the frame within the batch, ascending."""
    box: Tensor
    """(N, 4) float32, x1 y1 x2 y2 in pixels."""
    landmarks: Tensor
    """(N, 5, 2) float32 pixels: left eye, right eye, nose, left and right mouth corner as seen."""
    score: Tensor
    """(N,) float32 detector score in [0, 1]."""

    def __len__(self) -> int:
        return int(self.frame.shape[0])

    def select(self, index: Tensor) -> Faces:
        """Return the faces at ``index`` (a bool mask or int64 indices)."""
        return Faces(self.frame[index], self.box[index], self.landmarks[index], self.score[index])

    @staticmethod
    def together(parts: Sequence[Faces], lengths: Sequence[int]) -> Faces:
        """Faces found in consecutive batches of ``lengths`` frames, as those of all frames."""
        import torch

        starts = [sum(lengths[:k]) for k in range(len(lengths))]
        frame = torch.cat([part.frame + start for part, start in zip(parts, starts, strict=True)])
        rest = (torch.cat([getattr(part, name) for part in parts]) for name in ("box", "landmarks", "score"))
        return Faces(frame, *rest)


@dataclass(frozen=True)
class CropSpec:
    """A canonical crop: five template points in a square of ``size`` pixels."""

    name: str
    size: int
    template: tuple[tuple[float, float], ...]
    """Five (x, y) pixel positions in the crop, landmark order of :class:`Faces`."""


@dataclass(frozen=True)
class Consent:
    """Whether this face may be used, and who says so."""

    kind: str = "unknown"
    """``self``, ``granted``, ``fictional``, ``licensed`` or ``unknown``."""
    who: str = ""
    """Who gave it."""
    when: str = ""
    """ISO date on which it was given."""
    scope: str = ""
    """What it was given for, in their words."""
    expires: str = ""
    """ISO date after which it no longer holds; empty: never."""
    revoked: str = ""
    """ISO date on which it was taken back; empty: it stands."""


@dataclass(frozen=True)
class Spread:
    """How alike the references of one person are to their own centre, by one encoder: the natural range."""

    count: int
    """References that were kept."""
    mean: float
    """Mean cosine of a reference to the centre of the others; of one reference: 1."""
    low: float
    """The smallest of them."""


@dataclass(frozen=True)
class Identity:
    """One character, fixed for the whole clip.

    ``embeddings`` maps an encoder's id (``"<name>@<first 12 of the weights' sha256>"``) to a unit-norm
    float32 tensor (D,). Embeddings of different encoders are never compared.
    """

    name: str
    embeddings: Mapping[str, Tensor]
    portrait: Tensor | None = None
    """(3, S, S) float32 RGB in [0, 1]: the reference's face, for reports only."""
    source: str = ""
    """Where it came from: the file's name, or how many photos."""
    sha256: str = ""
    """Digest of the source, which the journal compares when a run is resumed: of the picture's bytes, of a ``.face``
    file's content, or of the embeddings that several photos gave."""
    notes: tuple[str, ...] = ()
    """What was remarked while reading the reference (an animated picture's first frame, say)."""
    crops: Tensor | None = None
    """(R, 3, 384, 384) float32 RGB in [0, 1]: the references in :data:`facelock.geometry.REFERENCE384`, best first.
    In memory after reading pictures; in a ``.face`` file only where the user kept them."""
    uuid: str = ""
    """Random, so that a clip can name its character without telling whose face it is."""
    spread: Mapping[str, Spread] = field(default_factory=dict)
    """Encoder's id → natural range of the references; empty for a single picture."""
    consent: Consent = Consent()
    perception: tuple[str, str] = ("", "")
    """What made the embeddings: the loop's pack and the judge, as ``facelock.perception`` names them."""


class Status(StrEnum):
    """What the judge says of one character in one frame (docs/report.md)."""

    VERIFIED = "verified"
    """Similarity above the encoder's threshold at a false-accept rate of 1e-4."""
    WEAK = "weak"
    """Between the thresholds at 1e-2 and 1e-4."""
    WRONG = "wrong"
    """Nearer to another cast member, or a readable face below the threshold at 1e-2."""
    UNREADABLE = "unreadable"
    """A face is there, but too small, blurred or turned away to be judged."""
    ABSENT = "absent"
    """No face for this character."""


class Unreadable(StrEnum):
    """Why a face cannot be judged: the first of these that holds."""

    CROPPED = "cropped"
    """Too much of it lies outside of the picture."""
    SMALL = "small"
    TURNED = "turned"
    """Too far to the side, up or down."""
    BLURRED = "blurred"


@dataclass(frozen=True)
class Thresholds:
    """Cosine similarities at which an encoder accepts, per false-accept rate."""

    far_1e2: float
    far_1e3: float
    far_1e4: float


@dataclass(frozen=True)
class AlignRecord:
    """What the closed loop did to one face of one frame (lock or restore)."""

    frame: int
    """Index in the clip."""
    character: str
    before: float
    """Similarity to the identity before, by the stage's own encoder, cosine in [-1, 1]."""
    after: float
    rung: int
    """Index of the strength kept; -1 when the face was left as it was."""
    met: bool
    """Whether the stage's target was reached."""
    consistency: float | None = None
    """Restore only: RMS difference in [0, 1] between the restored face, downsampled, and the input."""
    share: float | None = None
    """Restore only: share of the restored face in what was kept, in [0, 1]; 0: the plainly enlarged face."""


@dataclass(frozen=True)
class LedgerRow:
    """One frame and one expected character, measured by the judge. No row is ever dropped."""

    frame: int
    character: str
    status: Status
    similarity: float | None = None
    """Cosine to the character's own reference; None without a face."""
    margin: float | None = None
    """Own similarity minus the best other cast member's; None for a cast of one."""
    box: tuple[float, float, float, float] | None = None
    face_height: float | None = None
    yaw: float | None = None
    """Degrees, positive when the face looks to the picture's right; estimated from the landmarks."""
    pitch: float | None = None
    roll: float | None = None
    sharpness: float | None = None
    score: float | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None
    mouth: float | None = None
    """Brightness of the mouth in the stabilised face, relative to the face: it moves as the mouth opens."""
    eyes: float | None = None
    """The same for the eyes: it moves as the lids and the gaze do."""
    residual: float | None = None
    """Mean absolute difference in [0, 1] to the same face in the frame before, after motion compensation."""
    unreadable: Unreadable | None = None
    """Why the face cannot be judged; None unless the status is ``unreadable``."""


@dataclass(frozen=True)
class ChunkRecords:
    """Everything recorded about one finished chunk; what the journal stores beside its segment."""

    start: int
    length: int
    ledger: tuple[LedgerRow, ...] = ()
    """The judge on the final frames."""
    ledger_unlocked: tuple[LedgerRow, ...] = ()
    """The judge on the same frames as the blueprint wrote them."""
    lock: tuple[AlignRecord, ...] = ()
    restore: tuple[AlignRecord, ...] = ()
    thumbnails: Mapping[int, str] = field(default_factory=dict)
    """Clip frame index → base64 JPEG of the face, for the report's contact sheet."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds per stage. Not part of what a resumed run must reproduce."""
    thumbnails_unlocked: Mapping[int, str] = field(default_factory=dict)
    """The same faces as the blueprint wrote them; optional."""
