"""The bytes of a ``.face`` file: safetensors with a JSON header; see :mod:`facelock.identity.storage`.

Layout (``facelock.face.v1``): the metadata of the safetensors file has one entry, ``facelock.face``, a JSON object
with the keys of :class:`Header`. Tensors: ``embedding.K`` float32 (D,) for the K-th encoder of the header, and, only
where the user kept them, ``crops`` uint8 (R, 3, 384, 384). Neither photos nor their names or digests are stored, so
that two files cannot be linked by the photos they share.

``sha256`` in the header covers everything else in the file. It finds damage and careless edits; whoever edits on
purpose can compute it anew, so it proves nothing about who made the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from facelock import __version__
from facelock.errors import InputError
from facelock.geometry import REFERENCE384
from facelock.identity import portrait_of
from facelock.identity.consent import check_consent
from facelock.identity.findings import LONGEST_NAME, MOST_CROPS, MOST_PHOTOS, check_name
from facelock.identity.photos import Quality
from facelock.types import Consent, Identity, Spread

SCHEMA = "facelock.face.v1"
KEY = "facelock.face"
MAGIC = b'{"__metadata__":{"facelock.face":"'
"""What follows the eight bytes of the header's length."""
LARGEST_FILE = 16 << 20
"""Bytes; eight crops take 3.5 million."""
LARGEST_HEADER = 1 << 20
MOST_ENCODERS = 16
LONGEST_EMBEDDING = 4096
_ROUNDING = 1e-3
"""How far a stored embedding's length may be from 1."""
REMAKE = "Make it again with 'facelock identity create'"


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class _Spread(_Row):
    count: int = Field(ge=1, le=MOST_PHOTOS)
    mean: float = Field(ge=-1.001, le=1.001)
    low: float = Field(ge=-1.001, le=1.001)


class _Encoder(_Row):
    id: str = Field(min_length=1, max_length=200)
    tensor: str
    dim: int = Field(ge=2, le=LONGEST_EMBEDDING)
    spread: _Spread | None = None


class _Quality(_Row):
    height: float
    sharpness: float
    yaw: float
    pitch: float
    roll: float
    brightness: float
    contrast: float
    clipped: float
    score: float


class _Consent(_Row):
    kind: str = "unknown"
    who: str = ""
    when: str = ""
    scope: str = ""
    expires: str = ""
    revoked: str = ""


class Header(_Row):
    """The header: all that a ``.face`` file says besides its tensors."""

    schema_: str = Field(alias="schema", pattern=rf"^{re.escape(SCHEMA)}$")
    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    uuid: str = Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    facelock: str = Field(max_length=50)
    perception: list[str] = Field(min_length=2, max_length=2)
    encoders: list[_Encoder] = Field(min_length=1, max_length=MOST_ENCODERS)
    photos: list[_Quality] = Field(max_length=MOST_PHOTOS)
    left_out: int = Field(ge=0, le=MOST_PHOTOS)
    crops: int = Field(ge=0, le=MOST_CROPS)
    consent: _Consent
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Record:
    """An identity as a file keeps it."""

    identity: Identity
    quality: tuple[Quality, ...] = ()
    """Of the photos that were used; which photo is which is not said."""
    left_out: int = 0
    """Photos that were given and not used."""
    created: str = ""
    """UTC, ISO 8601."""
    version: str = __version__
    """Of FaceLock, which wrote it."""


def pack(record: Record) -> bytes:
    """The bytes of a ``.face`` file. Raises ``InputError`` for an identity that no file can hold."""
    identity = record.identity
    check_name(identity.name)
    check_consent(identity.consent)
    if not 1 <= len(identity.embeddings) <= MOST_ENCODERS:
        raise InputError(f"{identity.name}: has no embedding that could be stored. Create it from photos.")
    tensors = {f"embedding.{k}": e.detach().cpu().float() for k, e in enumerate(identity.embeddings.values())}
    if identity.crops is not None:
        tensors["crops"] = (identity.crops[:MOST_CROPS].detach().cpu() * 255).round().to(torch.uint8)
    header = {
        "schema": SCHEMA,
        "name": identity.name,
        "uuid": identity.uuid or str(uuid.uuid4()),
        "created": record.created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "facelock": record.version,
        "perception": list(identity.perception),
        "encoders": [
            _encoder_row(k, encoder, tensors[f"embedding.{k}"], identity.spread.get(encoder))
            for k, encoder in enumerate(identity.embeddings)
        ],
        "photos": [asdict(each) for each in record.quality],
        "left_out": record.left_out,
        "crops": len(tensors["crops"]) if "crops" in tensors else 0,
        "consent": asdict(identity.consent),
    }
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    header["sha256"] = digest(header, tensors)
    return save_tensors(tensors, {KEY: _canonical(header)})


def _encoder_row(k: int, encoder: str, embedding: Tensor, natural: Spread | None) -> dict[str, Any]:
    return {
        "id": encoder,
        "tensor": f"embedding.{k}",
        "dim": len(embedding),
        "spread": asdict(natural) if natural else None,
    }


