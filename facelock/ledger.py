"""The ledger: every frame × every expected character gets a row, and no row is ever dropped.

::

    rows = measure(frames, judge_pack, identities, start=120)
    [row.similarity for row in rows if row.status is Status.WRONG]

Which face stands for which character is decided by similarity in each frame alone, never by tracking.
Readable faces go first: a small or turned face is somebody's only when no readable one is left, so that a
stranger cannot hide behind a blurred face in the background.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from facelock.appearance import face_tile, jpeg, mouth_and_eyes, residual_of_stills, sharpness, still
from facelock.errors import FaceLockError
from facelock.geometry import estimate_pose, similarity_from_landmarks, warp_crops
from facelock.identity import embedding_of
from facelock.lanes import side_by_side
from facelock.protocols import Cropper, FacePack
from facelock.runtime import BUSY_BATCH
from facelock.types import Faces, Identity, LedgerRow, Status, Thresholds, Unreadable

NOBODY = -1
"""In an assignment: no face is left for this character."""
GROUP = BUSY_BATCH
"""Frames that a lane looks at at once."""
REMEMBERED = 2
"""Calls whose last frame a judge keeps: a chunk is measured as it is, and as it would be without the lock."""
_BEHIND = 4.0
"""Taken off an unreadable face's similarity when faces are assigned: more than any readable face can lack."""


@dataclass(frozen=True)
class ReadabilityLimits:
    """The range in which the judge was calibrated; a face outside of it is ``unreadable``."""

    minimum_face: float = 24.0
    """Height of the face's box in pixels of the measured frames."""
    maximum_yaw: float = 60.0
    """Degrees to either side."""
    maximum_pitch: float = 60.0
    minimum_sharpness: float = 0.0
    """Laplacian variance of the canonical crop (``facelock.appearance.sharpness``)."""
    minimum_visible: float = 0.5
    """Share of the face's box that lies inside the picture."""


@dataclass(frozen=True)
class Sight:
    """What is seen of the N faces of a batch, besides who they are."""

    faces: Faces
    crops: Tensor
    """(N, 3, S, S) canonical crops of the judge."""
    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    sharpness: Tensor
    mouth: Tensor
    eyes: Tensor
    reasons: tuple[Unreadable | None, ...]
    """Why a face cannot be judged, or None."""

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,) whether it can."""
        return np.array([reason is None for reason in self.reasons], dtype=bool)


def measure(
    frames: Tensor,
    pack: FacePack,
    identities: Sequence[Identity],
    *,
    start: int = 0,
    limits: ReadabilityLimits | None = None,
    before: Tensor | None = None,
) -> tuple[LedgerRow, ...]:
    """Measure (T, 3, H, W) frames in [0, 1], or of bytes: T × K rows, by frame, then in the order of ``identities``.

    ``start`` is the clip's index of the first frame. ``before`` (3, H, W) is the frame just before it,
    where there is one: with it the first row gets its residual too, so that flicker at the seam of two
    chunks is seen. Raises InputError when an identity lacks the embedding of ``pack.encoder``.
    """
    references = _references(identities, pack.encoder.id)
    limits = limits or ReadabilityLimits()
    seam = None if before is None else _recognise(before[None], pack, references, limits).crops_of(0)
    return _rows(_recognise(frames, pack, references, limits), pack, identities, start, seam)


def _rows(
    cast: _Cast, pack: FacePack, identities: Sequence[Identity], start: int, seam: Crops | None
) -> tuple[LedgerRow, ...]:
    """``seam`` holds the characters' crops in the frame before the first."""
    rows = [
        _row(frame, character, cast, identities, pack.encoder.thresholds)
        for frame in range(len(cast.chosen))
        for character in range(len(identities))
    ]
    residuals = _residuals(cast, seam, len(identities))
    return tuple(
        replace(row, frame=row.frame + start, residual=left)
        for row, left in zip(rows, residuals, strict=True)
    )


Crops = list[Tensor | None]
"""Of one frame, by character; None where a character is not seen."""


