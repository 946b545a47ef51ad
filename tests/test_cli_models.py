"""``facelock models``: list, pull, verify. The catalog is a small one, the server a local one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from file_server import serve

from facelock import cli
from facelock.weights import catalog, pull
from facelock.weights.catalog import Catalog
from facelock.weights.inventory import check, inventory
from facelock.weights.wire import Wire

HERE = Path(__file__).resolve().parent
CONTENT = b"weights" * 50_000

CATALOG = """
[models."mini/one"]
path = "one.onnx"
sha256 = "{one}"
bytes = 3
task = "detection"
licence = "Apache-2.0"
commercial = true
"""
PUBLIC = """
[models."far/free"]
path = "far/free.onnx"
sha256 = "{far}"
bytes = {bytes}
task = "recognition"
licence = "MIT"
commercial = true
used_by = ["opencv:far"]
[models."far/free".fetch]
urls = ["https://example.org/free.onnx"]

[models."far/research"]
path = "far/research.onnx"
sha256 = "{far}"
bytes = {bytes}
task = "recognition"
licence = "research only"
[models."far/research".fetch]
urls = ["https://example.org/research.onnx"]
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A catalog of one bundled and two public weights, and an empty cache folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    sha = {"one": hashlib.sha256(b"one").hexdigest(), "far": hashlib.sha256(CONTENT).hexdigest()}
    (folder / "catalog.toml").write_text(CATALOG.format(**sha))
    (folder / "public.toml").write_text(PUBLIC.format(**sha, bytes=len(CONTENT)))
    (folder / "one.onnx").write_bytes(b"one")
    monkeypatch.setattr(catalog, "asset_dir", lambda _: folder)
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def site(monkeypatch):
    """A local server in place of every address."""
    with serve(CONTENT) as running:
        asked = pull.download

        def local(urls, *rest, wire=None, **named):
            paths = [running.url + url.rsplit("/", 1)[1] for url in urls]
            return asked(paths, *rest, wire=Wire(timeout=5, loopback=True), **named)

        monkeypatch.setattr(pull, "download", local)
        yield running


@pytest.fixture
def models(shop, capsys):
    """Run ``facelock models`` in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            cli.main(["models", *map(str, arguments)])
        return left.value.code, *capsys.readouterr()

    return run


def test_the_list_says_what_is_here(models, shop, site):
    code, out, _ = models("list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and list(lines) == ["NAME", "mini/one", "far/free", "far/research"]
    assert "bundled  yes" in lines["mini/one"] and "0.3 MiB  missing  yes" in lines["far/free"]
    assert (
        lines["far/free"].endswith("MIT            opencv:far")
        and "no          research only" in lines["far/research"]
    )
    models("pull", "far/free")
    assert "pulled" in models("list")[1]


def test_the_list_for_commercial_use_and_for_machines(models):
    assert "research" not in models("list", "--commercial")[1]
    code, out, _ = models("list", "--commercial", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["name"] for row in rows] == ["mini/one", "far/free"]
    assert rows[1]["urls"] == ["https://example.org/free.onnx"] and rows[1]["state"] == "missing"
    assert rows[1]["download"] == len(CONTENT) and rows[0]["download"] is None


def test_pulling_shows_size_and_licence_first(models, shop, site):
    code, out, err = models("pull", "far-free", "far/research")
    path = shop / "home" / "models" / "far"
    assert code == 0
    assert out.splitlines() == [f"far/free: {path}/free.onnx", f"far/research: {path}/research.onnx"]
    assert "facelock: far/free: recognition, 0.3 MiB, MIT" in err
    assert "facelock: far/research: its licence does not allow commercial use" in err
    assert "far/free: its licence" not in err
    code, out, err = models("pull", "far/free")
    assert code == 0 and "is here already" in err and len(site.asked) == 2
    assert models("pull", "far/free", "--quiet") == (0, "", "")
    assert models("pull", "mini/one")[0] == 0


def test_pulling_for_commercial_use_refuses_before_anything_is_fetched(models, site):
    code, out, err = models("pull", "far/free", "far/research", "--commercial")
    assert (code, out) == (2, "") and site.asked == []
    assert err == (
        "facelock: error: far/research does not allow commercial use (its licence: research only). "
        "Choose another, or leave --commercial out.\n"
    )
    assert models("pull", "far/free", "--commercial")[0] == 0


def test_names_that_nobody_knows(models):
    for command in ("pull", "verify"):
        code, _, err = models(command, "far/fre")
        assert code == 2 and err.startswith(
            "facelock: error: no model is called 'far/fre'. Known ones near it: far/fre"
        )
    assert models("pull")[0] == 2 and models()[0] == 2


def test_verify_reads_what_is_here(models, shop, site):
    assert models("verify") == (0, "mini/one: whole\n", "")
    code, out, err = models("verify", "far/free")
    assert code == 3 and out == "far/free: missing\n" and "facelock models pull far/free" in err
    models("pull", "far/free")
    assert models("verify")[1] == "mini/one: whole\nfar/free: whole\n"
    path = shop / "home" / "models" / "far" / "free.onnx"
    stat = path.stat()
    path.write_bytes(CONTENT[:-1] + b"?")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time: only reading tells
    code, out, err = models("verify")
    assert code == 3 and "far/free: damaged" in out
    assert f"facelock: error: {path}: not the file the catalog knows" in err
    (shop / "models" / "one.onnx").unlink()
    code, _, err = models("verify", "--quiet")
    assert code == 3 and "2 weights are damaged or missing: mini/one, far/free" in err
    code, out, _ = models("verify", "--json")
    assert code == 3 and [row["state"] for row in json.loads(out)] == ["damaged", "damaged", "missing"]
    path.write_bytes(b"short")
    assert models("pull", "far/free")[0] == 0 and models("verify", "far/free")[0] == 0


def test_offline_is_one_sentence(models, monkeypatch):
    import socket

    def offline(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    code, _, err = models("pull", "far/free", "--quiet")
    assert code == 3 and err.count("\n") == 1
    assert err.startswith(
        "facelock: error: far/free: cannot be fetched (example.org: its name cannot be resolved"
    )


def test_from_python(shop, site):
    assert [(s.entry.name, s.state) for s in inventory()] == [
        ("mini/one", "bundled"), ("far/free", "missing"), ("far/research", "missing"),
    ]  # fmt: skip
    path = pull.pull("far-free", commercial=True)
    assert path.read_bytes() == CONTENT
    assert [(c.entry.name, c.state, c.sentence) for c in check(["far/free"])] == [("far/free", "whole", "")]


def test_the_shipped_weights_are_whole():
    assert {c.state for c in check([n for n, e in Catalog.load().entries.items() if e.bundled])} == {"whole"}


STOPPED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from facelock import cli
from facelock.weights import catalog
from facelock.weights import pull
from facelock.weights.wire import Wire
catalog.asset_dir = lambda _: Path(sys.argv[2])
fetch = pull.download
pull.download = lambda urls, *a, wire=None, **k: fetch([sys.argv[3]], *a, wire=Wire(5, True), **k)
cli.main(["models", "pull", "far/free"])
"""


