"""``.face`` files: what goes in comes out, and nothing else is ever believed."""

from __future__ import annotations

import json
import os
import stat
import struct
from dataclasses import replace
from datetime import date

import pytest
import torch
from album import JUDGE, LOOP, Album, somebody
from PIL import Image
from safetensors.torch import load, save

from facelock.assets import asset_dir
from facelock.errors import InputError
from facelock.identity import embedding_of, identity_from_picture
from facelock.identity.consent import check_consent, require_consent
from facelock.identity.enrol import create_identity
from facelock.identity.face_format import KEY, LARGEST_FILE, Record, digest, pack
from facelock.identity.storage import (
    describe,
    embed_file,
    re_embed,
    read_identity,
    read_record,
    revoke,
    save_identity,
    stored_identity,
    summary,
)
from facelock.images import read_picture
from facelock.perception import Perception, open_perception
from facelock.types import Consent, Identity

SAMPLES = asset_dir("models").parent / "samples" / "faces"
CONSENT = Consent("granted", "Änna", "2026-01-02", "one film", "2999-12-31")


@pytest.fixture(scope="module")
def enrolment():
    album = Album()
    photos = album.shots(somebody(0), 3)
    return create_identity(photos, album.perception, name="Änna", keep_crops=True, consent=CONSENT)


@pytest.fixture
def face(enrolment, tmp_path):
    """A file with crops."""
    return save_identity(enrolment, tmp_path / "anna.face")


def refused(path, match, read=read_identity):
    with pytest.raises(InputError, match=match) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ") and message.endswith(".")
    assert len(message) < 600
    return message


def resigned(path, change_header=lambda header: None, change_tensors=lambda tensors: None):
    """Edit a file as somebody would who knows how: the digest fits again."""
    data = path.read_bytes()
    header, tensors = header_of(data), load(data)
    change_header(header)
    change_tensors(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header["sha256"] = digest(header, tensors)
    path.write_bytes(save(tensors, {KEY: json.dumps(header)}))


def header_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])


# Round trip.


@pytest.mark.parametrize("keep", [True, False])
def test_what_goes_in_comes_out(enrolment, tmp_path, keep):
    path = save_identity(enrolment, tmp_path / "anna.face", keep_crops=keep)
    before, record = enrolment.identity, read_record(path)
    now = record.identity
    assert set(now.embeddings) == {LOOP, JUDGE} == set(before.embeddings)
    assert all(torch.equal(now.embeddings[key], before.embeddings[key]) for key in before.embeddings)
    assert (now.name, now.uuid, now.spread) == (before.name, before.uuid, before.spread)
    assert (now.consent, now.perception) == (before.consent, before.perception)
    assert record.quality == tuple(finding.quality for finding in enrolment.used)
    if keep:
        assert torch.equal(now.crops, before.crops) and torch.equal(now.portrait, before.portrait)
    else:
        assert now.crops is None and now.portrait is None
    assert now.source == "anna.face" and len(now.sha256) == 64
    again = save_identity(now, tmp_path / "again.face", keep_crops=keep)
    assert read_identity(again).embeddings.keys() == now.embeddings.keys()


def test_bytes_depend_on_the_record_alone(face):
    record = read_record(face)
    assert pack(record) == pack(record) == face.read_bytes()


def test_a_picture_s_identity_can_be_kept(tmp_path):
    album = Album()
    (photo,) = album.shots(somebody(1), 1)
    identity = identity_from_picture(photo, album.perception.packs, name="x")
    assert identity.crops.shape == (1, 3, 384, 384)
    read = read_identity(save_identity(identity, tmp_path / "x.face", keep_crops=True))
    assert len(read.uuid) == 36 and read.crops.shape == (1, 3, 384, 384)
    assert (read.crops - identity.crops).abs().max() <= 0.5 / 255 + 1e-6
    assert read_identity(save_identity(identity, tmp_path / "y.face")).crops is None


def test_nothing_of_the_photos_is_in_the_file(tmp_path):
    album = Album()
    (tmp_path / "private-name.png").parent.mkdir(exist_ok=True)
    Image.fromarray(album.shots(somebody(0), 1)[0]).save(tmp_path / "private-name.png")
    made = create_identity([tmp_path / "private-name.png"], album.perception, name="x")
    data = save_identity(made, tmp_path / "x.face").read_bytes()
    assert (
        b"private-name" not in data
        and read_picture(tmp_path / "private-name.png").sha256.encode() not in data
    )
    assert b"crops.0" not in data and len(data) < 4000