@dataclass(frozen=True)
class _Cast:
    """Who is who in a batch."""

    sight: Sight
    similarity: NDArray[np.float64]
    """(N, K) cosines."""
    chosen: list[list[int]]
    """Per frame and character, the index of the face, or ``NOBODY``."""

    def crops_of(self, frame: int) -> Crops:
        """The characters' faces in a frame."""
        return [None if face == NOBODY else self.sight.crops[face] for face in self.chosen[frame]]


def _recognise(frames: Tensor, pack: FacePack, references: Tensor, limits: ReadabilityLimits) -> _Cast:
    if frames.dtype == torch.uint8 and not getattr(pack, "takes_bytes", False):
        frames = frames.float() / 255
    beside = len(frames) and getattr(pack, "side_by_side", False)
    groups = frames.split(GROUP) if beside else [frames]
    sights, seen = zip(*side_by_side(lambda group: _seen(group, pack, limits), groups), strict=True)
    sight = _together(sights, [len(group) for group in groups])
    similarity = _similarities(torch.cat(seen), references)
    return _Cast(sight, similarity, _assign_frames(similarity, sight, len(frames)))


def _seen(frames: Tensor, pack: FacePack, limits: ReadabilityLimits) -> tuple[Sight, Tensor]:
    """All faces, and their embeddings (N, D)."""
    faces = pack.detect(frames)
    crops = _crops(frames, faces, pack)
    cut = isinstance(pack, Cropper)
    seen = pack.encoder.embed_crops(crops) if cut else pack.embed(frames, faces)
    return _look(frames, faces, crops.cpu(), pack, limits), seen


def _together(sights: Sequence[Sight], lengths: Sequence[int]) -> Sight:
    """What is seen in groups of frames, as of all frames."""
    columns = ("crops", "yaw", "pitch", "roll", "sharpness", "mouth", "eyes")
    return Sight(
        faces=Faces.together([sight.faces for sight in sights], lengths),
        reasons=tuple(reason for sight in sights for reason in sight.reasons),
        **{name: torch.cat([getattr(sight, name) for sight in sights]) for name in columns},
    )


def _residuals(cast: _Cast, seam: Crops | None, characters: int) -> list[float | None]:
    """Per row, what is left after motion compensation to the frame before; ``seam`` is the one before the first."""
    now = [crop for frame in range(len(cast.chosen)) for crop in cast.crops_of(frame)]
    crops = [*(seam or [None] * characters), *now]
    stills = side_by_side(lambda crop: None if crop is None else still(crop), crops)
    pairs = list(zip(stills, stills[characters:], strict=False))
    return side_by_side(lambda pair: _residual(*pair), pairs)


def _residual(before: NDArray[np.uint8] | None, after: NDArray[np.uint8] | None) -> float | None:
    return None if before is None or after is None else residual_of_stills(before, after)


def _references(identities: Sequence[Identity], encoder: str) -> Tensor:
    """(K, D) embeddings of the cast by one encoder."""
    return torch.stack([embedding_of(identity, encoder).detach().cpu().float() for identity in identities])


def _similarities(embeddings: Tensor, references: Tensor) -> NDArray[np.float64]:
    """(N, K) cosines. Summed row by row, so that no value depends on the batch it came in."""
    products = embeddings.detach().cpu().double()[:, None] * references.double()[None]
    if not bool(torch.isfinite(products).all()):
        raise FaceLockError("The judge returned NaN for a face. Its weights are damaged, or this is a bug.")
    return products.sum(-1).clamp(-1, 1).numpy()


