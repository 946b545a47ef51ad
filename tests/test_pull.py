"""Fetching weights: resumed, verified, atomic, once for many processes, and never from where it should not be."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from file_server import serve

from facelock.errors import ModelError, StorageError
from facelock.files import lock_file
from facelock.weights import pull as pulls
from facelock.weights import wire as wires
from facelock.weights.catalog import Entry, Fetch
from facelock.weights.download import download
from facelock.weights.pull import pull_entry, unpack
from facelock.weights.wire import Wire, connect_public

HERE = Path(__file__).resolve().parent
CONTENT = bytes(range(256)) * 2048
"""512 KiB."""
WIRE = Wire(timeout=5, loopback=True)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def weight(folder: Path, *urls: str, content: bytes = CONTENT) -> Entry:
    """A file of the catalog; built past its checks, which take no http address."""
    fetch = Fetch.model_construct(kind="file", urls=urls, bytes=0, sha256=None)
    return Entry(
        "test/one", folder / "models" / "one.onnx", licence="MIT", bytes=len(content), sha256=sha(content),
        fetch=fetch, bundled=False,
    )  # fmt: skip


def left(folder: Path) -> list[str]:
    """Names in the cache but for locks."""
    return sorted(p.name for p in (folder / "models").iterdir() if not p.name.endswith(".lock"))


def test_a_whole_file_arrives_once(tmp_path):
    told = []
    with serve(CONTENT) as site:
        entry = weight(tmp_path, site.url + "one.onnx")
        path = pull_entry(entry, wire=WIRE, progress=lambda *step: told.append(step))
        assert pull_entry(entry, wire=WIRE) == path == entry.path
    assert path.read_bytes() == CONTENT and left(tmp_path) == ["one.onnx"]
    assert len(site.asked) == 1
    assert told[-1] == ("test/one", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_cut_connection_is_gone_on_with(tmp_path):
    with serve(CONTENT, cut=[100_000]) as site:
        pull_entry(weight(tmp_path, site.url), wire=WIRE)
    assert [(asked, condition) for _, asked, condition in site.asked] == [
        (None, None), ("bytes=100000-", '"one"'),
    ]  # fmt: skip
    assert left(tmp_path) == ["one.onnx"]


def test_what_came_is_kept_for_the_next_call(tmp_path):
    with serve(CONTENT, cut=[50_000, 40_000, 10_000]) as site:
        entry = weight(tmp_path, site.url)
        with pytest.raises(ModelError, match=r"ended after 100000 of 524288 bytes\).*are kept") as caught:
            pull_entry(entry, wire=WIRE)
        assert caught.value.exit_code == 3 and not entry.path.exists()
        assert (tmp_path / "models" / "one.onnx.part").read_bytes() == CONTENT[:100_000]
        pull_entry(entry, wire=WIRE)
    assert site.asked[-1][1] == "bytes=100000-"
    assert entry.path.read_bytes() == CONTENT and left(tmp_path) == ["one.onnx"]


@pytest.mark.parametrize("behaviour", [{"ranges": False}, {"etag": None}, {"lie": "bytes 7-9/10"}])
def test_a_server_without_honest_ranges_is_asked_for_all(tmp_path, behaviour):
    with serve(CONTENT, cut=[100_000], **behaviour) as site:
        entry = weight(tmp_path, site.url)
        pull_entry(entry, wire=WIRE)
    assert entry.path.read_bytes() == CONTENT and left(tmp_path) == ["one.onnx"]
    assert len(site.asked) == (3 if "lie" in behaviour else 2)  # a lie is not even tried: asked anew


def test_another_file_at_the_same_address_is_begun_anew(tmp_path):
    old = b"x" * len(CONTENT)
    with serve(old, cut=[100_000] * 3) as site:
        entry = weight(tmp_path, site.url)
        with pytest.raises(ModelError, match="ended after"):
            pull_entry(entry, wire=WIRE)
        site.content, site.etag, site.cut = CONTENT, '"two"', []
        pull_entry(entry, wire=WIRE)
    assert entry.path.read_bytes() == CONTENT


def test_a_spoiled_beginning_is_fetched_again(tmp_path):
    with serve(CONTENT) as site:
        entry = weight(tmp_path, site.url)
        entry.path.parent.mkdir()
        (tmp_path / "models" / "one.onnx.part").write_bytes(b"?" * 1000)
        pull_entry(entry, wire=WIRE)
        assert entry.path.read_bytes() == CONTENT and len(site.asked) == 2
        entry.path.unlink()
        (tmp_path / "models" / "one.onnx.part").write_bytes(b"?" * (len(CONTENT) + 1))
        pull_entry(entry, wire=WIRE)
    assert entry.path.read_bytes() == CONTENT


def test_a_wrong_hash_is_discarded(tmp_path):
    with serve(b"y" * len(CONTENT)) as site:
        entry = weight(tmp_path, site.url)
        with pytest.raises(ModelError, match=r"sha256 differs\); it was discarded") as caught:
            pull_entry(entry, wire=WIRE)
    assert caught.value.exit_code == 3 and left(tmp_path) == [] and len(site.asked) == 1


def test_the_next_address_is_tried(tmp_path):
    with serve(b"", status=404) as gone, serve(b"z" * len(CONTENT)) as wrong, serve(CONTENT) as right:
        entry = weight(tmp_path, gone.url, wrong.url, right.url)
        pull_entry(entry, wire=WIRE)
    assert entry.path.read_bytes() == CONTENT
    assert [len(site.asked) for site in (gone, wrong, right)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("behaviour", "reason", "times"),
    [
        ({"status": 404}, "HTTP 404", 1),
        ({"status": 503}, "HTTP 503", wires.TRIES),
        ({"content": CONTENT + b"more"}, "524292 bytes where the catalog knows 524288", 1),
        ({"content": CONTENT + b"more", "length": False}, "sends more than", 1),
        ({"content": b""}, "0 bytes where", 1),
    ],
)
def test_answers_that_are_no_use(tmp_path, behaviour, reason, times):
    told = [0]
    with serve(**{"content": CONTENT, **behaviour}) as site, pytest.raises(ModelError, match=reason):
        pull_entry(weight(tmp_path, site.url), wire=WIRE, progress=lambda _, done, total: told.append(done))
    assert len(site.asked) == times and left(tmp_path) == []
    assert max(told) <= len(CONTENT)  # no more is read than there should be


def test_a_server_that_falls_silent_is_given_up(tmp_path):
    with serve(CONTENT, hang=3) as site, pytest.raises(ModelError, match=r"stopped sending\).*are kept"):
        pull_entry(weight(tmp_path, site.url), wire=Wire(timeout=0.2, loopback=True))
    assert len(site.asked) == wires.TRIES


def test_nobody_answers(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ModelError, match=r"127\.0\.0\.1: Connection refused"):
        pull_entry(weight(tmp_path, f"http://127.0.0.1:{port}/"), wire=WIRE)

    def offline(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(ModelError, match=r"is this machine online\?\)\. Check the network"):
        pull_entry(weight(tmp_path, "https://weights.example.org/one.onnx"))


REFUSED = r"not a plain https address|not a public address|is no address"
PRIVATE = [
    "http://example.org/a", "file:///etc/passwd", "ftp://example.org/a", "https://user@example.org/a",
    "https://127.0.0.1/a", "https://169.254.169.254/a", "https://[::1]/a", "https://10.1.2.3/a",
    "https://[::ffff:127.0.0.1]/a", "https:///a", "https://[broken/a", "https://0.0.0.0/a",
]  # fmt: skip


@pytest.mark.parametrize("url", PRIVATE)
def test_addresses_that_are_refused(tmp_path, url, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a packet was sent"))
    with pytest.raises(ModelError, match=REFUSED):
        pull_entry(weight(tmp_path, url))


@pytest.mark.parametrize("to", ["http://127.0.0.2/a", "http://example.org/a", *PRIVATE[1:]])
def test_redirects_there_are_refused_too(tmp_path, to):
    with (
        serve(redirect=to) as site,
        pytest.raises(ModelError, match=REFUSED + "|is not allowed|Invalid IPv6"),
    ):
        pull_entry(weight(tmp_path, site.url), wire=WIRE)
    assert left(tmp_path) == []


def test_an_endless_redirect_ends(tmp_path):
    with serve() as site:
        site.redirect = site.url
        with pytest.raises(ModelError, match="HTTP 302"):
            pull_entry(weight(tmp_path, site.url), wire=WIRE)
    assert len(site.asked) < 40


PRIVATE_HOSTS = [
    "127.0.0.1", "10.0.0.7", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "fd00::1", "::1",
    "fe80::1%lo", "::ffff:10.0.0.7", "2002:7f00:1::", "64:ff9b::7f00:1",
]  # fmt: skip


def test_a_name_that_resolves_to_a_private_address_gets_no_packet(tmp_path, monkeypatch):
    with serve(CONTENT) as canary:
        port = int(canary.url.rsplit(":", 1)[1].strip("/"))
        for private in PRIVATE_HOSTS:
            found = [(2, 1, 6, "", ("93.184.216.34", port)), (2, 1, 6, "", (private, port))]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
            with pytest.raises(ModelError, match="not a public address"):
                pull_entry(weight(tmp_path, f"https://rebound.example.org:{port}/a"))
        assert canary.asked == []


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch):
    reached = []
    monkeypatch.setattr(socket, "create_connection", lambda *where: reached.append(where))
    for public in ("93.184.216.34", "64:ff9b::5db8:d822", "2606:4700::1"):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, at=public, **__: [(2, 1, 6, "", (at, 443))])
        connect_public(("example.org", 443), 3)
        assert reached.pop() == ((public, 443), 3)


def test_a_proxy_of_the_user_s_is_used(tmp_path, monkeypatch):
    """It may be in a private network, as they mostly are; what it is asked for may not."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        heard = []

        def answer() -> None:
            for _ in range(wires.TRIES):
                connection, _ = proxy.accept()
                with connection:
                    heard.append(connection.recv(4096).split(b"\r\n")[0])
                    connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with pytest.raises(ModelError, match="Tunnel connection failed: 403"):
            pull_entry(weight(tmp_path, "https://weights.example.org/a"))
        with pytest.raises(ModelError, match="not a public address"):
            pull_entry(weight(tmp_path, "https://10.0.0.1/a"))
    asked = [line.rpartition(b" ")[0] for line in heard]
    assert asked == [b"CONNECT weights.example.org:443"] * wires.TRIES


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_a_server_that_cannot_prove_its_name_is_refused(tmp_path, monkeypatch):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=here"
    command += " -addext subjectAltName=DNS:weights.example.org"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with serve(CONTENT, tls=context) as site:
        there = site.url.removeprefix("http://").strip("/").split(":")
        reached = socket.create_connection
        monkeypatch.setattr(wires, "connect_public", lambda *_: reached((there[0], int(there[1])), 5))
        with pytest.raises(ModelError, match="certificate verify failed"):
            pull_entry(weight(tmp_path, "https://weights.example.org/a"))
        assert site.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))  # one that this machine trusts
        pull_entry(weight(tmp_path, "https://weights.example.org/a"))
    assert [path for path, *_ in site.asked] == ["/a"]


