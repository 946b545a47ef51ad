"""From several photos of one person to a robust :class:`Identity`, saying of each photo what became of it.

::

    enrolment = create_identity(["a.jpg", "b.jpg", "c.jpg"], open_perception(), name="maria")
    enrolment.identity                 # embeddings, spread, crops
    print(*enrolment.remarks, sep="\\n")  # c.jpg: left out: shows another person

Every usable face of every photo is embedded by all encoders; the person is who most photos agree on, so a
stranger among the photos, or beside the person in one, is found by disagreement. Nothing depends on the order
in which the photos are given: they are put in the order of their digests first.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facelock.errors import InputError
from facelock.geometry import REFERENCE384
from facelock.identity import portrait_of
from facelock.identity.consensus import agreement, centre, groups, spread, to_the_others, unlike
from facelock.identity.consent import check_consent
from facelock.identity.findings import MOST_CROPS, MOST_PHOTOS, Enrolment, Finding, Outcome, check_name
from facelock.identity.photos import Photo, Quality, QualityLimits, choose, crop, look, qualities
from facelock.perception import Perception
from facelock.protocols import FacePack
from facelock.types import Consent, Identity

MOST_FACES = 8
"""Faces of one photo that are looked at, the largest ones."""
LIMITS = QualityLimits(
    minimum_face=48.0,
    minimum_sharpness=3.0,
    maximum_yaw=60.0,
    maximum_pitch=60.0,
    minimum_contrast=0.05,
    maximum_clipped=0.5,
)
"""What a photo must offer to count: beyond these, real recognisers begin to lose the person."""


@dataclass(frozen=True)
class _Face:
    """A face that could be the person's."""

    photo: int
    """Index of its photo, as given."""
    number: int
    """Which face of it, from left to right."""
    embeddings: tuple[np.ndarray, ...]
    """Per encoder, (D,) float64."""
    crop: Tensor
    """(3, 384, 384) uint8."""
    quality: Quality
    complaint: str
    """Why it does not count; empty if it does."""


@dataclass
class _Table:
    """The photos as given, and what is known of each so far."""

    labels: list[str]
    findings: dict[int, Finding] = field(default_factory=dict)
    faces: dict[int, list[_Face]] = field(default_factory=dict)
    order: list[tuple[str, int]] = field(default_factory=list)
    """Digest and index of the readable photos: the order in which everything is computed."""

    def leave_out(self, photo: int, outcome: Outcome, reason: str, quality: Quality | None = None) -> None:
        """Note that a photo does not count, and why."""
        self.findings[photo] = Finding(self.labels[photo], outcome, reason, quality)

    def usable(self) -> list[_Face]:
        """All faces that count, in the order of the photos' digests."""
        photos = [index for _, index in sorted(self.order) if index not in self.findings]
        return [face for index in photos for face in self.faces[index] if not face.complaint]