def _look(frames: Tensor, faces: Faces, crops: Tensor, pack: FacePack, limits: ReadabilityLimits) -> Sight:
    """``crops`` (N, 3, S, S) on the CPU, which measures them: OpenCV looks for motion between them."""
    spec = pack.encoder.crop
    yaw, pitch, roll = (angle.cpu() for angle in estimate_pose(faces.landmarks))
    blur = sharpness(crops)
    mouth, eyes = mouth_and_eyes(crops, spec)
    height = faces.box[:, 3] - faces.box[:, 1]
    visible = _visible_share(faces.box, frames.shape[-1], frames.shape[-2])
    fails = {
        Unreadable.CROPPED: ~(visible >= limits.minimum_visible),
        Unreadable.SMALL: ~(height >= limits.minimum_face),
        Unreadable.TURNED: ~((yaw.abs() <= limits.maximum_yaw) & (pitch.abs() <= limits.maximum_pitch)),
        Unreadable.BLURRED: ~(blur >= limits.minimum_sharpness),
    }
    held = zip(*(column.tolist() for column in fails.values()), strict=True)
    reasons = tuple(
        next((why for why, failed in zip(fails, row, strict=True) if failed), None) for row in held
    )
    return Sight(faces, crops, yaw, pitch, roll, blur, mouth, eyes, reasons)


def _crops(frames: Tensor, faces: Faces, pack: FacePack) -> Tensor:
    """The crops that the encoder looks at; packs that cannot hand them out get them cut here."""
    if isinstance(pack, Cropper):
        return pack.crops(frames, faces)
    matrices = similarity_from_landmarks(faces.landmarks, pack.encoder.crop)
    return warp_crops(frames, faces.frame, matrices, pack.encoder.crop.size)


def _visible_share(box: Tensor, width: int, height: int) -> Tensor:
    """(N,) share of each box's area inside the picture."""
    inside = torch.stack([box[:, 0::2].clamp(0, width), box[:, 1::2].clamp(0, height)], -1)
    sides = (inside[:, 1] - inside[:, 0]).clamp_min(0)
    whole = (box[:, 2:] - box[:, :2]).clamp_min(1e-6)
    return sides.prod(-1) / whole.prod(-1)


def assign(similarity: NDArray[np.float64], readable: NDArray[np.bool_]) -> list[int]:
    """Give each of K characters one of N faces, or ``NOBODY``: the best total similarity.

    ``similarity`` is (N, K), ``readable`` (N,). Readable faces come first.
    """
    chosen = [NOBODY] * similarity.shape[1]
    if similarity.size:
        worth = similarity - _BEHIND * ~readable[:, None]
        for face, character in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
            chosen[int(character)] = int(face)
    return chosen


def _assign_frames(similarity: NDArray[np.float64], sight: Sight, frames: int) -> list[list[int]]:
    """Per frame and character, the index of the face in the batch, or ``NOBODY``."""
    owner = sight.faces.frame.numpy()
    result = []
    for frame in range(frames):
        index = np.flatnonzero(owner == frame)
        local = assign(similarity[index], sight.readable[index])
        result.append([int(index[face]) if face != NOBODY else NOBODY for face in local])
    return result


def judge_status(similarity: float, margin: float | None, readable: bool, thresholds: Thresholds) -> Status:
    """What one measured face is to its character; see docs/report.md."""
    if not readable:
        return Status.UNREADABLE
    if similarity < thresholds.far_1e2 or (margin is not None and margin < 0):
        return Status.WRONG
    return Status.VERIFIED if similarity >= thresholds.far_1e4 else Status.WEAK


def _row(
    frame: int, character: int, cast: _Cast, identities: Sequence[Identity], thresholds: Thresholds
) -> LedgerRow:
    face, name = cast.chosen[frame][character], identities[character].name
    sight, similarity = cast.sight, cast.similarity
    if face == NOBODY:
        return LedgerRow(frame, name, Status.ABSENT)
    own = float(similarity[face, character])
    others = np.delete(similarity[face], character)
    margin = own - float(others.max()) if len(others) else None
    x1, y1, x2, y2 = (float(edge) for edge in sight.faces.box[face])
    return LedgerRow(
        frame,
        name,
        judge_status(own, margin, bool(sight.readable[face]), thresholds),
        similarity=own,
        margin=margin,
        box=(x1, y1, x2, y2),
        face_height=y2 - y1,
        yaw=float(sight.yaw[face]),
        pitch=float(sight.pitch[face]),
        roll=float(sight.roll[face]),
        sharpness=float(sight.sharpness[face]),
        score=float(sight.faces.score[face]),
        landmarks=tuple((float(x), float(y)) for x, y in sight.faces.landmarks[face]),
        mouth=float(sight.mouth[face]),
        eyes=float(sight.eyes[face]),
        unreadable=sight.reasons[face],
    )