def test_a_full_disk_keeps_what_came(tmp_path, monkeypatch):
    with serve(CONTENT) as site:
        entry = weight(tmp_path, site.url)
        opened = Path.open

        class Full(io.FileIO):
            def write(self, data):
                if self.tell() + len(data) > 300_000:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(data)

        def limited(self, mode="r", *rest, **named):
            is_part = self.suffix == ".part" and mode in ("ab", "wb")
            return Full(self, mode.rstrip("b")) if is_part else opened(self, mode, *rest, **named)

        monkeypatch.setattr(Path, "open", limited)
        with pytest.raises(StorageError, match="the disk is full") as caught:
            pull_entry(entry, wire=WIRE)
        assert caught.value.exit_code == 3 and not entry.path.exists()
        monkeypatch.setattr(Path, "open", opened)
        kept = (tmp_path / "models" / "one.onnx.part").stat().st_size
        pull_entry(entry, wire=WIRE)
    assert 0 < kept <= 300_000 and site.asked[-1][1] == f"bytes={kept}-"
    assert entry.path.read_bytes() == CONTENT


def test_room_is_asked_for_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(pulls.shutil, "disk_usage", lambda _: Free(1000))
    with serve(CONTENT) as site, pytest.raises(StorageError, match=r"MiB are needed.*FACELOCK_HOME"):
        pull_entry(weight(tmp_path, site.url), wire=WIRE)
    assert site.asked == []


