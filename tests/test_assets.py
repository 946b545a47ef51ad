"""The shipped folders are found in a checkout and in a wheel, and a stranger's are not taken for ours."""

from __future__ import annotations

import pytest

from facelock import assets


@pytest.mark.parametrize(("kind", "marker"), [("models", "catalog.toml"), ("pipelines", "default.toml")])
def test_found_beside_or_above_the_package(tmp_path, monkeypatch, kind, marker):
    package = tmp_path / "site" / "facelock"
    monkeypatch.setattr(assets, "_PACKAGE", package)
    above, beside = tmp_path / "site" / kind, package / kind
    above.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="reinstall"):
        assets.asset_dir(kind)  # a folder of that name, but not ours
    (above / marker).write_text("")
    assert assets.asset_dir(kind) == above
    beside.mkdir(parents=True)
    (beside / marker).write_text("")
    assert assets.asset_dir(kind) == beside


def test_this_installation_has_both():
    assert (assets.asset_dir("models") / "catalog.toml").is_file()
    assert (assets.asset_dir("pipelines") / "default.toml").is_file()
