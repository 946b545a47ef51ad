"""The wheel holds everything that a checkout ships: code, recipes, models."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def tracked(folder: str) -> list[str]:
    out = subprocess.run(
        ["git", "ls-files", folder], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return out.split()


@pytest.mark.parametrize("folder", ["facelock", "pipelines", "models"])
def test_the_wheel_holds_what_git_tracks(wheel, folder):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing to compare with")
    prefix = "" if folder == "facelock" else "facelock/"
    missing = [f for f in tracked(folder) if prefix + f not in wheel]
    assert not missing


def test_the_wheel_holds_no_tests_and_no_samples(wheel):
    assert not [n for n in wheel if n.startswith(("tests/", "samples/", "docs/"))]
    assert "facelock/models/catalog.toml" in wheel
    assert "facelock/pipelines/default.toml" in wheel


def test_bundled_weights_stay_small():
    total = sum(f.stat().st_size for f in (ROOT / "models").rglob("*") if f.is_file())
    assert total <= 48 * 2**20, f"{total / 2**20:.1f} MiB"
