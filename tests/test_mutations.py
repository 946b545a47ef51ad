"""Thousands of accidents: ``.face`` files and pictures with flipped, lost, added and edited bytes.

None may crash, hang, or end in anything but a result or one sentence.
"""

from __future__ import annotations

import io
import json
import random
import warnings
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save
from test_identity_file import SAMPLES, enrolment, header_of

from facelock.errors import InputError
from facelock.identity.face_format import KEY, Record, digest, pack, unpack
from facelock.identity.storage import read_identity, save_identity
from facelock.images import read_picture

__all__ = ["enrolment"]  # a fixture of this module too


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The same file after an accident."""
    kind, copy = chance.randrange(6), bytearray(data)
    place = chance.randrange(len(copy)) if chance.random() < 0.5 else chance.randrange(min(len(copy), 3000))
    if kind == 0:
        copy[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del copy[place:]
    elif kind == 2:
        copy[place : place + 8] = chance.randbytes(8)
    elif kind == 3:
        copy[place:place] = chance.randbytes(chance.randrange(1, 40))
    elif kind == 4:
        del copy[place : place + chance.randrange(1, 40)]
    else:
        for _ in range(chance.randrange(2, 30)):
            copy[chance.randrange(len(copy))] = chance.randrange(256)
    return bytes(copy)


WEIRD = [
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    "",
    "x" * 5000,
    "\ud800",
    "\x00",
    [],
    {},
    [[]],
    {"a": 1},
    "../x",
    "2026-02-30",
]


def edited(data: bytes, chance: random.Random) -> bytes:
    """The same file with something strange in its header, and a digest that fits."""
    header, tensors = header_of(data), load(data)
    places = [(header, key) for key in header] + [(row, key) for row in header["encoders"] for key in row]
    places += [(header["consent"], key) for key in header["consent"]] + [
        (row, "yaw") for row in header["photos"]
    ]
    for _ in range(chance.randrange(1, 3)):
        where, key = chance.choice(places)
        where[key] = chance.choice(WEIRD)
    if chance.random() < 0.3:
        tensors[chance.choice(list(tensors))] = torch.randn(chance.choice([(), (0,), (3,), (2, 2)]))
    if chance.random() < 0.7:
        header["sha256"] = digest(header, tensors)
    return save(tensors, {KEY: json.dumps(header)})


def outcome(read, *arguments):
    """Whether a read succeeded; anything but an ``InputError`` in one line is a failure of the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(*arguments)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        str(error).encode()
        return False
    return True


@pytest.mark.parametrize("kind", ["bytes", "header"])
def test_eight_hundred_mutated_face_files(enrolment, kind, tmp_path):
    bare = replace(enrolment.identity, crops=None)
    quality = tuple(finding.quality for finding in enrolment.used)
    data = pack(Record(bare, quality))
    chance = random.Random(4)
    change = mutated if kind == "bytes" else edited
    read = sum(outcome(unpack, tmp_path / "x.face", change(data, chance)) for _ in range(800))
    assert read < (20 if kind == "bytes" else 200)  # the digest finds accidents; some edits are harmless


def test_mutated_files_with_crops_on_a_disk(enrolment, ram_path):
    data = save_identity(enrolment, ram_path / "whole.face").read_bytes()
    chance, path = random.Random(5), ram_path / "x.face"
    for _ in range(60):
        path.write_bytes(mutated(data, chance))
        assert outcome(read_identity, path) is (path.read_bytes() == data)


def pictures():
    """Small pictures of all kinds, as bytes."""
    with Image.open(SAMPLES / "maria.png") as image:
        small = image.convert("RGB").resize((96, 96))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [
        ("JPEG", small, {"quality": 80}),
        ("JPEG", small, {"progressive": True, "exif": turned}),
        ("JPEG", small.convert("CMYK"), {}),
        ("PNG", small, {}),
        ("PNG", small.convert("P"), {}),
        ("PNG", small.convert("L"), {}),
        ("PNG", small.convert("RGBA"), {}),
        ("WEBP", small, {}),
        ("GIF", small, {}),
        ("TIFF", small, {"compression": "tiff_lzw"}),
        ("BMP", small, {}),
        ("PPM", small, {}),
    ]
    for kind, picture, options in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        yield buffer.getvalue()


def test_eight_hundred_mutated_pictures(ram_path):
    originals = list(pictures())
    chance, path, read = random.Random(6), ram_path / "x.jpg", 0
    for data in originals:
        path.write_bytes(data)
        assert outcome(read_picture, path)
    for k in range(800):
        path.write_bytes(mutated(originals[k % len(originals)], chance))
        read += outcome(read_picture, path)
    assert 100 < read < 700
