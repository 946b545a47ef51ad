"""The layers of design.md, held over the syntax tree: imports point down only, a stage never imports another."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "facelock"
LEVELS = [
    {"errors", "assets"},
    {"types"},
    {"protocols", "files", "bootstrap", "mistakes"},
    {
        "nets",
        "batchable",
        "bound",
        "precision",
        "runtime",
        "lanes",
        "geometry",
        "images",
        "appearance",
        "weights",
        "sound",
        "tuning",
    },
    {"video"},
    {"faces", "perception", "identity", "ledger", "explain"},
    {
        "closed_loop",
        "share_search",
        "restore_loop",
        "lock_loop",
        "portrait",
        "blueprint",
        "alignment",
        "restoration",
    },
    {"guidance"},
    {"recipe", "job", "report"},
    {"journal", "parts", "steps", "output", "preflight", "memory", "suitability", "assembly"},
    {"pipeline", "overlap", "making", "clip", "footage"},
    {"storyboard", "storyboards"},
    {"doctor"},
    {"api"},
    {"miniature"},
    {"bench"},
    {"cli"},
]
STAGES = {"blueprint", "alignment", "restoration"}
FREE = {"__init__", "__main__"}
TOP_LEVEL_CALLS_DOWN = {"miniature": {"blueprint"}}


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


def imports(path: Path) -> set[str]:
    """facelock modules that a file imports when it is imported itself (not under TYPE_CHECKING or in functions)."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "facelock":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("facelock.")}
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.stem not in FREE)


def owner(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    mine = owner(path)
    for other in imports(path) - {mine, "__version__"}:
        assert level(other) <= level(mine), f"{mine} imports {other}, which lies above it"
        assert not (mine in STAGES and other in STAGES), f"stage {mine} imports stage {other}"


def test_every_module_has_a_level():
    known = set().union(*LEVELS) | FREE
    present = {owner(p) for p in FILES} - FREE
    assert present <= known, f"place these in LEVELS: {present - known}"


def test_data_folders_hold_no_python():
    assert not list((ROOT / "models").rglob("*.py"))
    assert not list((ROOT / "pipelines").rglob("*.py"))


def test_no_pickles_and_no_shell():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for word in ("pickle.load", "shell=True", "yaml.load("):
            assert word not in text, f"{path}: {word}"
        for call in re.findall(r"torch\.load\([^\n]*", text):
            assert "weights_only=True" in call, f"{path}: {call}"
