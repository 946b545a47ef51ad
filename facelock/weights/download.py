"""One file over https, resumed and verified: it arrives whole, or it does not arrive.

::

    download(["https://host/a.onnx"], Path("a.onnx.part"), size=232589, sha256="8f2383e4...")

Only https, redirects too; hosts that resolve to a private, loopback or link-local address are refused before a
packet is sent to them, and the address that was checked is the one connected to. What has come is kept at ``part``
when a connection ends, and the next call goes on there (HTTP Range, guarded by the server's ETag and the length),
also from another of the addresses: the sha256 decides in the end.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import logging
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from facelock.errors import ModelError, StorageError
from facelock.files import storage_error
from facelock.protocols import Progress
from facelock.weights import sha256_file

log = logging.getLogger(__name__)

TRIES = 3
"""Rounds over all addresses."""
PIECE = 1 << 18
"""Bytes read at once."""
FINAL = range(400, 500)
"""Answers that another try would not change, but for those of :data:`PASSING`."""
PASSING = {408, 416, 425, 429}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
MIB = 2**20
LINKED = "X-Linked-Etag"
"""The header in which the hub tells the sha256 of a large file before it sends the client elsewhere for it."""


class GatedError(ModelError):
    """The server wants to know who asks, or does not give it to this one."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status
        """401 or 403."""


class _RefusedError(Exception):
    """This address is of no use: asking it again would change nothing."""

    status = 0


class _AgainError(Exception):
    """This try failed, another one may not."""


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

        Raises ``_RefusedError``, ``OSError``.
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
        """Raise ``_RefusedError`` unless ``url`` is a plain https address of a public host."""
        try:
            parts = urlsplit(url)
            host, named = parts.hostname or "", parts.username is not None
        except ValueError as error:
            raise _RefusedError(f"{url[:80]!r} is no address") from error
        if self.loopback and parts.scheme == "http" and host == "127.0.0.1":
            return
        if parts.scheme != "https" or not host or named:
            raise _RefusedError(f"{url[:80]!r} is not a plain https address")
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
            raise _RefusedError("this Python's http.client cannot be told where to connect")
        self._create_connection = self._connect

    def _connect(self, address: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        if getattr(self, "_tunnel_host", None):
            return socket.create_connection(address, timeout, source)
        return connect_public(address, timeout)


def connect_public(address: tuple[str, int], timeout: float) -> socket.socket:
    """A TCP connection to (host, port), unless any of the host's addresses is not a public one.

    Raises ``_RefusedError`` then, ``OSError`` when none of them answers.
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
    """Raise ``_RefusedError`` for the numeric ``address`` of ``host``, ``ValueError`` when it is not numeric."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = _carried(ip) if isinstance(ip, ipaddress.IPv6Address) else ip
    if not inner.is_global or inner.is_multicast:
        raise _RefusedError(f"{host} is {ip}, which is not a public address")


def _carried(ip: ipaddress.IPv6Address) -> ipaddress.IPv6Address | ipaddress.IPv4Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64), else itself."""
    if ip in NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def download(
    urls: Sequence[str],
    part: Path,
    *,
    size: int,
    sha256: str,
    name: str = "",
    wire: Wire | None = None,
    headers: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Bring ``size`` bytes with this ``sha256`` from the first of ``urls`` that gives them to the file ``part``.

    ``sha256`` may be another digest that :func:`matches` knows; ``headers`` are sent too.
    ``progress(name, bytes_done, size)`` is called as they come. Raises ``ModelError`` in one sentence when no
    address gives the file (what has come stays for the next call, unless its sha256 is wrong), ``GatedError`` among
    them, ``StorageError`` when the disk is full or cannot be written.
    """
    stage, reason, useless, status = name or part.name, "", set[str](), 0
    wanted = _Wanted(part, size, sha256, wire or Wire(), headers or {})
    for url in [url for _ in range(TRIES) for url in urls]:
        if url in useless:
            continue
        try:
            _try(url, wanted, lambda done: progress and progress(stage, done, size))
            _etag_file(part).unlink(missing_ok=True)
            return
        except _RefusedError as error:
            reason, status = f"{_host(url)}: {error}", error.status
            useless.add(url)
        except _AgainError as error:
            reason = f"{_host(url)}: {error}"
        log.debug("%s: %s", stage, reason)
    if status in (401, 403):
        raise GatedError(f"{stage}: cannot be fetched ({reason}). Its publisher decides who gets it.", status)
    _give_up(stage, reason, part)