def _canonical(header: Mapping[str, Any]) -> str:
    return json.dumps(header, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the header without its own ``sha256``, and every tensor's name, kind, shape and bytes."""
    total = hashlib.sha256(_canonical({k: v for k, v in header.items() if k != "sha256"}).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def unpack(path: Path, data: bytes) -> Record:
    """What ``data`` says, read from ``path``. Everything is checked before it is believed.

    Raises ``InputError`` in one sentence: not a ``.face`` file, of another version, too large, cut short, damaged or
    edited.
    """
    if len(data) > LARGEST_FILE:
        raise InputError(
            f"{path}: is larger than {LARGEST_FILE >> 20} MiB, which no .face file is. {REMAKE}."
        )
    raw = _raw_header(path, data)
    try:
        tensors = load_tensors(data)
        intact = raw.get("sha256") == digest(raw, tensors)
    except (SafetensorError, ValueError, RuntimeError, OSError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not intact:
        raise InputError(f"{path}: is damaged or was edited (its digest does not fit). {REMAKE}.")
    return _record(path, _checked(path, raw), tensors)


def _damaged(path: Path, error: object) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")[:200]
    return InputError(f"{path}: is damaged or cut short ({reason}). {REMAKE}.")


def _raw_header(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in the metadata, with bounds on everything before it is read."""
    length = int.from_bytes(data[:8], "little")
    start = data[8 : 8 + len(MAGIC)]
    if start != MAGIC[: len(start)] or len(data) < 16:
        raise InputError(f"{path}: is not a .face file. {REMAKE}, or give a picture.")
    if length > LARGEST_HEADER or 8 + length > len(data):
        raise _damaged(path, f"its header of {length} bytes does not fit")
    try:
        table = json.loads(data[8 : 8 + length])
        header = json.loads(table["__metadata__"][KEY])
        count = len(table)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, "its header cannot be read") from error
    if not isinstance(header, dict) or count > MOST_ENCODERS + 2:
        raise _damaged(path, "its header is not one of ours")
    _check_version(path, header.get("schema"))
    return header


def _check_version(path: Path, schema: object) -> None:
    if schema != SCHEMA:
        version = re.fullmatch(r"facelock\.face\.(v\d{1,6})", schema) if isinstance(schema, str) else None
        if version is None:
            raise _damaged(path, "it does not say its version")
        raise InputError(
            f"{path}: is a .face file of version {version[1]}, which FaceLock {__version__} cannot read "
            f"(it reads {SCHEMA.rsplit('.', 1)[1]}). Update FaceLock."
        )


def _checked(path: Path, raw: Mapping[str, Any]) -> Header:
    try:
        header = Header.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise InputError(f"{path}: its header is wrong ({place}: {first['msg']}). {REMAKE}.") from error
    if not all(text.isprintable() for text in _texts(raw)):
        raise _damaged(path, "its header holds control characters")
    try:
        check_name(header.name)
        check_consent(Consent(**header.consent.model_dump()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return header


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from (key, *_texts(each))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _record(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> Record:
    """What the checked parts of a file say together."""
    expected = {row.tensor for row in header.encoders} | ({"crops"} if header.crops else set())
    ids = {row.id for row in header.encoders}
    if set(tensors) != expected or len(ids) != len(header.encoders) or len(expected - {"crops"}) != len(ids):
        raise _damaged(path, "its tensors are not those of its header")
    for row in header.encoders:
        _check_embedding(path, row, tensors[row.tensor])
    crops = _crops(path, header.crops, tensors)
    spreads = {row.id: Spread(**row.spread.model_dump()) for row in header.encoders if row.spread}
    used, given = len(header.photos), len(header.photos) + header.left_out
    identity = Identity(
        header.name,
        {row.id: tensors[row.tensor] for row in header.encoders},
        portrait=None if crops is None else portrait_of(crops),
        source=path.name,
        sha256=header.sha256,
        notes=(f"made of {used} of {given} photos",) if given > 1 else (),
        crops=crops,
        uuid=header.uuid,
        spread=spreads,
        consent=Consent(**header.consent.model_dump()),
        perception=(header.perception[0], header.perception[1]),
    )
    quality = tuple(Quality(**row.model_dump()) for row in header.photos)
    return Record(identity, quality, header.left_out, header.created, header.facelock)


def _check_embedding(path: Path, row: _Encoder, embedding: Tensor) -> None:
    if embedding.dtype != torch.float32 or tuple(embedding.shape) != (row.dim,):
        raise _damaged(path, f"the embedding by {row.id} has the wrong shape")
    length = float(embedding.double().norm())
    if not abs(length - 1) <= _ROUNDING:  # NaN and infinity fail too
        raise _damaged(path, f"the embedding by {row.id} has a length of {length:.3g} where it must be 1")


def _crops(path: Path, count: int, tensors: Mapping[str, Tensor]) -> Tensor | None:
    if not count:
        return None
    crops, side = tensors["crops"], REFERENCE384.size
    if crops.dtype != torch.uint8 or tuple(crops.shape) != (count, 3, side, side):
        raise _damaged(path, "its crops have the wrong shape")
    return crops.float() / 255