def test_a_bar_on_a_terminal(shop, site):
    import pty

    site.pause = 0.05
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", STOPPED, str(HERE), str(shop / "models"), site.url]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and out.decode().startswith("far/free: ")
    for word in (b"far/free", "━".encode(), b"KiB", b"recognition, 0.3 MiB, MIT"):
        assert word in shown


@pytest.mark.parametrize("command", [[], ["list"], ["pull"], ["verify"]])
def test_help(models, command):
    code, out, err = models(*command, "--help")
    assert code == 0 and f"Usage: facelock models {' '.join(command)}".rstrip() in out and err == ""


def test_ctrl_c_keeps_what_came(shop, site):
    site.pause = 0.2
    command = [sys.executable, "-c", STOPPED, str(HERE), str(shop / "models"), site.url]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    part = shop / "home" / "models" / "far" / "free.onnx.part"
    for _ in range(600):
        if part.exists() and part.stat().st_size:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert "What has come is kept; give the same command again to go on." in err
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT)
    site.pause = 0
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert site.asked[-1][1] == f"bytes={kept}-"
    shutil.rmtree(shop / "home")


# ---------------------------------------------------------------------- all that a recipe names

PIPELINES = HERE.parent / "pipelines"


@pytest.fixture
def own(shop, monkeypatch):
    """A recipe of the small catalog's weights and a file of its own."""
    monkeypatch.setattr("facelock.recipe.asset_dir", lambda _: PIPELINES)
    (shop / "mine.onnx").write_bytes(b"mine")

    def write(**names):
        text = (PIPELINES / "default.toml").read_text()
        for entry in ("blueprint", "detector", "recogniser", "aligner", "upscaler", "restorer", "judge"):
            text = text.replace(f'"miniature/{entry}"', f'"{names.get(entry, "mini/one")}"')
        path = shop / "own.toml"
        path.write_text(text)
        return path

    return write


def test_all_weights_of_a_recipe_are_pulled(models, shop, site, own):
    path = own(upscaler="far/free", judge="far-research", restorer="mine.onnx")
    code, out, err = models("pull", "--recipe", path)
    folder = shop / "home" / "models" / "far"
    assert code == 0, err
    assert {f"far/free: {folder}/free.onnx", f"far/research: {folder}/research.onnx"} < set(out.splitlines())
    assert "mini/one: is here already" in err and "mine.onnx" not in out
    asked = len(site.asked)
    assert models("pull", "--recipe", path)[0] == 0 and len(site.asked) == asked


def test_the_name_of_a_recipe_stands_for_all_that_it_needs(models, shop, site, own, monkeypatch):
    own(upscaler="far/free", judge="far-research")
    monkeypatch.setattr("facelock.recipe.asset_dir", lambda _: shop)
    assert models("pull", "own", "--only")[0] == 2 and site.asked == []  # no weight is called so
    code, out, err = models("pull", "own")
    assert code == 0 and "far/free: " in out and "far/research: " in out
    assert "the recipe needs mini/one, far/free, far-research (--only: own alone)" in err


def test_a_recipe_is_refused_as_a_whole(models, shop, site, own):
    path = own(upscaler="far/free", judge="far/research", restorer="mine.onnx")
    code, out, err = models("pull", "--recipe", path, "--commercial")
    assert (code, out, site.asked) == (2, "", [])
    assert (
        "far/research does not allow commercial use" in err and "mine.onnx: its licence is not known" in err
    )
    code, _, err = models("pull", "--recipe", own(upscaler="far/free", judge="far/fre", aligner="far/fee"))
    assert code == 2 and site.asked == [] and "'far/fre'" in err and "'far/fee'" in err
    assert models("pull", "--recipe", "nowhere.toml")[0] == 2
    assert models("pull", "--recipe", own(upscaler="far/free"), "--commercial")[0] == 0


def test_an_unknown_name_has_one_exit_code_wherever_it_is_given(models, shop, own, capsys):
    assert models("pull", "far/fre")[0] == 2
    words = ["generate", "a woman", "--face", "x.png", "--seconds", "1", "-o", str(shop / "a.mp4")]
    with pytest.raises(SystemExit) as left:
        cli.main([*words, "--recipe", str(own(upscaler="far/fre")), "--device", "cpu"])
    assert left.value.code == 2 and "no model is called 'far/fre'" in capsys.readouterr().err