def thumbnails(
    frames: Tensor, rows: Sequence[LedgerRow], *, start: int = 0, at: Collection[int] | None = None
) -> dict[int, str]:
    """Base64 JPEGs of the cast's faces, one above the other in the ledger's order, by clip frame index.

    ``at`` names the frames; otherwise the first and the middle one of the batch, and the one where the
    face is least alike if any is not verified. A character without a face shows the frame's middle.
    """
    wanted = _default_frames(len(frames), rows, start) if at is None else set(at)
    cast: dict[int, list[LedgerRow]] = {}
    for row in rows:
        cast.setdefault(row.frame, []).append(row)
    inside = sorted(frame for frame in wanted if start <= frame < start + len(frames))
    return {frame: jpeg(_stack(frames[frame - start], cast.get(frame, []))) for frame in inside}


def _stack(frame: Tensor, rows: Sequence[LedgerRow]) -> NDArray[np.uint8]:
    boxes = [row.box for row in rows] or [None]
    return np.concatenate([face_tile(frame, box) for box in boxes])


def _default_frames(count: int, rows: Sequence[LedgerRow], start: int) -> set[int]:
    frames = {start, start + count // 2} if count > 8 else ({start} if count else set())
    doubtful = [row for row in rows if row.status is not Status.VERIFIED]
    if doubtful:
        frames.add(min(doubtful, key=_likeness).frame)
    return frames


def _likeness(row: LedgerRow) -> float:
    """Similarity for sorting: a readable wrong face is worse than none."""
    return row.similarity if row.similarity is not None else 1.0


@dataclass(frozen=True)
class _Latest:
    """A frame that was looked at, for whom, and what they look like in it."""

    frame: Tensor
    references: Tensor
    crops: Crops


@dataclass(frozen=True)
class Judge:
    """A face pack that measures, with its limits: what the pipeline and ``facelock verify`` hold."""

    pack: FacePack
    limits: ReadabilityLimits = field(default_factory=ReadabilityLimits)
    _latest: list[_Latest] = field(default_factory=list, repr=False, compare=False)
    """Of the last calls, so that the next need not look at the same frame again; changes no result."""

    @property
    def thresholds(self) -> Thresholds:
        """The encoder's thresholds, with which it was calibrated."""
        return self.pack.encoder.thresholds

    @property
    def encoder(self) -> str:
        """The encoder's id."""
        return self.pack.encoder.id

    def measure(
        self, frames: Tensor, identities: Sequence[Identity], *, start: int = 0, before: Tensor | None = None
    ) -> tuple[LedgerRow, ...]:
        """See :func:`measure`."""
        references = _references(identities, self.encoder)
        seam = None if before is None else self._seam(before.to(frames.device), references)
        cast = _recognise(frames, self.pack, references, self.limits)
        if len(frames):
            seen = _Latest(frames[-1].clone(), references, cast.crops_of(-1))
            self._latest[:] = [*self._latest, seen][-REMEMBERED:]
        return _rows(cast, self.pack, identities, start, seam)

    def _seam(self, before: Tensor, references: Tensor) -> Crops:
        """The characters' crops in the frame ``before``."""
        for latest in list(self._latest):
            alike = all(getattr(latest.frame, what) == getattr(before, what) for what in ("dtype", "device"))
            if alike and all(
                torch.equal(mine, theirs)
                for mine, theirs in ((latest.frame, before), (latest.references, references))
            ):
                return latest.crops
        return _recognise(before[None], self.pack, references, self.limits).crops_of(0)

    def thumbnails(
        self, frames: Tensor, rows: Sequence[LedgerRow], *, start: int = 0, at: Collection[int] | None = None
    ) -> Mapping[int, str]:
        """See :func:`thumbnails`."""
        return thumbnails(frames, rows, start=start, at=at)
