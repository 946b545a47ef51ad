"""``facelock identity``: make, show, revoke; one line on stdout, one line per error, the right exit code."""

from __future__ import annotations

import json
import stat
import sys
from datetime import UTC, datetime

import pytest
import torch
from PIL import Image

import facelock
from facelock import cli
from facelock.assets import asset_dir
from facelock.identity.storage import read_record

SAMPLES = asset_dir("models").parent / "samples" / "faces"


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Run ``facelock`` in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        return left.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def photos(tmp_path):
    """Two photos of Maria and one of Tom."""
    with Image.open(SAMPLES / "maria.png") as image:
        image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
            tmp_path / "other.jpg", quality=95
        )
    return [SAMPLES / "maria.png", tmp_path / "other.jpg", SAMPLES / "tom.png"]


def create(*photos, output="maria.face", more=()):
    return ["identity", "create", "maria", *photos, "-o", output, *more]


@pytest.mark.parametrize("name", ["create", "show", "embed", "revoke"])
def test_every_command_has_help(command, name):
    code, out, err = command("identity", name, "--help")
    assert code == 0 and err == "" and out.startswith(f"Usage: facelock identity {name}")
    for line in out.splitlines():
        option = line.split()[:1]
        assert not option or not option[0].startswith("--") or len(line.split()) > 2, f"undocumented: {line}"
    if name == "create":
        assert "facelock identity create" in out.split("Example")[1]


def test_identity_alone_shows_its_help(command):
    code, out, err = command("identity")
    assert code == 2 and out == "" and "create" in err


def test_create_show_and_revoke(command, photos, tmp_path):
    given = [
        "--consent",
        "granted",
        "--consent-by",
        "Maria",
        "--consent-scope",
        "tests",
        "--consent-expires",
        "2999-01-01",
    ]
    code, out, err = command(*create(*photos, more=[*given, "--keep-crops"]))
    assert code == 0, err
    assert out == "maria.face: maria from 2 of 3 photos\n"
    assert "facelock: tom.png: left out: shows another person\n" in err
    assert stat.S_IMODE((tmp_path / "maria.face").stat().st_mode) == 0o600
    record = read_record(tmp_path / "maria.face")
    today = datetime.now(UTC).date().isoformat()
    assert record.identity.consent == facelock.Consent("granted", "Maria", today, "tests", "2999-01-01")
    assert record.identity.crops.shape[0] == 2 and len(record.quality) == 2 and record.left_out == 1

    code, out, err = command("identity", "show", "maria.face")
    assert code == 0 and err == ""
    for part in ("maria", record.identity.uuid, "miniature/judge@", "2 used, 1 left out", "granted by Maria"):
        assert part in out
    code, out, _ = command("identity", "show", "maria.face", "--json")
    said = json.loads(out)
    assert code == 0 and said["file"] == "maria.face" and said["consent"]["who"] == "Maria"
    assert len(said["photos"]) == 2 and said["crops"] == 2

    code, out, err = command("identity", "embed", "maria.face")
    known = ", ".join(record.identity.embeddings)
    assert (code, out) == (0, f"maria.face: embedded by {known}\n")

    code, out, err = command("identity", "revoke", "maria.face")
    assert (code, out) == (0, f"maria.face: consent revoked on {today}\n")
    generate = ["generate", "a woman", "--face", "maria.face", "--seconds", 1, "-o", "x.mp4"]
    code, out, err = command(*generate)
    assert code == 2 and out == "" and not (tmp_path / "x.mp4").exists()
    assert err.splitlines()[-1] == (
        f"facelock: error: maria.face: the consent to use this face was revoked on {today}. "
        "Use another identity, or ask again and create it anew."
    )


def test_json_and_quiet(command, photos):
    code, out, err = command(*create(photos[0], more=["--json", "--quiet"]))
    said = json.loads(out)
    assert code == 0 and err == "" and said["name"] == "maria" and said["consent"]["kind"] == "unknown"
    assert command(*create(photos[0], more=["--overwrite", "--quiet"])) == (0, "", "")


def test_an_unknown_consent_is_remarked_once(command, photos):
    code, _, err = command(*create(photos[0]))
    assert code == 0 and err.count("--consent") == 1


def refused(command, arguments, *words, code=2):
    found, out, err = command(*arguments)
    last = err.splitlines()[-1]
    assert found == code and out == "" and last.startswith("facelock: error: ") and last.endswith("."), err
    assert "Traceback" not in err
    for word in words:
        assert word in last, last


def test_bad_input_is_one_line(command, photos, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "taken.face").write_bytes(b"keep me")
    before = sorted(path.name for path in tmp_path.iterdir())
    maria, tom = photos[0], photos[2]
    refused(command, create(maria, tom), "2 people equally often (1: maria.png; 2: tom.png)", "Give")
    refused(command, create("text.jpg"), "text.jpg: is text, not a picture")
    refused(command, create("none.jpg", "text.jpg"), "none.jpg: there is no such file", "text.jpg: is text")
    refused(command, create(maria, output="taken.face"), "taken.face: exists already", "--overwrite")
    refused(command, create(maria, output="me.jpg"), "ends in .face")
    refused(command, create(maria, more=["--consent", "perhaps"]), "'perhaps'", "fictional")
    refused(command, create(maria, more=["--consent-expires", "soon"]), "'soon'", "2026-12-31")
    refused(command, create(maria, more=["--face-index", "3"]), "no face 3")
    refused(
        command,
        ["identity", "show", "taken.face"],
        "taken.face: is not a .face file",
        "facelock identity create",
    )
    refused(command, ["identity", "show", "none.face"], "no such file")
    refused(command, ["identity", "revoke", tmp_path], "is a folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "taken.face").read_bytes() == b"keep me"


def test_the_same_from_python(photos, tmp_path):
    made = facelock.create_identity(photos, name="maria", consent=facelock.Consent("fictional"))
    assert len(made.used) == 2 and isinstance(made, facelock.Enrolment)
    path = facelock.save_identity(made, tmp_path / "maria.face")
    read = facelock.load_identity(path)
    assert read.name == "maria" and facelock.load_identity(path, name="her").name == "her"
    for key, row in facelock.load_identity(path, recipe="miniature").embeddings.items():
        assert torch.equal(row, made.identity.embeddings[key])
    one = facelock.create_identity(photos[0], name="maria")
    assert len(one.findings) == 1
    with pytest.raises(facelock.InputError, match="exists already"):
        facelock.save_identity(one, path)


def test_the_command_line_of_identities_is_light():
    import subprocess

    code = "import sys, facelock.cli.identity; print([m for m in ('torch', 'cv2', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