def test_only_its_owner_can_read_it(enrolment, tmp_path):
    leftover = tmp_path / "anna.face.part"
    leftover.write_bytes(b"")
    leftover.chmod(0o644)
    before = os.umask(0)
    try:
        path = save_identity(enrolment, tmp_path / "anna.face")
        modes = [path.stat().st_mode]
        revoke(path)
        modes.append(path.stat().st_mode)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(mode) for mode in modes] == [0o600, 0o600]
    assert [p.name for p in tmp_path.iterdir()] == ["anna.face"]


def test_nothing_is_overwritten_unless_asked(enrolment, face, tmp_path):
    data = face.read_bytes()
    for path, match in [
        (face, "exists already"),
        (tmp_path / "photo.jpg", "ends in .face"),
        (tmp_path / "no" / "x.face", "no such folder"),
    ]:
        with pytest.raises(InputError, match=match):
            save_identity(enrolment, path)
    assert face.read_bytes() == data
    save_identity(enrolment, face, overwrite=True, keep_crops=False)
    assert face.read_bytes() != data
    (tmp_path / "folder.face").mkdir()
    with pytest.raises(InputError, match="exists already"):
        save_identity(enrolment, tmp_path / "folder.face", overwrite=True)


def test_a_full_disk_leaves_the_old_file(enrolment, face, monkeypatch):
    data = face.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("facelock.files.os.fsync", full)
    with pytest.raises(Exception, match="disk is full"):
        save_identity(enrolment, face, overwrite=True)
    assert face.read_bytes() == data and len(list(face.parent.iterdir())) == 1


# What is refused.

START = b'{"__metadata__":{"facelock.face":"'
DAMAGE = {
    "empty": (b"", "is empty"),
    "text": (b"hello", "not a .face file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a .face file"),
    "2^60 header": (struct.pack("<Q", 2**60) + START + bytes(50), "header of 11529215"),
    "header beyond": (struct.pack("<Q", 5000) + START + b'{}"}}', "header of 5000"),
    "no json": (struct.pack("<Q", 40) + START + b"x" * 40, "header cannot be read"),
    "deep": (struct.pack("<Q", 90_000) + START + b"[" * 90_000, "header cannot be read"),
    "deep in the text": (
        struct.pack("<Q", 90_003 + len(START)) + START + b"[" * 90_000 + b'"}}',
        "header cannot be read",
    ),
    "other safetensors": (save({"x": torch.zeros(2)}, {"format": "pt"}), "not a .face file"),
    "huge": (bytes(LARGEST_FILE + 1), "larger than 16 MiB"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_no_face_file(tmp_path, what):
    data, match = DAMAGE[what]
    path = tmp_path / "x.face"
    path.write_bytes(data)
    refused(path, match)


def test_what_is_no_file(tmp_path):
    refused(tmp_path / "none.face", "no such file")
    (tmp_path / "folder.face").mkdir()
    refused(tmp_path / "folder.face", "is a folder")
    os.mkfifo(tmp_path / "pipe.face")
    refused(tmp_path / "pipe.face", "not a regular file")
    (tmp_path / "loop.face").symlink_to(tmp_path / "loop.face")
    refused(tmp_path / "loop.face", "cannot be read")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_an_unreadable_file(face):
    face.chmod(0)
    refused(face, "cannot be read")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9, 0.999999])
def test_a_file_cut_short(face, share):
    data = face.read_bytes()
    face.write_bytes(data[: int(len(data) * share)])
    refused(face, "cut short|not a .face file")


def test_too_many_tensors_are_refused_before_they_are_read(face):
    many = {f"t{k}": torch.zeros(0) for k in range(5000)}
    face.write_bytes(save(many, {KEY: json.dumps({"schema": "facelock.face.v1"})}))
    refused(face, "not one of ours")


def test_a_later_version_says_so(face):
    resigned(face, lambda header: header.update(schema="facelock.face.v2", new="thing"))
    assert "Update FaceLock" in refused(face, "of version v2")


