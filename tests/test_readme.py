"""Every command and snippet of the documentation is run: a page that lies fails here.

What would take hours is run shortened (``SHORTER``), and says so; the README's two first commands are what
``.ci/run`` runs.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image
from real import ASSETS, needs_assets

from facelock.bench import cast
from facelock.miniature.samples import portrait
from facelock.video.writing import SegmentWriter, find_ffmpeg, join_segments

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "pipelines" / "README.md"]
SHORTER = {
    "--seconds 60": "--seconds 3 --identities 2",
    "--seconds 10 -o": "--seconds 1 -o",
    "--seconds 6 -o": "--seconds 1 -o",
    "samples/storyboards/three-friends.yaml": "board.yaml",
    "--shot 7": "--shot 2",
}
BOARD = """\
schema: facelock.storyboard.v1
cast:
  maria: {face: samples/faces/maria.png, look: a woman}
  tom: {face: samples/faces/tom.png, look: a man}
defaults: {target: 0.5, tries: 1}
shots:
  - {prompt: "{maria} smiling in a forest", seconds: 1}
  - {prompt: "{tom} smiling in an office", seconds: 1}
"""
RUN_BY_CI = ("bash first-clip.sh", "bash run-tests.sh")


def blocks(page: Path, *kinds: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind in kinds]


def commands(page: Path) -> list[str]:
    lines = "".join(blocks(page, "bash", "")).replace("\\\n", " ").splitlines()
    return [stripped for line in lines if (stripped := line.split("  #")[0].strip())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder: the samples, and a recipe and a picture of their own."""
    path = tmp_path_factory.mktemp("user")
    (path / "samples").symlink_to(ROOT / "samples")
    (path / "docs").mkdir()
    (path / "maria.png").write_bytes((ROOT / "samples" / "faces" / "maria.png").read_bytes())
    (path / "my.toml").write_text((ROOT / "pipelines" / "default.toml").read_text())
    (path / "board.yaml").write_text(BOARD)
    photos(path)
    drifted(path / "drifted.mp4")
    return path


def photos(path: Path) -> None:
    """Three pictures of Maria, each in another size and light."""
    (path / "photos").mkdir()
    for name, size, light in (("a", 512, 1.0), ("b", 384, 0.9), ("c", 448, 0.8)):
        pixels = (portrait("maria", size)[0].permute(1, 2, 0) * 255 * light).round().byte().numpy()
        for place in (path / f"{name}.jpg", path / "photos" / f"{name}.jpg"):
            Image.fromarray(pixels).save(place, quality=95)


def drifted(path: Path) -> None:
    """Two seconds of somebody who is not Maria."""
    frames = cast.true_clip(cast.member(2), 24, 128, 0)[0]
    segment = path.with_suffix(".mkv")
    with SegmentWriter(segment, (128, 128), Fraction(12)) as writer:
        writer.write(frames)
    join_segments([segment], path, fps=Fraction(12))


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_first_two_commands_are_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    first = commands(ROOT / "README.md")[:2]
    assert tuple(first) == RUN_BY_CI
    assert all(command in ci for command in RUN_BY_CI)


def all_commands() -> list[tuple[str, str]]:
    return [(p.name, c) for p in PAGES for c in commands(p) if c not in RUN_BY_CI]


@pytest.mark.parametrize(("page", "command"), all_commands())
def test_a_command_of_the_documentation_works(page, command, folder):
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    words = [found for word in shlex.split(command) for found in expanded(word, folder)]
    words[0] = {"python": sys.executable}.get(words[0], words[0])
    assert words[0] in ("facelock", sys.executable), f"{page}: do not know how to test {command!r}"
    run(words, folder)


def expanded(word: str, folder: Path) -> list[str]:
    """What a shell makes of a word with a star in it."""
    return sorted(str(found.relative_to(folder)) for found in folder.glob(word)) if "*" in word else [word]


