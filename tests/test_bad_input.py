"""Every command over files and names that are not what they should be: one sentence, the right code, nothing left.

The stages are the real ones. Commands that this installation lacks are passed over, so that each new one is swept by
adding a row to ``COMMANDS``.
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import bad_files
import pytest
from file_server import serve

from facelock import cli
from facelock.pipeline import Pipeline

MARIA = str(bad_files.ROOT / "samples" / "faces" / "maria.png")
LIMIT = 60
"""Seconds after which a command counts as hanging."""
LONGEST = 700
"""Characters of a sentence."""

COMMANDS = {
    "verify": ["verify", "{clip}", "--face", "{face}", "--recipe", "{recipe}", "--device", "cpu"],
    "lock": [
        "lock", "{clip}", "--face", "{face}", "-o", "out.mp4", "--recipe", "{recipe}", "--device", "cpu",
    ],
    "generate": [
        "generate", "a woman", "--face", "{face}", "--seconds", "1", "-o", "out.mp4", "--recipe", "{recipe}",
        "--device", "cpu",
    ],
    "identity": ["identity", "create", "x", "{face}", "-o", "x.face", "--device", "cpu"],
    "models pull": ["models", "pull", "{name}"],
    "models verify": ["models", "verify", "{name}"],
}  # fmt: skip
"""What is swept; the words in braces are replaced by bad files one after the other."""


def registered() -> set[str]:
    names = {str(c.name or c.callback.__name__) for c in cli.app.registered_commands if c.callback}
    return names | {str(group.name) for group in cli.app.registered_groups}


def taking(what: str) -> list[str]:
    """The commands that are here and take a ``{what}``."""
    return [n for n, words in COMMANDS.items() if n.split()[0] in registered() and f"{{{what}}}" in words]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """All bad files, and one good clip."""
    folder = tmp_path_factory.mktemp("bad")
    with serve() as site:
        made = {
            "clip": bad_files.clips(folder / "clips", site.url), "face": bad_files.pictures(folder / "pictures"),
            "recipe": bad_files.recipes(folder / "recipes"), "weight": bad_files.weights(folder / "weights"),
            "name": ["", " ", "..", "../../etc/passwd", "/etc/passwd", "a" * 5000, "opencv/", "\u202e", "https://x.org/a"],
        }  # fmt: skip
        yield {**made, "folder": folder, "good": str(folder / "good.mp4"), "site": site}


@pytest.fixture(scope="module")
def loaded():
    """The shipped pipeline, loaded once for every command."""
    return Pipeline.from_recipe("miniature", "cpu")


@pytest.fixture
def complaint(tmp_path, monkeypatch, capsys):
    """Run a command that should be refused; return its one sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "home"))

    def hanging(*_: object) -> None:
        raise TimeoutError

    def run(command: str, codes=(2,), **given: str) -> str:
        words = [given.get(word[1:-1], word) if word[:1] == "{" else word for word in COMMANDS[command]]
        before = signal.signal(signal.SIGALRM, hanging)
        signal.alarm(LIMIT)
        try:
            with pytest.raises(SystemExit) as left:
                cli.main(words)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if line.startswith("facelock: error: ")]
        shown = f"{' '.join(words)[:300]}\n{err[-1500:]}"
        assert left.value.code in codes, f"exit code {left.value.code}: {shown}"
        assert len(said) == 1 and "Traceback" not in err and out == "", shown
        assert said[0].rstrip().endswith(".") and len(said[0]) < LONGEST, shown
        return said[0]

    return run


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("command", taking("clip"))
def test_clips(command, shelf, complaint, tmp_path):
    before = everything(shelf["folder"])
    every = 1 if command == taking("clip")[0] else 4  # they read through one door: the first command sees all
    for clip in shelf["clip"][::every]:
        said = complaint(command, clip=clip, face=MARIA, recipe="miniature")
        assert Path(clip).name[:40] in said or clip in ("-", "--"), said
    assert everything(shelf["folder"]) == before and everything(tmp_path) == set()
    assert shelf["site"].asked == []  # nobody asked the network for anything


@pytest.mark.parametrize("command", taking("face"))
def test_pictures(command, shelf, complaint, tmp_path, loaded, monkeypatch):
    monkeypatch.setattr(Pipeline, "from_recipe", lambda *_: loaded)
    before = everything(shelf["folder"])
    for face in shelf["face"]:
        said = complaint(command, clip=shelf["good"], face=face, recipe="miniature")
        assert Path(face).name[:40] in said, said
    assert everything(shelf["folder"]) == before
    assert [p for p in tmp_path.iterdir() if not p.name.endswith(".partial")] == []


@pytest.mark.parametrize("command", taking("recipe"))
def test_recipes(command, shelf, complaint, tmp_path):
    for recipe in shelf["recipe"]:
        complaint(command, clip=shelf["good"], face=MARIA, recipe=recipe)
    assert everything(tmp_path) == set()


@pytest.mark.parametrize("role", ["detector", "judge"])
def test_weights(role, shelf, complaint, tmp_path):
    text = (bad_files.ROOT / "pipelines" / "default.toml").read_text()
    recipe = tmp_path / "mine.toml"
    for weight in shelf["weight"]:
        recipe.write_text(text.replace(f'"miniature/{role}"', f'"{weight}"'))
        complaint("verify", (2, 3), clip=shelf["good"], face=MARIA, recipe=str(recipe))
    assert everything(tmp_path) == {recipe}  # the pickles' canary is not there either


@pytest.mark.parametrize("command", taking("name"))
def test_names_of_weights(command, shelf, complaint, tmp_path):
    for name in shelf["name"]:
        complaint(command, name=name)
    assert everything(tmp_path) == set()


def test_nothing_is_asked_of_the_network(shelf, tmp_path, monkeypatch, capsys):
    """The bundled models are all that the commands need, and none of them looks anywhere else."""

    def reached(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, reached)
    monkeypatch.setattr(socket, "getaddrinfo", reached)
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path))
    for words in (
        ["models", "list"],
        ["models", "verify"],
        [
            "verify",
            shelf["good"],
            "--face",
            MARIA,
            "-o",
            str(tmp_path / "a"),
            "--device",
            "cpu",
            "--commercial",
        ],
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert left.value.code == (4 if words[0] == "verify" else 0), (
            capsys.readouterr().err
        )  # nobody is in the clip