def create_identity(
    pictures: Sequence[Any],
    perception: Perception,
    *,
    name: str,
    keep_crops: bool = False,
    consent: Consent = Consent(),  # noqa: B008 - frozen
    limits: QualityLimits = LIMITS,
    face: int | Sequence[int | None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Enrolment:
    """Make an identity called ``name`` of photos of one person, at most ``MOST_PHOTOS``.

    ``pictures`` are anything that :func:`~facelock.identity.photos.look` reads. ``face`` chooses the face of photos
    that show several, counted from 0, left to right: one number for a single photo, else one per photo or None. Without
    it, the face that agrees with the other photos is taken. ``keep_crops`` lets a file of it hold the aligned crops.
    ``progress("photos", done, all)`` is called after each photo.

    The centre of the references is their geometric median per encoder (:func:`facelock.identity.consensus.centre`),
    the spread their cosines to the centre of the others. Raises ``InputError`` when no photo can be used, saying why
    of each; when the photos show several people equally often; and for a name or consent that cannot be used.
    """
    check_name(name)
    check_consent(consent)
    picks = _picks(face, len(pictures))
    table = _Table(_labels(pictures))
    for index, picture in enumerate(pictures):
        _look_at(table, index, picture, perception, limits, picks[index])
        if progress:
            progress("photos", index + 1, len(pictures))
    person = _person(table, perception.packs)
    identity, cosines = _identity(person, perception, name, consent)
    _remark_used(table, person, cosines, perception.packs)
    _remark_rest(table, identity, perception.packs)
    findings = tuple(table.findings[index] for index in range(len(pictures)))
    source = f"{len(person)} of {len(pictures)} photos" if len(pictures) > 1 else table.labels[0]
    notes = tuple(finding.remark for finding in findings if finding.remark)
    return Enrolment(replace(identity, source=source, notes=notes), findings, keep_crops)


def _picks(face: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """Which face is meant, per photo."""
    if not count:
        raise InputError("No photo is given. Give at least one picture of the face.")
    if count > MOST_PHOTOS:
        raise InputError(f"{count} photos are given. Give at most {MOST_PHOTOS}; ten good ones are plenty.")
    given = [face] if face is None or isinstance(face, int) else list(face)
    if len(given) > count:
        raise InputError(
            f"{len(given)} faces are chosen for {count} photos. Give --face-index once per photo."
        )
    return [*given, *[None] * (count - len(given))]


def _labels(pictures: Sequence[Any]) -> list[str]:
    """What to call each photo: its file's name, with as much of its folders as tells it from the others."""
    paths = [Path(picture) if isinstance(picture, str | os.PathLike) else None for picture in pictures]
    names = [path.name for path in paths if path]
    return [
        f"photo {number}" if path is None else path.name if names.count(path.name) == 1 else str(path)
        for number, path in enumerate(paths, 1)
    ]


def _look_at(
    table: _Table, index: int, picture: Any, perception: Perception, limits: QualityLimits, pick: int | None
) -> None:
    """Read one photo and note its faces, or why there are none."""
    try:
        photo = look(picture, perception.faces)
    except InputError as error:
        table.leave_out(index, Outcome.UNREADABLE, _bare(str(error), picture))
        return
    twin = next((other for digest, other in table.order if digest == photo.sha256), None)
    if twin is not None:
        table.leave_out(index, Outcome.DUPLICATE, f"is the same picture as {table.labels[twin]}")
        return
    table.order.append((photo.sha256, index))
    if not len(photo.faces):
        table.leave_out(index, Outcome.NO_FACE, "no face was found")
        return
    offers = qualities(photo)
    largest = sorted(range(len(offers)), key=lambda i: -offers[i].height)[:MOST_FACES]
    numbers = largest if pick is None else [choose(photo, pick)]
    table.faces[index] = _faces(photo, index, perception.packs, limits, numbers)
    if all(seen.complaint for seen in table.faces[index]):
        first = table.faces[index][0]
        table.leave_out(index, Outcome.POOR, first.complaint, first.quality)


def _faces(
    photo: Photo, index: int, packs: Sequence[FacePack], limits: QualityLimits, numbers: Sequence[int]
) -> list[_Face]:
    """The faces ``numbers`` of a photo, embedded and judged."""
    faces, offers = photo.faces.select(torch.tensor(numbers)), qualities(photo)
    rows = [pack.embed(photo.frames, faces).double().numpy() for pack in packs]
    crops = (crop(photo.frames, faces, REFERENCE384).clamp(0, 1) * 255).round().to(torch.uint8)
    found = []
    for place, number in enumerate(numbers):
        complaint = limits.complaint(offers[number])
        own = tuple(each[place] for each in rows)
        found.append(
            _Face(index, number, own, crops[place], offers[number], complaint[0] if complaint else "")
        )
    return found


def _bare(message: str, picture: Any) -> str:
    """An error's message as a reason: without the file's name in front, its advice and full stop."""
    return message.removeprefix(f"{picture}: ").split(". ")[0].rstrip(".")


def _person(table: _Table, packs: Sequence[FacePack]) -> list[_Face]:
    """The faces of the one person that the photos are of; what else they show is noted."""
    faces = table.usable()
    if not faces:
        reasons = "; ".join(
            f"{table.labels[index]}: {table.findings[index].reason}" for index in range(len(table.labels))
        )
        what = reasons if len(table.labels) == 1 else f"No photo can be used ({reasons})"
        raise InputError(f"{what}. Give pictures from the front, large and well lit.")
    stacked = [np.stack([face.embeddings[k] for face in faces]) for k in range(len(packs))]
    score = agreement(stacked, [pack.encoder.thresholds.far_1e3 for pack in packs])
    people = [[faces[i] for i in group] for group in groups(score, [face.photo for face in faces])]
    if len(people) > 1 and len(people[0]) == len(people[1]):
        raise InputError(_nobody_in_particular(table, people))
    kept = _alike(table, people[0], packs)
    _remark_strangers(table, people)
    return kept


def _nobody_in_particular(table: _Table, people: Sequence[Sequence[_Face]]) -> str:
    """The message where no person is shown more often than the next."""
    if len({face.photo for person in people for face in person}) == 1:
        places = ", ".join(
            str(number) for number in sorted(face.number for person in people for face in person)
        )
        label = table.labels[people[0][0].photo]
        return (
            f"{label}: shows {len(people)} people (faces {places}, counted from 0, left to right). "
            "Choose one with --face-index N, or give more photos of the one that is meant."
        )
    equal = [person for person in people if len(person) == len(people[0])]
    equal.sort(key=lambda person: min(face.photo for face in person))
    shown = "; ".join(f"{number}: {_named(table, person)}" for number, person in enumerate(equal[:5], 1))
    more = f"; and {len(equal) - 5} more" if len(equal) > 5 else ""
    return (
        f"The photos show {len(equal)} people equally often ({shown}{more}). "
        "Give photos of one person, or choose with --face-index N."
    )


def _named(table: _Table, person: Sequence[_Face]) -> str:
    """The photos of one person, by their labels."""
    labels = sorted({table.labels[face.photo] for face in person})
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _alike(table: _Table, person: Sequence[_Face], packs: Sequence[FacePack]) -> list[_Face]:
    """The person's faces without those that are far out by any encoder."""
    out = np.zeros(len(person), bool)
    for k, pack in enumerate(packs):
        cosines = to_the_others(np.stack([face.embeddings[k] for face in person]))
        out |= unlike(cosines, pack.encoder.thresholds.far_1e4)
    if out.all():  # each encoder finds a few; together they cannot all be right
        out[:] = False
    for face, far in zip(person, out, strict=True):
        if far:
            reason = "is too unlike the person's other photos to count"
            table.leave_out(face.photo, Outcome.UNLIKE, reason, face.quality)
    return [face for face, far in zip(person, out, strict=True) if not far]


def _remark_strangers(table: _Table, people: Sequence[Sequence[_Face]]) -> None:
    """Note the photos in which the person is not."""
    taken = {face.photo for face in people[0]}
    for person in people[1:]:
        for face in person:
            if face.photo not in taken and face.photo not in table.findings:
                company = _named(table, [other for other in person if other is not face])
                reason = "shows another person" + (f", the same as {company}" if company else "")
                table.leave_out(face.photo, Outcome.STRANGER, reason, face.quality)


def _identity(
    person: Sequence[_Face], perception: Perception, name: str, consent: Consent
) -> tuple[Identity, list[np.ndarray]]:
    """The identity that ``person``'s faces make, and per encoder each one's cosine to the others' centre."""
    packs = perception.packs
    rows = [np.stack([face.embeddings[k] for face in person]) for k in range(len(packs))]
    cosines = [to_the_others(each) for each in rows]
    embeddings = {
        pack.encoder.id: torch.from_numpy(centre(each)).float()
        for pack, each in zip(packs, rows, strict=True)
    }
    worth = np.array([face.quality.worth for face in person]) * np.mean(cosines, 0)
    best = np.argsort(-worth, kind="stable")[:MOST_CROPS]
    crops = torch.stack([person[i].crop for i in best]).float() / 255
    digest = hashlib.sha256(b"".join(row.numpy().tobytes() for row in embeddings.values())).hexdigest()
    identity = Identity(
        name,
        embeddings,
        portrait=portrait_of(crops),
        sha256=digest,
        crops=crops,
        uuid=str(uuid.uuid4()),
        spread={pack.encoder.id: spread(each) for pack, each in zip(packs, cosines, strict=True)},
        consent=consent,
        perception=perception.names,
    )
    return identity, cosines


def _remark_used(
    table: _Table, person: Sequence[_Face], cosines: Sequence[np.ndarray], packs: Sequence[FacePack]
) -> None:
    """Note the photos that count, and which face was taken where there are several."""
    for place, face in enumerate(person):
        seen = table.faces[face.photo]
        alone = sum(not other.complaint for other in seen) == 1
        why = "is the only one that can be used" if alone else "agrees with the other photos"
        taken = f"of {len(seen)} faces, the one of --face-index {face.number} {why}"
        likeness = {pack.encoder.id: float(each[place]) for pack, each in zip(packs, cosines, strict=True)}
        label = table.labels[face.photo]
        table.findings[face.photo] = Finding(
            label, Outcome.USED, taken if len(seen) > 1 else "", face.quality, likeness
        )


def _remark_rest(table: _Table, identity: Identity, packs: Sequence[FacePack]) -> None:
    """Add to the photos that were left out how alike their faces are to the person; they may be there, but poorly."""
    for index, faces in table.faces.items():
        finding = table.findings[index]
        if finding.outcome is Outcome.USED:
            continue
        likeness = [_likeness(face, identity, packs) for face in faces]
        nearest = max(range(len(faces)), key=lambda k: sum(likeness[k].values()))
        finding = replace(finding, similarity=likeness[nearest])
        accepted = all(likeness[nearest][p.encoder.id] >= p.encoder.thresholds.far_1e3 for p in packs)
        if finding.outcome is Outcome.STRANGER and accepted and faces[nearest].complaint:
            finding = replace(
                finding, outcome=Outcome.POOR, reason=faces[nearest].complaint, quality=faces[nearest].quality
            )
        table.findings[index] = finding


def _likeness(face: _Face, identity: Identity, packs: Sequence[FacePack]) -> dict[str, float]:
    """Encoder's id → cosine of a face to the identity."""
    return {
        pack.encoder.id: float(row @ identity.embeddings[pack.encoder.id].double().numpy())
        for pack, row in zip(packs, face.embeddings, strict=True)
    }