def real_commands() -> list[str]:
    """The README's commands for photographs and footage."""
    texts = blocks(ROOT / "README.md", "text")
    lines = [line.split("  #")[0].strip() for text in texts for line in text.splitlines()]
    real = (
        "facelock identity ",
        "facelock verify ",
        "facelock lock ",
    )  # the others are for production checkpoints
    return [line for line in lines if line.startswith(real)]


@needs_assets
def test_the_commands_for_real_people(tmp_path, monkeypatch):
    """As they stand, with the recognisers of ../shared/assets by their files instead of the catalog's by name."""
    pack = (
        f"{ASSETS}/detectors/face_detection_yunet_2023mar.onnx+{ASSETS}/recognisers/arcface_mbf_y1_ms1m.onnx"
    )
    given = {
        "opencv:yunet+sface": pack,
        "FILE": f"{ASSETS}/recognisers/w600k_mbf_dequant_fp32.onnx",
        "photos/*.jpg": " ".join(map(str, sorted((ASSETS / "photos/lfw/Colin_Powell").glob("*.jpg")))),
    }
    monkeypatch.setenv("FACELOCK_LANDMARKS", str(ASSETS / "landmarks" / "face_landmarker.task"))
    cut = [
        "-v",
        "error",
        "-i",
        str(ASSETS / "videos" / "retalk_2.mp4"),
        "-t",
        "0.6",
        str(tmp_path / "clip.mp4"),
    ]
    subprocess.run([find_ffmpeg(), *cut], check=True)
    codes = {}
    for command in real_commands():
        for word, found in given.items():
            command = command.replace(word, found)
        words = shlex.split(command)
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
        codes[words[1]] = done.returncode
    assert codes == {"identity": 0, "verify": 4, "lock": 0}  # it is not he, and then it is
    assert (tmp_path / "fixed.report.html").is_file()


def snippets() -> list[tuple[str, str]]:
    return [(p.name, s) for p in PAGES for s in blocks(p, "python")]


@pytest.mark.parametrize(("page", "snippet"), snippets(), ids=lambda v: v.splitlines()[0][:40])
def test_a_snippet_of_the_documentation_works(page, snippet, folder):
    for long, short in SHORTER.items():
        snippet = snippet.replace(long, short)
    if "clip.report.json" in snippet:
        assert (folder / "clip.report.json").exists(), "the recipe's example has made it"
    run([sys.executable, "-c", snippet], folder)


def training_commands() -> list[str]:
    text = (ROOT / "docs" / "training.md").read_text()
    return re.findall(r"`python -m (facelock\.miniature [^`]+)`", text)


def test_the_training_commands_exist(monkeypatch, tmp_path):
    """They take hours: each is parsed and dispatched, with the work itself replaced."""
    from facelock.miniature import cards, data, inside_crate, parts_of_face, samples, train

    called: list[str] = []
    monkeypatch.setattr(train, "resolve_device", lambda name: name)
    monkeypatch.setattr(data, "build", lambda kind, *a, **k: called.append(f"data {kind}"))
    monkeypatch.setattr(train, "train", lambda shop, part, *a: called.append(f"train {part}"))
    monkeypatch.setattr(train, "export", lambda *a: called.append("export"))
    monkeypatch.setattr(train, "evaluate", lambda *a: called.append("evaluate"))
    monkeypatch.setattr(samples, "write", lambda *a: called.append("samples"))
    monkeypatch.setattr(parts_of_face, "write", lambda *a, **k: called.append("parts"))
    monkeypatch.setattr(inside_crate, "write", lambda *a, **k: called.append("crate") or "")
    monkeypatch.setattr(cards, "measure", lambda *a: {})
    monkeypatch.setattr(cards, "write", lambda *a: called.append("cards"))
    lines = training_commands()
    assert len(lines) > 8
    for line in lines:
        before = len(called)
        train.main([*line.split()[1:]])
        assert len(called) > before, line


def test_pictures_and_pages_that_are_linked_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
