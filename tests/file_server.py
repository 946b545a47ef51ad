"""A local http server for tests of downloads: it can cut, hang, redirect, forget ranges, and counts what is asked."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server holds and how it behaves; change it while it runs."""

    content: bytes = b""
    etag: str | None = '"one"'
    ranges: bool = True
    cut: list[int] = field(default_factory=list)
    """Bytes after which the next answers end, one per answer."""
    hang: float = 0.0
    """Seconds of silence in the middle of an answer."""
    pause: float = 0.0
    """Seconds before each 64 KiB."""
    status: int = 0
    redirect: str = ""
    length: bool = True
    lie: str = ""
    """A Content-Range to answer with, whatever was asked."""
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """(path, Range, If-Range) of every request."""
    url: str = ""


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
            site.asked.append((self.path, asked, condition))
            if site.status or site.redirect:
                self.send_response(site.status or 302)
                if site.redirect:
                    self.send_header("Location", site.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and site.ranges else 0
            if condition and condition != site.etag:
                begin = 0
            if begin >= len(site.content) > 0:
                self.send_error(416)
                return
            self._send(begin)

        def _send(self, begin: int) -> None:
            body = site.content[begin:]
            self.send_response(206 if begin else 200)
            if begin:
                end = f"{len(site.content) - 1}/{len(site.content)}"
                self.send_header("Content-Range", site.lie or f"bytes {begin}-{end}")
            if site.length:
                self.send_header("Content-Length", str(len(body)))
            if site.etag:
                self.send_header("ETag", site.etag)
            self.end_headers()
            if site.cut:
                body = body[: site.cut.pop(0)]
            for at in range(0, len(body), 65536):
                time.sleep(site.pause)
                if site.hang and at:
                    time.sleep(site.hang)
                try:
                    self.wfile.write(body[at : at + 65536])
                except OSError:
                    break
            self.close_connection = True

    return Handler


@contextmanager
def serve(content: bytes = b"", tls: ssl.SSLContext | None = None, **behaviour: object) -> Iterator[Site]:
    """A running server; ``site.url`` ends in a slash."""
    site = Site(content, **behaviour)  # type: ignore[arg-type]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    site.url = f"http://127.0.0.1:{server.server_port}/"
    run: Callable[[], None] = lambda: server.serve_forever(0.02)  # noqa: E731
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
