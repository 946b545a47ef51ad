"""Mutated catalogs, recipes and answers of servers: read, or refused in a sentence; no crash, no hang.

``FACELOCK_FUZZ=20000 pytest tests/test_fuzz.py`` runs more of them; the seed of a case is in its failure.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from facelock.assets import asset_dir
from facelock.errors import FaceLockError
from facelock.recipe import load_recipe, model_names
from facelock.weights import catalog, locate, require_commercial
from facelock.weights.catalog import Catalog
from facelock.weights.download import download
from facelock.weights.inventory import inventory
from facelock.weights.wire import Wire

CASES = int(os.environ.get("FACELOCK_FUZZ", "320"))
LIMIT = 20
"""Seconds a case may take before it counts as hanging."""

NASTY = [
    b"nan", b"inf", b"-inf", b"-1", b"0", b"1e400", b"9" * 5000, b"0x" + b"f" * 3000, b"true", b"''", b'"\\u0000"',
    b'"../../etc/passwd"', b'"/etc/passwd"', b'"~nobody-at-all/x"', b'"' + b"a" * 300 + b'"', b'"a/' * 200 + b'"',
    b'"http://127.0.0.1/a"', b'"https://169.254.169.254/a"', b'"\\ud800"', b"[" * 3000 + b"]" * 3000, b"{}", b"[]",
    b"[[]]", b"{ a = 1 }", b"1979-05-27T07:32:00Z", b"2021-99-99", b"[1, 'a', {}]", b'"' + b"0" * 64 + b'"',
    b'"\\u001b[31m"', b"'''a\nb'''", b"\xff\xfe", b"\x00", b'"miniature-faces"', b'"."', b'""',
]  # fmt: skip


def _flip(draw: random.Random, data: bytearray) -> None:
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] = draw.randrange(256)


def _cut(draw: random.Random, data: bytearray) -> None:
    begin = draw.randrange(len(data))
    del data[begin : begin + draw.choice((1, 5, 60, len(data)))]


def _insert(draw: random.Random, data: bytearray) -> None:
    at = draw.randrange(len(data))
    data[at:at] = draw.choice([*NASTY, b"\n", b"[[", b"=", b'"', b"#"])


def _value(draw: random.Random, data: bytearray) -> None:
    """Another value behind one of the equals signs."""
    places = [i for i, byte in enumerate(data) if byte == ord("=")]
    if places:
        begin = draw.choice(places) + 1
        end = data.find(b"\n", begin)
        data[begin : len(data) if end < 0 else end] = b" " + draw.choice(NASTY)


def _lines(draw: random.Random, data: bytearray) -> None:
    """Lines doubled, dropped, or put elsewhere."""
    lines = bytes(data).split(b"\n")
    line = lines.pop(draw.randrange(len(lines)))
    for _ in range(draw.randrange(3)):
        lines.insert(draw.randrange(len(lines) + 1), line)
    data[:] = b"\n".join(lines)


def _word(draw: random.Random, data: bytearray) -> None:
    """A word of the file in the place of another."""
    words = bytes(data).split(b" ")
    words[draw.randrange(len(words))] = draw.choice(words)
    data[:] = b" ".join(words)


MUTATIONS = (_flip, _cut, _insert, _value, _value, _value, _lines, _word)


def mutated(data: bytes, seed: int) -> bytes:
    """``data`` with one to three mutations, the same for the same seed."""
    draw, changed = random.Random(seed), bytearray(data)
    for _ in range(draw.randint(1, 3)):
        if changed:
            draw.choice(MUTATIONS)(draw, changed)
    return bytes(changed)


def survives(case: Callable[[], object], seed: int) -> bool:
    """Run one case: True when it went through, False when it was refused with a sentence of ours."""

    def hanging(*_: object) -> None:
        raise TimeoutError(f"case {seed} takes more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, hanging)
    signal.alarm(LIMIT)
    try:
        case()
        return True
    except FaceLockError as error:
        assert str(error).rstrip().endswith("."), f"case {seed}: no sentence: {error}"
        assert len(str(error)) < 20_000, f"case {seed}: {len(str(error))} characters are no sentence"
        return False
    except Exception as error:
        pytest.fail(f"case {seed}: {type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["catalog.toml", "public.toml"])
def test_mutated_catalogs(name, tmp_path, monkeypatch):
    real = asset_dir("models")
    for other in ("catalog.toml", "public.toml"):
        (tmp_path / other).write_bytes((real / other).read_bytes())
    original = (tmp_path / name).read_bytes()
    monkeypatch.setattr(catalog, "asset_dir", lambda _: tmp_path)
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "home"))

    def read() -> None:
        known = Catalog.load()
        known.licences("0" * 64)
        inventory(commercial=True)
        for entry in known.entries.values():
            assert entry.path.is_relative_to(tmp_path), f"{entry.name} would lie at {entry.path}"
            assert entry.bundled or all(
                url.startswith("https://") for url in (entry.fetch.urls if entry.fetch else ())
            )

    passed = 0
    for seed in range(CASES):
        (tmp_path / name).write_bytes(mutated(original, seed))
        passed += survives(read, seed)
    assert 0 < passed < CASES


def test_mutated_recipes(tmp_path):
    original = (asset_dir("pipelines") / "default.toml").read_bytes()
    path = tmp_path / "mine.toml"

    def use() -> None:
        names = model_names(load_recipe(path)).values()
        for act in (lambda: require_commercial(names), lambda: [locate(name) for name in names]):
            survives(act, seed)

    passed = 0
    for seed in range(CASES):
        path.write_bytes(mutated(original, seed))
        passed += survives(use, seed)
    assert 0 < passed < CASES


NAMES = [
    b"~nobody-at-all/x", b"a" * 5000, b"a\\u0000b", b"/proc/self/mem", b"/dev/zero", b"/dev/full", b"/", b"..",
    b"\\u001b[2J", b"",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_models_that_are_no_models(name, tmp_path):
    """Names too long, of nobody, of a device that never ends, of the whole disk."""
    path = tmp_path / "mine.toml"
    text = (asset_dir("pipelines") / "default.toml").read_bytes()
    path.write_bytes(text.replace(b"miniature/aligner", name))

    def use() -> None:
        require_commercial(model_names(load_recipe(path)).values())

    assert not survives(use, 0)


def test_mutated_answers(tmp_path):
    """What a broken server or proxy may say: a file arrives whole, or a sentence says why not."""
    body = bytes(range(256)) * 8
    head = (
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 7-2047/2048\r\nContent-Length: 2041\r\n"
        b'ETag: "one"\r\nLocation: http://127.0.0.2/\r\nConnection: close\r\n\r\n'
    )
    part, answer = tmp_path / "one.part", b""

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(answer)

    def fetch() -> None:
        part.write_bytes(body[:7])
        download([address], part, size=len(body), sha256=sha256, wire=Wire(timeout=5, loopback=True))
        assert part.read_bytes() == body

    sha256, passed = hashlib.sha256(body).hexdigest(), 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/one"
        threading.Thread(target=serve, daemon=True).start()
        for seed in range(CASES):
            answer = mutated(head, seed) + body[7:]
            passed += survives(fetch, seed)
        server.shutdown(socket.SHUT_RDWR)
    assert 0 < passed < CASES


def test_the_same_seed_gives_the_same_case():
    text = (asset_dir("models") / "public.toml").read_bytes()
    assert [mutated(text, seed) for seed in range(20)] == [mutated(text, seed) for seed in range(20)]
    assert sum(mutated(text, seed) != text for seed in range(100)) > 95