@dataclass(frozen=True)
class _Wanted:
    """What is being fetched, and how."""

    part: Path
    size: int
    digest: str
    wire: Wire
    headers: Mapping[str, str]


def matches(path: Path, digest: str) -> bool:
    """Whether the file ``path`` is the one with this ``digest``: a sha256 in hex, ``md5:…`` or ``git:…``.

    The last is the id git gives a file, sha1 of ``blob <size>\\0`` and its content. Raises ``OSError``.
    """
    kind, _, wanted = digest.rpartition(":")
    if not kind:
        return sha256_file(path) == wanted
    made = hashlib.md5(usedforsecurity=False) if kind == "md5" else hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        if kind == "git":
            made.update(b"blob %d\x00" % path.stat().st_size)
        while piece := file.read(PIECE):
            made.update(piece)
    return made.hexdigest() == wanted


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
        except _RefusedError as error:
            reason = str(error)
            break
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = _reason(error, wire)
    raise ModelError(
        f"{name}: cannot be fetched ({_host(url)}: {reason}). Check the network, or try again later."
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
            reason = f"{_host(url)}: it does not say how large it is"
        except urllib.error.HTTPError as error:
            reason = f"{_host(url)}: HTTP {error.code} {error.reason}"
        except _RefusedError as error:
            reason = f"{_host(url)}: {error}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{_host(url)}: {_reason(error, wire)}"
    raise ModelError(f"{name}: cannot be fetched ({reason}). Check the network, or try again later.")


def _give_up(stage: str, reason: str, part: Path) -> NoReturn:
    kept = _size(part)
    what = f"{stage}: cannot be fetched ({reason})"
    if kept:
        raise ModelError(
            f"{what}. The {kept / MIB:.1f} MiB that came are kept; give the same command again to go on."
        )
    raise ModelError(f"{what}. Check the network, or try again later.")


def _try(url: str, wanted: _Wanted, tell: Any) -> None:
    """One address, once. Raises ``_RefusedError`` or ``_AgainError``."""
    part, size = wanted.part, wanted.size
    have = _size(part)
    if have > size:
        _forget(part)
        have = 0
    if have < size or not size:
        _fill(url, wanted, have, tell)
    tell(size)
    if not matches(part, wanted.digest):
        _forget(part)
        kind = wanted.digest.rpartition(":")[0] or "sha256"
        problem = f"not the file the catalog knows ({kind} differs); it was discarded"
        raise _AgainError(problem) if have else _RefusedError(problem)


def _fill(url: str, wanted: _Wanted, have: int, tell: Any) -> None:
    """Write the answer behind the ``have`` bytes of the part, or from the beginning when the server sends all."""
    part, size, wire = wanted.part, wanted.size, wanted.wire
    try:
        with wire.open(url, _headers(url, part, have) | dict(wanted.headers)) as answer:
            _require_same(answer, wanted.digest)
            have = _beginning(answer, part, have, size)
            if have == 0:
                _remember(url, answer.headers.get("ETag"), part)
            with _disk(part), part.open("ab" if have else "wb") as file:
                while piece := _read(answer):
                    have += len(piece)
                    if have > size:
                        break
                    file.write(piece)
                    tell(have)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is not a beginning of what is there
            _forget(part)
        kind = _RefusedError if error.code in FINAL and error.code not in PASSING else _AgainError
        refused = kind(f"HTTP {error.code} {error.reason}")
        if isinstance(refused, _RefusedError):
            refused.status = error.code
        raise refused from error
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
    ) as error:  # ValueError: it redirects to no address
        raise _AgainError(_reason(error, wire)) from error
    if have > size:
        _forget(part)
        raise _RefusedError(f"it sends more than the {size} bytes the catalog knows")
    if have < size:
        raise _AgainError(f"the connection ended after {have} of {size} bytes")


