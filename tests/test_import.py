"""Importing facelock does nothing: no torch, no logging set-up, no files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import facelock

ROOT = Path(__file__).resolve().parent.parent
LIGHT = [
    "errors",
    "types",
    "protocols",
    "assets",
    "cli",
    "job",
    "output",
    "journal",
    "recipe",
    "cli.terminal",
    "files",
    "weights.catalog",
    "weights",
    "weights.download",
    "weights.wire",
    "weights.hub",
    "weights.pull",
    "weights.inventory",
    "cli.models",
    "cli.doctor",
    "doctor",
    "doctor.probes",
]
HEAVY = ("torch", "cv2", "onnxruntime", "diffusers", "transformers", "av", "matplotlib")


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, **options)


def test_light_modules_import_nothing_heavy_and_configure_nothing():
    code = f"""
import sys, logging, importlib
for name in {LIGHT!r}:
    importlib.import_module("facelock." + name)
print([name for name in {HEAVY!r} if name in sys.modules])
print(logging.getLogger().handlers, logging.getLogger("facelock").handlers)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["[]", "[] []", ""]
    assert done.stderr == ""


def test_import_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-B", "-c", "import facelock"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in facelock.__all__ if name != "__version__"])
def test_public_names_exist_and_are_documented(name):
    value = getattr(facelock, name)
    assert value.__doc__, f"facelock.{name} has no docstring"
    assert value.__name__ == name


def test_unknown_names_raise():
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        facelock.generat  # noqa: B018
    assert "generate" in dir(facelock)


def test_version_is_the_distribution_s():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared and declared[1] == facelock.__version__
