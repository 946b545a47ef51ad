"""A tiny Hugging Face hub on this machine: the model listing of its API and ``resolve``, with LFS digests.

It can be gated, gone, moved to another commit, lie about a file, cut answers and send clients elsewhere for large ones.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = 1000
"""Bytes from which a file is kept with LFS here."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest()


def folder_files(folder: Path) -> dict[str, bytes]:
    """Path below ``folder`` → content."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@dataclass
class Hub:
    """One repository, and how the server behaves; change it while it runs."""

    repo: str
    files: dict[str, bytes]
    branch: str = "main"
    commit: str = "c" * 40
    token: str = ""
    """Files (not the listing) are only given to who shows this."""
    listed: int = 200
    """Status of the listing."""
    answers: dict[str, bytes] = field(default_factory=dict)
    """Files that are answered otherwise than listed."""
    cut: list[int] = field(default_factory=list)
    elsewhere: bool = True
    """Large files come from another path, as the hub's storage does, after an answer that tells their digest."""
    storage: str = ""
    """Where that other path lies: another server; empty: this one."""
    linked: str = ""
    """Another digest to tell there."""
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """(path, Range, Authorization) of every request."""
    url: str = ""

    def listing(self) -> bytes:
        rows = []
        for path, content in self.files.items():
            row = {"rfilename": path, "size": len(content), "blobId": blob_id(content)}
            if len(content) >= LARGE:
                row["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
                row["blobId"] = blob_id(b"version https://git-lfs.github.com/spec/v1\n")
            rows.append(row)
        return json.dumps({"id": self.repo, "sha": self.commit, "siblings": rows}).encode()

    def fetched(self) -> list[str]:
        """Paths of the files that were asked for, each as often as it was."""
        mark = f"/{self.repo}/resolve/{self.commit}/"
        return [path.removeprefix(mark) for path, *_ in self.asked if path.startswith(mark)]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
            if self.path.startswith("/api/models/"):
                return self._listing()
            if self.path.startswith("/storage/"):
                return self._content(self.path.removeprefix("/storage/"))
            mark = f"/{hub.repo}/resolve/{hub.commit}/"
            name = self.path.removeprefix(mark)
            if not self.path.startswith(mark) or name not in hub.files:
                return self.send_error(404)
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.send_error(401)
            if hub.elsewhere and len(hub.files[name]) >= LARGE:
                self.send_response(302)
                self.send_header("Location", f"{hub.storage or hub.url}/storage/{name}")
                self.send_header("X-Linked-Etag", f'"{hub.linked or sha256(hub.files[name])}"')
                self.send_header("Content-Length", "0")
                return self.end_headers()
            return self._content(name)

        def _listing(self) -> None:
            revisions = {f"/api/models/{hub.repo}/revision/{r}?blobs=true" for r in (hub.branch, hub.commit)}
            if hub.listed != 200 or self.path not in revisions:
                return self.send_error(hub.listed if hub.listed != 200 else 404)
            return self._send(hub.listing(), 0)

        def _content(self, name: str) -> None:
            content = hub.answers.get(name, hub.files[name])
            asked = self.headers.get("Range")
            self._send(content, int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0)

        def _send(self, content: bytes, begin: int) -> None:
            body = content[begin:]
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{sha256(content)[:16]}"')
            self.end_headers()
            if hub.cut and len(body) > hub.cut[0]:
                body = body[: hub.cut.pop(0)]
            if self.command == "GET":
                self.wfile.write(body)
            self.close_connection = True

    return Handler


@contextmanager
def serve_hub(repo: str, files: dict[str, bytes], **behaviour: object) -> Iterator[Hub]:
    """A running hub; ``hub.url`` is what ``HF_ENDPOINT`` is to name."""
    hub = Hub(repo, dict(files), **behaviour)  # type: ignore[arg-type]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
