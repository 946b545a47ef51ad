"""``.face`` files where pictures are taken: in a pipeline, in verify, with consent that holds."""

from __future__ import annotations

import pytest
import torch
from test_identity_file import SAMPLES, enrolment, face, refused

from facelock.assembly import Assembly
from facelock.errors import InputError
from facelock.identity.enrol import create_identity
from facelock.identity.storage import is_face_file, read_faces, read_identity, revoke, save_identity
from facelock.perception import open_perception
from facelock.pipeline import Pipeline
from facelock.recipe import load_recipe
from facelock.types import Consent, Identity

__all__ = ["enrolment", "face"]  # fixtures of this module too


def test_a_face_file_is_known_by_name_and_by_content(face, tmp_path):
    assert is_face_file(face) and is_face_file(str(face)) and is_face_file(tmp_path / "none.face")
    assert is_face_file(face.rename(tmp_path / "noname"))
    assert not is_face_file(SAMPLES / "maria.png") and not is_face_file(tmp_path / "none.png")
    assert not is_face_file(tmp_path) and not is_face_file(None) and not is_face_file(torch.zeros(3))


def test_paths_of_face_files_are_read_and_others_left(face):
    maria = Identity("maria", {})
    read = read_faces([face, "photo.png", maria])
    assert read[0].name == "Änna" and read[1:] == ["photo.png", maria]
    assert read_faces(str(face)).uuid == read[0].uuid and read_faces("photo.png") == "photo.png"
    revoke(face)
    refused(face, "was revoked", lambda path: read_faces([path]))


@pytest.fixture(scope="module")
def bundled():
    return Pipeline(load_recipe("miniature"), Assembly(load_recipe("miniature"), "cpu"))


def test_a_pipeline_takes_face_files_pictures_and_identities(bundled, tmp_path, caplog):
    made = create_identity([SAMPLES / "maria.png"], open_perception(), name="maria")
    path = save_identity(made, tmp_path / "m.face")
    with caplog.at_level("INFO", "facelock"):
        cast = bundled.identities([path, SAMPLES / "leo.png", made.identity])
    assert [each.name for each in cast] == ["maria", "leo", "maria-2"]
    assert torch.equal(
        cast[0].embeddings[bundled.parts.judge.encoder], cast[2].embeddings[bundled.parts.judge.encoder]
    )
    assert [record.args[0] for record in caplog.records if "consent" in record.getMessage()] == [
        "maria",
        "maria-2",
    ]
    for row in cast[0].embeddings.values():
        assert row.dtype == torch.float32


def test_a_pipeline_refuses_what_ended_or_does_not_fit(bundled, face, tmp_path):
    with pytest.raises(
        InputError, match=r"anna.face: has no embedding by miniature/recogniser@.*identity create"
    ):
        bundled.identities([face])
    with pytest.raises(InputError, match="has no embedding by miniature/judge@"):
        bundled.identities([read_identity(face)])
    ended = Consent("self", expires="2020-01-01")
    made = create_identity([SAMPLES / "maria.png"], open_perception(), name="maria", consent=ended)
    path = save_identity(made, tmp_path / "m.face")
    for reference in (path, made.identity):
        with pytest.raises(InputError, match="expired on 2020-01-01"):
            bundled.identities([reference])
