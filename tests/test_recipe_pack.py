"""A recipe's kind ``pack``: any detector with any recogniser, in files or in the folder of a whole pack."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from facelock.assembly import Assembly
from facelock.assets import asset_dir
from facelock.errors import ModelError
from facelock.images import read_picture
from facelock.recipe import Recipe
from facelock.weights.catalog import Catalog

FACES = asset_dir("models") / "miniature" / "faces"
MARIA = Path(__file__).parents[1] / "samples" / "faces" / "maria.png"


def assembly(*, judge: str = "miniature/judge", **faces: object) -> Assembly:
    values = tomllib.loads((asset_dir("pipelines") / "default.toml").read_text())
    values["faces"] |= {"kind": "pack", **faces}
    values["judge"] |= {"kind": "pack", "encoder": judge}
    return Assembly(Recipe.model_validate(values), "cpu")


def test_a_folder_stands_for_the_files_in_it() -> None:
    pack = assembly(detector="miniature/faces", encoder="miniature/faces")
    files = assembly(detector="miniature/detector", encoder="miniature/recogniser")
    assert pack.pack.encoder.id == files.pack.encoder.id
    assert pack.weights == files.weights
    frames = read_picture(MARIA).frames
    one, other = pack.pack.detect(frames), files.pack.detect(frames)
    assert len(one) == 1 and torch.equal(one.box, other.box)
    assert pack.judge.encoder.startswith("miniature/judge@")
    identity = pack.identity(MARIA)
    assert set(identity.embeddings) == {pack.pack.encoder.id, pack.judge.encoder}


def test_thresholds_are_the_recipes_own_where_it_gives_them() -> None:
    own = {"far_1e2": 0.1, "far_1e3": 0.2, "far_1e4": 0.3}
    pack = assembly(detector="miniature/faces", encoder="miniature/faces", thresholds=own).pack
    assert pack.encoder.thresholds.far_1e3 == 0.2
    known = assembly(detector="miniature/faces", encoder="miniature/faces").pack
    assert known.encoder.thresholds == Catalog.load().entry("miniature/faces").thresholds


@pytest.mark.parametrize("role", ["detector", "encoder"])
def test_what_is_none_is_one_sentence(role: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no") as caught:
        assembly(**{"detector": "miniature/faces", "encoder": "miniature/faces", role: str(tmp_path)})
    assert len(str(caught.value).splitlines()) == 1


def test_the_wrong_kind_of_file_is_refused() -> None:
    with pytest.raises(ModelError, match="no face detector"):
        assembly(detector="miniature/recogniser", encoder="miniature/faces").pack  # noqa: B018
    with pytest.raises(ModelError, match="no recogniser"):
        assembly(detector="miniature/faces", encoder="miniature/detector").pack  # noqa: B018