class Free:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"models.*: cannot be written \(.*\)\. Set FACELOCK_HOME"):
        pull_entry(weight(tmp_path, "https://example.org/a"))
    (tmp_path / "models").unlink()
    monkeypatch.setattr(pulls.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(StorageError, match=r"cannot be written.*Set FACELOCK_HOME") as caught:
        pull_entry(weight(tmp_path, "https://example.org/a"))
    assert caught.value.exit_code == 3


def test_a_lock_of_somebody_else_s(tmp_path, monkeypatch):
    entry = weight(tmp_path, "https://example.org/a")
    real = os.open

    def forbidden(path, *rest):
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(StorageError, match=r"\.one\.onnx\.lock: cannot be written.*Set FACELOCK_HOME"):
        pull_entry(entry)


def test_a_damaged_weight_is_replaced(tmp_path):
    with serve(CONTENT) as site:
        entry = weight(tmp_path, site.url)
        entry.path.parent.mkdir()
        entry.path.write_bytes(b"damaged")
        pull_entry(entry, wire=WIRE)
    assert entry.path.read_bytes() == CONTENT


def test_a_kill_between_two_steps_leaves_no_half_weight(tmp_path, monkeypatch):
    with serve(CONTENT) as site:
        entry = weight(tmp_path, site.url)
        monkeypatch.setattr(pulls, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pull_entry(entry, wire=WIRE)
        assert not entry.path.exists()
        monkeypatch.undo()
        pull_entry(entry, wire=WIRE)
    assert len(site.asked) == 1 and entry.path.read_bytes() == CONTENT  # nothing is fetched twice


RUNNER = """
import sys
from pathlib import Path
from facelock.weights.catalog import Entry, Fetch
from facelock.weights.wire import Wire
from facelock.weights.pull import pull_entry
folder, url, size, sha256 = sys.argv[1:]
fetch = Fetch.model_construct(kind="file", urls=(url,), bytes=0, sha256=None)
path = Path(folder, "models", "one.onnx")
entry = Entry("test/one", path, bytes=int(size), sha256=sha256, fetch=fetch, bundled=False)
print(pull_entry(entry, wire=Wire(timeout=60, loopback=True)))
"""


def test_eight_processes_fetch_once(tmp_path):
    with serve(CONTENT, pause=0.1) as site:
        command = [sys.executable, "-c", RUNNER, str(tmp_path), site.url, str(len(CONTENT)), sha(CONTENT)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        running = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(8)
        ]
        told = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 8
    assert told == {str(tmp_path / "models" / "one.onnx")} and len(site.asked) == 1
    assert left(tmp_path) == ["one.onnx"]


def test_one_that_waits_can_be_stopped(tmp_path):
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    entry = weight(tmp_path, "https://example.org/a")
    entry.path.parent.mkdir()
    with lock_file(tmp_path / "models" / ".one.onnx.lock"), pytest.raises(Stop):
        pull_entry(entry, progress=stop)


# packs


def zipped(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()


MEMBERS = {"det.onnx": b"d" * 5000, "rec.onnx": b"r" * 70_000}


def pack(folder: Path, archive: bytes, *urls: str) -> Entry:
    fetch = Fetch.model_construct(kind="zip", urls=urls, bytes=len(archive), sha256=sha(archive))
    return Entry(
        "test/pack", folder / "models" / "pack", licence="MIT", bytes=75_000,
        files={name: sha(content) for name, content in MEMBERS.items()}, fetch=fetch, bundled=False,
    )  # fmt: skip


@pytest.mark.parametrize("inside", ["", "pack/"])
def test_a_pack_is_unpacked_whole(tmp_path, inside):
    others = {"../evil.onnx": b"e", "/etc/evil.onnx": b"e", "readme.txt": b"t"}
    archive = zipped({**{inside + name: content for name, content in MEMBERS.items()}, **others})
    with serve(archive, cut=[1000]) as site:
        entry = pack(tmp_path, archive, site.url)
        assert pull_entry(entry, wire=WIRE) == entry.path
    assert {p.name: p.read_bytes() for p in entry.path.iterdir()} == MEMBERS
    assert left(tmp_path) == ["pack"]
    assert not list(tmp_path.rglob("evil*")) and not Path("/etc/evil.onnx").exists()


def test_a_damaged_pack_is_replaced(tmp_path):
    archive = zipped(MEMBERS)
    with serve(archive) as site:
        entry = pack(tmp_path, archive, site.url)
        pull_entry(entry, wire=WIRE)
        (entry.path / "det.onnx").write_bytes(b"damaged")
        pull_entry(entry, wire=WIRE)
    assert {p.name: p.read_bytes() for p in entry.path.iterdir()} == MEMBERS and left(tmp_path) == ["pack"]


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (zipped({"det.onnx": MEMBERS["det.onnx"]}), "holds no rec.onnx"),
        (zipped({**MEMBERS, "rec.onnx": b"other"}), "its rec.onnx is not the one"),
        (zipped({**MEMBERS, "rec.onnx": b"\0" * 10_000_000}), "unpacks to more"),
        (b"no zip at all", "cannot be unpacked"),
        (zipped(MEMBERS)[:-40], "cannot be unpacked"),
    ],
)
def test_archives_that_are_refused_leave_nothing(tmp_path, archive, reason):
    with serve(archive) as site:
        entry = pack(tmp_path, archive, site.url)
        with pytest.raises(ModelError, match=reason):
            pull_entry(entry, wire=WIRE)
    assert not entry.path.exists() and set(left(tmp_path)) <= {"pack.part"}


def test_a_flipped_archive_never_unpacks_to_something_else(tmp_path):
    whole = bytearray(zipped(MEMBERS))
    entry = pack(tmp_path, bytes(whole))
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 0x55
        (tmp_path / "a.zip").write_bytes(flipped)
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        try:
            unpack(tmp_path / "a.zip", entry, folder)
        except ModelError:
            continue
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == MEMBERS


def test_the_file_itself_says_nothing_of_the_network(tmp_path):
    """A part that is whole already is verified and used without a request."""
    part = tmp_path / "one.part"
    part.write_bytes(CONTENT)
    download(["https://example.org/a"], part, size=len(CONTENT), sha256=sha(CONTENT))