def test_tampered_tensors_and_headers_are_found(face):
    data = face.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for place in (8 + length, 8 + length + 1000, len(data) - 1):
        face.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refused(face, "damaged or was edited")
    for old, new in (
        (b"granted", b"license"),
        (b"one film", b"any film"),
        (b"2999", b"3999"),
        (b"Loop", b"loop"),
    ):
        if old in data:
            face.write_bytes(data.replace(old, new))
            refused(face, "damaged or was edited")


def _set(key, value):
    return lambda header: header.update({key: value})


def _encoder(key, value):
    return lambda header: header["encoders"][0].update({key: value})


def _tensor(value):
    return lambda tensors: tensors.update(value(tensors))


EDITS = {
    "not unit": (None, _tensor(lambda t: {"embedding.0": t["embedding.0"] * 1.01}), "length of 1.01"),
    "nan": (None, _tensor(lambda t: {"embedding.0": t["embedding.0"] * float("nan")}), "length of nan"),
    "infinite": (None, _tensor(lambda t: {"embedding.0": t["embedding.0"] / 0}), "length of"),
    "zero": (None, _tensor(lambda t: {"embedding.0": t["embedding.0"] * 0}), "length of 0"),
    "half": (None, _tensor(lambda t: {"embedding.0": t["embedding.0"].half()}), "wrong shape"),
    "matrix": (None, _tensor(lambda t: {"embedding.0": t["embedding.0"][None]}), "wrong shape"),
    "dim": (_encoder("dim", 16), None, "wrong shape"),
    "more tensors": (None, _tensor(lambda t: {"extra": torch.zeros(3)}), "not those of its header"),
    "fewer tensors": (None, lambda t: t.pop("embedding.1"), "not those of its header"),
    "no crops": (None, lambda t: t.pop("crops"), "not those of its header"),
    "float crops": (None, _tensor(lambda t: {"crops": t["crops"].float()}), "crops have the wrong shape"),
    "small crops": (None, _tensor(lambda t: {"crops": t["crops"][..., :8].contiguous()}), "crops have the wrong shape"),
    "crops": (_set("crops", 2), None, "crops have the wrong shape"),
    "one tensor twice": (_encoder("tensor", "embedding.1"), None, "not those of its header"),
    "one encoder twice": (_encoder("id", JUDGE), None, "not those of its header"),
    "no encoders": (_set("encoders", []), None, "header is wrong .encoders"),
    "unknown key": (_set("photo", "a.jpg"), None, "header is wrong .photo"),
    "missing key": (lambda header: header.pop("uuid"), None, "header is wrong .uuid"),
    "text for a number": (_set("left_out", "3"), None, "header is wrong .left_out"),
    "name": (_set("name", ""), None, "header is wrong .name"),
    "control characters": (_set("name", "a\x1b[2Jb"), None, "control characters"),
    "uuid": (_set("uuid", "../../etc/passwd"), None, "header is wrong .uuid"),
    "consent kind": (_set("consent", {"kind": "perhaps"}), None, "The consent is 'perhaps'"),
    "long consent": (_set("consent", {"kind": "x" * 5000}), None, "The consent is 'xxx"),
    "long key": (_set("k" * 5000, 1), None, "header is wrong .kkk"),
    "consent date": (_set("consent", {"kind": "self", "expires": "never"}), None, "consent's end is 'never'"),
    "spread": (_encoder("spread", {"count": 0, "mean": 1.0, "low": 1.0}), None, "header is wrong .encoders.0.spread"),
    "too much text": (_set("facelock", "x" * 51), None, "header is wrong .facelock"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_a_well_signed_lie_is_refused(face, what):
    change_header, change_tensors, match = EDITS[what]
    resigned(face, change_header or (lambda _: None), change_tensors or (lambda _: None))
    refused(face, match)


def test_a_harmless_edit_that_is_signed_is_read(face):
    resigned(face, _set("name", "Anne"))
    assert read_identity(face).name == "Anne"


def test_what_no_file_can_hold():
    with pytest.raises(InputError, match="no embedding"):
        pack(Record(Identity("x", {})))
    with pytest.raises(InputError, match="name"):
        pack(Record(Identity("a\nb", {LOOP: torch.ones(1)})))


# Other encoders.


def test_embeddings_of_other_encoders_are_never_compared(face):
    identity = read_identity(face)
    assert torch.equal(embedding_of(identity, LOOP), identity.embeddings[LOOP])
    with pytest.raises(
        InputError, match=r"other@1, only by loop@.*facelock identity create, with --faces and --judge"
    ):
        embedding_of(identity, "other@1")
    refused(face, "no embedding by other@1", lambda path: stored_identity(path, ["other@1"]))
    assert stored_identity(face, [LOOP, JUDGE], name="else").name == "else"
    refused(face, "holds one face", lambda path: stored_identity(path, face=1))


def test_kept_crops_can_be_embedded_by_another(face, enrolment, tmp_path):
    pack_ = Album().perception.faces
    pack_.encoder.id = "new@222222222222"
    other = Perception(pack_, pack_, ("new", "new"))
    identity = read_identity(face)
    again = re_embed(identity, other)
    assert again.perception == ("new", "new") and again.spread["new@222222222222"].count == 3
    assert set(again.embeddings) == {LOOP, JUDGE, "new@222222222222"}
    assert float(again.embeddings["new@222222222222"].norm()) == pytest.approx(1)
    assert torch.equal(again.embeddings[LOOP], identity.embeddings[LOOP])
    bare = read_identity(save_identity(enrolment, tmp_path / "bare.face", keep_crops=False))
    with pytest.raises(InputError, match="keeps no crops"):
        re_embed(bare, other)


def test_a_file_is_embedded_by_another(face):
    pack_ = Album().perception.faces
    pack_.encoder.id = "new@222222222222"
    before = read_record(face)
    record = embed_file(face, Perception(pack_, pack_, ("new", "new")))
    now = read_record(face)
    assert (
        set(now.identity.embeddings) == {LOOP, JUDGE, "new@222222222222"} == set(record.identity.embeddings)
    )
    assert (now.quality, now.created, now.identity.uuid) == (
        before.quality,
        before.created,
        before.identity.uuid,
    )
    revoke(face)
    refused(face, "was revoked", lambda path: embed_file(path, Perception(pack_, pack_, ("new", "new"))))


def test_crops_embed_almost_as_the_photo_did():
    seen = open_perception()
    photo = SAMPLES / "maria.png"
    whole = create_identity([photo], seen, name="maria").identity
    again = re_embed(replace(whole, embeddings={}), seen)
    for key, row in whole.embeddings.items():
        assert float(row @ again.embeddings[key]) > 0.98


# Consent.


def test_consent_holds_until_it_ends(face):
    identity = read_identity(face)
    require_consent(identity, date(2999, 12, 31))
    with pytest.raises(InputError, match="Änna: the consent to use this face expired on 2999-12-31"):
        require_consent(identity, date(3000, 1, 1))
    with pytest.raises(InputError, match="revoked on 2026-03-04"):
        require_consent(replace(identity, consent=Consent("self", revoked="2026-03-04")), date(2026, 1, 1))
    require_consent(Identity("x", {}))


@pytest.mark.parametrize(
    "consent",
    [Consent("maybe"), Consent(expires="2026-13-01"), Consent(expires="20260101"), Consent(revoked="x"),
     Consent(who="a\nb"), Consent(scope="x" * 501), Consent(when="2026-1-1")],
)  # fmt: skip
def test_a_consent_that_says_nothing_is_refused(consent):
    with pytest.raises(InputError):
        check_consent(consent)


def test_revoking_keeps_everything_else(face):
    before = read_record(face)
    record = revoke(face)
    day = record.identity.consent.revoked
    assert date.fromisoformat(day) and read_record(face).identity.consent == replace(CONSENT, revoked=day)
    assert (record.quality, record.created) == (before.quality, before.created)
    assert torch.equal(read_identity(face).crops, before.identity.crops)
    data = face.read_bytes()
    assert revoke(face).identity.consent.revoked == day and face.read_bytes() == data
    refused(face, "was revoked", stored_identity)


def test_what_it_says_in_words(face):
    record = read_record(face)
    text = "\n".join(describe(record))
    for part in (
        "Änna",
        record.identity.uuid,
        LOOP,
        "3 used, 0 left out",
        "3 kept",
        "granted by Änna",
        "until 2999",
    ):
        assert part in text
    said = summary(record)
    assert json.loads(json.dumps(said)) == said and said["encoders"][LOOP]["spread"]["count"] == 3
    old = replace(record, identity=replace(record.identity, consent=Consent("self", expires="2020-01-01")))
    assert "EXPIRED" not in text and describe(old)[-1].endswith("until 2020-01-01, EXPIRED")
    assert "REVOKED" in describe(revoke(face) and read_record(face))[-1]
