"""The ``.face`` file: one identity on a disk, which only its owner can read. No pickle, no photo.

::

    save_identity(enrolment, "maria.face")
    maria = read_identity("maria.face")

What is in it: :mod:`facelock.identity.face_format`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from facelock.errors import InputError
from facelock.files import atomic_write, open_input
from facelock.identity import embedding_of, recrop
from facelock.identity.consensus import centre, spread, to_the_others
from facelock.identity.consent import require_consent, today
from facelock.identity.face_format import LARGEST_FILE, MAGIC, Record, pack, unpack
from facelock.identity.findings import Enrolment
from facelock.identity.photos import Quality
from facelock.perception import Perception
from facelock.types import Identity

SUFFIX = ".face"
WANTED = "a .face file"


def is_face_file(path: Any) -> bool:
    """Whether ``path`` names a ``.face`` file, by its ending or by its first bytes. Never raises."""
    if not isinstance(path, str | os.PathLike):
        return False
    if Path(path).suffix.lower() == SUFFIX:
        return True
    try:
        with open_input(Path(path), WANTED) as file:
            return file.read(8 + len(MAGIC))[8:] == MAGIC
    except InputError:
        return False


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """Where an identity may be written. Raises ``InputError``: not called ``.face``, in no folder, or there already."""
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise InputError(f"{path}: is no name for an identity. Give one that ends in {SUFFIX}.")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: there is no such folder. Make it first.")
    if path.is_dir() or (os.path.lexists(path) and not overwrite):
        raise InputError(f"{path}: exists already. Give --overwrite to replace it, or another name.")
    return path


def save_identity(
    identity: Identity | Enrolment,
    path: str | Path,
    *,
    overwrite: bool = False,
    keep_crops: bool | None = None,
) -> Path:
    """Write a ``.face`` file, which only its owner can read, and return its path.

    An :class:`facelock.identity.findings.Enrolment` leaves the photos' quality in it too. The aligned crops go in with
    ``keep_crops`` alone (default: as the enrolment was asked). The whole file or nothing is written. Raises
    ``InputError`` when it exists and not ``overwrite``, when the identity has no embedding, or for a path that
    cannot be; ``StorageError`` for a full disk.
    """
    path = check_target(path, overwrite=overwrite)
    if isinstance(identity, Enrolment):
        keep = identity.keep_crops if keep_crops is None else keep_crops
        quality = tuple(finding.quality for finding in identity.used if finding.quality)
        record = Record(identity.identity, quality, len(identity.findings) - len(identity.used))
    else:
        keep, record = bool(keep_crops), Record(identity)
    if not keep:
        record = replace(record, identity=replace(record.identity, crops=None))
    atomic_write(path, pack(record), private=True)
    return path


def read_identity(path: str | Path) -> Identity:
    """Read a ``.face`` file. Says nothing of its consent: :func:`facelock.identity.consent.require_consent` does.

    Raises ``InputError`` in one sentence: not there, not readable, not a ``.face`` file, of another version, too
    large, cut short, damaged or edited.
    """
    return read_record(path).identity


def read_faces(references: Any) -> Any:
    """One reference, or a list of them, as given, with every path of a ``.face`` file read for use.

    So that what they were made with is known before a recogniser is loaded. Raises ``InputError``.
    """
    if isinstance(references, list | tuple):
        return [read_faces(each) for each in references]
    return stored_identity(references) if is_face_file(references) else references


def stored_identity(
    path: str | Path, encoders: Sequence[str] = (), *, name: str | None = None, face: int | None = None
) -> Identity:
    """Read a ``.face`` file for use: with an embedding by each of ``encoders``, and consent that holds.

    ``name`` replaces its own. ``face`` is there for pictures; a ``.face`` file holds one. Raises ``InputError``.
    """
    if face not in (None, 0):
        raise InputError(f"{path}: holds one face, and there is no face {face}. Leave --face-index out.")
    identity = read_identity(path)
    require_consent(replace(identity, name=str(path)))
    for encoder in encoders:
        embedding_of(replace(identity, name=str(path)), encoder)
    return replace(identity, name=name or identity.name)


def read_record(path: str | Path) -> Record:
    """Read a ``.face`` file with all that it says; see :func:`read_identity`."""
    with open_input(Path(path), WANTED) as file:
        return unpack(Path(path), file.read(LARGEST_FILE + 1))


def revoke(path: str | Path) -> Record:
    """Mark the consent of a ``.face`` file as taken back today and return what it says now.

    One that was revoked before keeps its date. Raises ``InputError`` as :func:`read_identity` does.
    """
    record = read_record(path)
    if not record.identity.consent.revoked:
        consent = replace(record.identity.consent, revoked=today().isoformat())
        record = replace(record, identity=replace(record.identity, consent=consent))
        atomic_write(path, pack(record), private=True)
    return record


def embed_file(path: str | Path, perception: Perception) -> Record:
    """Add the embeddings of other recognisers to a ``.face`` file that keeps crops, and return what it says now.

    Raises ``InputError`` as :func:`read_identity` and :func:`re_embed` do, and where consent has ended.
    """
    record = read_record(path)
    require_consent(replace(record.identity, name=str(path)))
    record = replace(record, identity=re_embed(record.identity, perception))
    atomic_write(path, pack(record), private=True)
    return record


def re_embed(identity: Identity, perception: Perception) -> Identity:
    """The same identity with the embeddings of other recognisers too, from its crops.

    Embeddings that it has are kept. The others come from the eight best references at most, cut anew out of the
    384-pixel crops. Raises ``InputError`` where no crops were kept.
    """
    crops = identity.crops
    embeddings, spreads = dict(identity.embeddings), dict(identity.spread)
    for encoder in (each.encoder for each in perception.packs):
        if encoder.id in embeddings:
            continue
        if crops is None:
            raise InputError(
                f"{identity.name}: keeps no crops from which {encoder.id} could embed it. "
                "Create it again from the photos, or with --keep-crops."
            )
        rows = encoder.embed_crops(recrop(crops, encoder.crop)).double().numpy()
        embeddings[encoder.id] = torch.from_numpy(centre(rows)).float()
        spreads[encoder.id] = spread(to_the_others(rows))
    return replace(identity, embeddings=embeddings, spread=spreads, perception=perception.names)


def summary(record: Record) -> dict[str, Any]:
    """What a file says, as plain JSON values, without embeddings and crops."""
    identity = record.identity
    return {
        "name": identity.name,
        "uuid": identity.uuid,
        "created": record.created,
        "facelock": record.version,
        "perception": list(identity.perception),
        "encoders": {
            encoder: {"dim": len(row), "spread": asdict(identity.spread[encoder])}
            if encoder in identity.spread
            else {"dim": len(row), "spread": None}
            for encoder, row in identity.embeddings.items()
        },
        "photos": [asdict(each) for each in record.quality],
        "left_out": record.left_out,
        "crops": 0 if identity.crops is None else len(identity.crops),
        "consent": asdict(identity.consent),
    }


def describe(record: Record) -> list[str]:
    """The same for people, one line per item."""
    identity, consent = record.identity, record.identity.consent
    lines = [
        f"name      {identity.name}",
        f"uuid      {identity.uuid}",
        f"created   {record.created} by FaceLock {record.version}, with {' and '.join(identity.perception)}",
    ]
    for encoder, row in identity.embeddings.items():
        natural = identity.spread.get(encoder)
        seen = f": mean {natural.mean:.3f}, lowest {natural.low:.3f}" if natural and natural.count > 1 else ""
        lines.append(f"encoder   {encoder}, {len(row)} numbers{seen}")
    lines.append(f"photos    {len(record.quality)} used, {record.left_out} left out")
    lines += [f"          {_described(each)}" for each in record.quality]
    lines.append(f"crops     {0 if identity.crops is None else len(identity.crops)} kept")
    given = {"by": consent.who, "on": consent.when, "for": consent.scope, "until": consent.expires}
    said = "".join(f" {word} {text}" for word, text in given.items() if text)
    over = f", REVOKED on {consent.revoked}" if consent.revoked else ""
    if not over and consent.expires and consent.expires < today().isoformat():
        over = ", EXPIRED"
    return [*lines, f"consent   {consent.kind}{said}{over}"]


def _described(quality: Quality) -> str:
    return (
        f"{quality.height:.0f} pixels high, sharpness {quality.sharpness:.0f}, yaw {quality.yaw:.0f}, "
        f"pitch {quality.pitch:.0f}, brightness {quality.brightness:.2f}, contrast {quality.contrast:.2f}"
    )
