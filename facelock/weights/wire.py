"""How addresses are reached: https only, public hosts only, redirects too.

::

    with Wire().open("https://host/a.onnx", {}) as answer: ...

Hosts that resolve to a private, loopback or link-local address are refused before a packet is sent to them, and the
address that was checked is the one connected to. An account's token goes to the host it is meant for and no further.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from facelock.errors import ModelError

TRIES = 3
"""Rounds over all addresses."""
FINAL = range(400, 500)
"""Answers that another try would not change, but for those of :data:`PASSING`."""
PASSING = {408, 416, 425, 429}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
LINKED = "X-Linked-Etag"
"""The header in which the hub tells the sha256 of a large file before it sends the client elsewhere for it."""


class RefusedError(Exception):
    """This address is of no use: asking it again would change nothing."""

    status = 0
    """Of the answer, where there was one."""


@dataclass(frozen=True)
class Wire:
    """How addresses are reached."""

    timeout: float = 30.0
    """Seconds without a byte after which a connection is given up."""
    loopback: bool = False
    """Also take ``http://127.0.0.1``: for tests, which run a server of their own. Nothing else sets it."""

    def open(self, url: str, headers: Mapping[str, str], method: str = "GET") -> http.client.HTTPResponse:
        """Ask for ``url`` and return the answer, redirects followed; its headers tell ``X-Linked-Etag``, whichever
        answer on the way had it. ``Authorization`` goes to the host of ``url`` alone.

        Raises ``RefusedError``, ``OSError``.
        """
        self.check(url)
        plain = {key: value for key, value in headers.items() if key != "Authorization"}
        request = urllib.request.Request(url, headers=plain, method=method)  # noqa: S310 - checked just above
        if "Authorization" in headers:
            request.add_unredirected_header("Authorization", headers["Authorization"])
        redirects = _Redirects(self)
        opener = urllib.request.OpenerDirector()
        handlers = [
            urllib.request.ProxyHandler({} if self.loopback else None),
            _Https(),
            redirects,
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            *([urllib.request.HTTPHandler()] if self.loopback else []),
        ]
        for handler in handlers:
            opener.add_handler(handler)
        answer: http.client.HTTPResponse = opener.open(request, timeout=self.timeout)
        if redirects.linked and LINKED not in answer.headers:
            answer.headers[LINKED] = redirects.linked
        return answer

    def check(self, url: str) -> None:
        """Raise ``RefusedError`` unless ``url`` is a plain https address of a public host."""
        try:
            parts = urlsplit(url)
            host, named = parts.hostname or "", parts.username is not None
        except ValueError as error:
            raise RefusedError(f"{url[:80]!r} is no address") from error
        if self.loopback and parts.scheme == "http" and host == "127.0.0.1":
            return
        if parts.scheme != "https" or not host or named:
            raise RefusedError(f"{url[:80]!r} is not a plain https address")
        with suppress(ValueError):
            _require_public(host, host)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.linked = ""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.wire.check(newurl)
        self.linked = headers.get(LINKED, "") or self.linked
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if (
            request is not None and urlsplit(req.full_url)[:2] == urlsplit(newurl)[:2]
        ):  # a repository that was renamed
            for key, value in req.unredirected_hdrs.items():
                if key == "Authorization":
                    request.add_unredirected_header(key, value)
        return request


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicConnection, req, context=ssl.create_default_context())  # type: ignore[arg-type]


class _PublicConnection(http.client.HTTPSConnection):
    """Connects to public addresses only; through a proxy of the user's, to that."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not hasattr(self, "_create_connection"):  # http.client's own hook: without it nothing is checked
            raise RefusedError("this Python's http.client cannot be told where to connect")
        self._create_connection = self._connect

    def _connect(self, address: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        if getattr(self, "_tunnel_host", None):
            return socket.create_connection(address, timeout, source)
        return connect_public(address, timeout)


def connect_public(address: tuple[str, int], timeout: float) -> socket.socket:
    """A TCP connection to (host, port), unless any of the host's addresses is not a public one.

    Raises ``RefusedError`` then, ``OSError`` when none of them answers.
    """
    host, port = address
    found = [info[4] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for where in found:
        _require_public(str(where[0]), host)
    failure: OSError = OSError(f"{host} has no address")
    for where in found:
        try:
            return socket.create_connection((str(where[0]), port), timeout)
        except OSError as error:
            failure = error
    raise failure


def _require_public(address: str, host: str) -> None:
    """Raise ``RefusedError`` for the numeric ``address`` of ``host``, ``ValueError`` when it is not numeric."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = _carried(ip) if isinstance(ip, ipaddress.IPv6Address) else ip
    if not inner.is_global or inner.is_multicast:
        raise RefusedError(f"{host} is {ip}, which is not a public address")


def _carried(ip: ipaddress.IPv6Address) -> ipaddress.IPv6Address | ipaddress.IPv4Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64), else itself."""
    if ip in NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def ask(url: str, headers: Mapping[str, str], *, most: int, name: str, wire: Wire) -> bytes:
    """A short answer, of at most ``most`` bytes, tried :data:`TRIES` times.

    Raises ``urllib.error.HTTPError`` for an answer that another try would not change, ``ModelError`` about ``name``
    when nobody answers.
    """
    reason = ""
    for _ in range(TRIES):
        try:
            with wire.open(url, {"User-Agent": "facelock", **headers}) as answer:
                return answer.read(most + 1)[:most]
        except urllib.error.HTTPError as error:
            if error.code in FINAL and error.code not in PASSING:
                raise
            reason = f"HTTP {error.code} {error.reason}"
        except RefusedError as error:
            reason = str(error)
            break
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = reason_of(error, wire)
    raise ModelError(
        f"{name}: cannot be fetched ({host_of(url)}: {reason}). Check the network, or try again later."
    )


def size_of(urls: Sequence[str], *, name: str, wire: Wire) -> int:
    """Bytes of the file behind the first of ``urls`` that says how many it has. Raises ``ModelError``."""
    reason = ""
    for url in urls:
        try:
            with wire.open(url, {"User-Agent": "facelock", "Accept-Encoding": "identity"}, "HEAD") as answer:
                length = answer.headers.get("Content-Length", "")
            if length.isdigit():
                return int(length)
            reason = f"{host_of(url)}: it does not say how large it is"
        except urllib.error.HTTPError as error:
            reason = f"{host_of(url)}: HTTP {error.code} {error.reason}"
        except RefusedError as error:
            reason = f"{host_of(url)}: {error}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{host_of(url)}: {reason_of(error, wire)}"
    raise ModelError(f"{name}: cannot be fetched ({reason}). Check the network, or try again later.")


def host_of(url: str) -> str:
    """The host of an address, for a message; of something that is no address, its beginning."""
    try:
        return urlsplit(url).hostname or url[:80]
    except ValueError:
        return url[:80]


def reason_of(error: BaseException, wire: Wire) -> str:
    """A network error in a few words."""
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"no answer within {wire.timeout:g} s"
    if isinstance(inner, socket.gaierror):
        return "its name cannot be resolved; is this machine online?"
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return str(text).splitlines()[0][:160].rstrip(". ")