def _headers(url: str, part: Path, have: int) -> dict[str, str]:
    headers = {"User-Agent": "facelock", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag := _recall(url, part):
            headers["If-Range"] = etag
    return headers


def _require_same(answer: http.client.HTTPResponse, digest: str) -> None:
    """Raise ``_RefusedError`` when the server itself says that it gives another file."""
    said = answer.headers.get(LINKED, "").strip().removeprefix("W/").strip('"').lower()
    if len(said) == 64 and len(digest) == 64 and said != digest:
        raise _RefusedError(f"it gives another file than the catalog knows (sha256 {said[:12]}…)")


def _beginning(answer: http.client.HTTPResponse, part: Path, have: int, size: int) -> int:
    """Where in the file the answer begins: behind what is here, or at 0. Raises ``_RefusedError``, ``_AgainError``."""
    if answer.status == 206:
        begin, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if begin.partition("-")[0] != str(have) or total not in (str(size), "*"):
            _forget(part)
            raise _AgainError("it goes on in another place than asked; what was here is discarded")
        return have
    if answer.status != 200:
        raise _AgainError(f"HTTP {answer.status}")
    if have:
        log.info(
            "%s: the server cannot go on at byte %d, so the file is fetched from its beginning", part, have
        )
    length = answer.headers.get("Content-Length")
    if length is not None and length != str(size):
        raise _RefusedError(f"it has {length} bytes where the catalog knows {size}")
    return 0


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The next piece. Raises ``_AgainError``, so that a failing network is never taken for a failing disk."""
    try:
        return answer.read1(PIECE)
    except TimeoutError as error:
        raise _AgainError("it stopped sending") from error
    except (OSError, http.client.HTTPException) as error:
        raise _AgainError(str(error) or type(error).__name__) from error


def _host(url: str) -> str:
    """The host of an address, for a message; of something that is no address, its beginning."""
    try:
        return urlsplit(url).hostname or url[:80]
    except ValueError:
        return url[:80]


def _reason(error: BaseException, wire: Wire) -> str:
    """A network error in a few words."""
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"no answer within {wire.timeout:g} s"
    if isinstance(inner, socket.gaierror):
        return "its name cannot be resolved; is this machine online?"
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return str(text).splitlines()[0][:160].rstrip(". ")


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Map a failing write of ``path`` to ``StorageError``; what was written stays."""
    try:
        yield
    except OSError as error:
        raise cache_error(error, path) from error


def cache_error(error: OSError, path: Path) -> StorageError:
    """What a failed write in the cache folder is raised as: the machine's fault, whatever it is."""
    found = storage_error(error, path)
    if isinstance(found, StorageError):
        return found
    reason = error.strerror or str(error)
    return StorageError(
        f"{path}: cannot be written ({reason}). Set FACELOCK_HOME to a folder where weights may lie."
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _forget(part: Path) -> None:
    """Remove what has come, and the ETag of it."""
    for path in (part, _etag_file(part)):
        with suppress(OSError):
            path.unlink()


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember(url: str, etag: str | None, part: Path) -> None:
    """Keep the ETag of what is being fetched; a weak one promises nothing about bytes."""
    _etag_file(part).unlink(missing_ok=True)
    if etag and not etag.startswith("W/"):
        with _disk(part):
            _etag_file(part).write_text(json.dumps({"url": url, "etag": etag}))


def _recall(url: str, part: Path) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        kept = json.loads(_etag_file(part).read_text())
        etag = kept.get("etag") if kept.get("url") == url else None
        return etag if isinstance(etag, str) and etag.isprintable() else None
    return None
