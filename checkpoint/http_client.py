"""HTTP with the standard library: a secret stays with the server it is for, an interrupted body continues, an error is one sentence.

The worker downloads weights with it, the image builder asks registries, indexes and hubs. A request is tried four times where the server
does not answer or has a passing fault (408, 425, 429, 5xx). Addresses in messages have neither query nor user name nor password.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from checkpoint.unavailable import has_user, is_address, masked

__all__ = [
    "PAUSES",
    "Body",
    "HttpError",
    "NoAnswer",
    "Remote",
    "StatusError",
    "Wait",
    "ask",
    "byte_range",
    "is_loopback",
    "read_body",
]

log = logging.getLogger(__name__)

PAUSES = (0.5, 1.0, 3.0)
"""Seconds before the second, third and fourth try."""

_TIMEOUT = 60
"""Seconds without a byte from the server."""

_PASSING = {408, 425, 429, 500, 502, 503, 504}

_PART = 32_000_000_000
"""Bytes asked for at once: content networks refuse more than 50 GB (huggingface/xet-core issue 238)."""

Wait = Callable[[float], object]


class HttpError(Exception):
    """A server could not be asked, or its answer cannot be used."""


class NoAnswer(HttpError):
    """The server did not answer."""


class StatusError(HttpError):
    """The server answered with an error."""

    def __init__(self, message: str, status: int, headers: Message) -> None:
        self.status, self.headers = status, headers
        super().__init__(message)


def ask(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    secret: Mapping[str, str] | None = None,
    data: bytes | None = None,
    wait: Wait = time.sleep,
) -> http.client.HTTPResponse:
    """Send a request with `data` as its body, and return the response with its body unread; the caller closes it.

    `secret` are headers for this server: a redirect to another server is followed without them. `wait` makes the pauses between tries.

    Raises:
        StatusError: when the server answers with an error.
        NoAnswer: when it does not answer.
        HttpError: when the address is not one of HTTP, or holds a user name, or a secret cannot be in a header.
    """
    if not is_address(url) or has_user(url):
        raise HttpError(f"{masked(url)}: expected an address that begins with https:// or http:// and holds no user name or password")
    if not all(value.isascii() and value.isprintable() for value in (secret or {}).values()):
        # http.client would quote the value in its error.
        raise HttpError(f"{masked(url)}: the token or password for it is not printable ASCII")
    proxies = urllib.request.ProxyHandler({}) if is_loopback(url) else urllib.request.ProxyHandler()
    opener = urllib.request.build_opener(proxies, _Redirects())
    reason: Exception
    for pause in (*PAUSES, None):
        # A new request for each try: a proxy handler rewrites it, and sent again it would go out in clear text, with the secret.
        request = urllib.request.Request(url, data, method=method, headers=dict(headers or {}))  # noqa: S310  # checked above
        for name, value in (secret or {}).items():
            request.add_unredirected_header(name, value)
        try:
            response: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            reason = error
            words = _words_of(error)
            if error.code not in _PASSING or pause is None:
                message = f"{method} {masked(url)}: the server answered {error.code} {error.reason}{words}"
                raise StatusError(message, error.code, error.headers) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error
        else:
            return response
        if pause is not None:
            wait(pause)
    raise NoAnswer(f"{method} {masked(url)}: no answer: {getattr(reason, 'reason', reason)}; check the address and the network") from reason


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects with the method of the request, and with the secret as long as they lead to the same server."""

    def redirect_request(self, req: urllib.request.Request, *arguments: Any) -> urllib.request.Request | None:
        found = super().redirect_request(req, *arguments)
        if found is not None and req.get_method() == "HEAD":
            found.method = "HEAD"  # before Python 3.13 it would become a GET
        if found is not None and _server(found.full_url) == _server(req.full_url) and "Authorization" in req.unredirected_hdrs:
            found.add_unredirected_header("Authorization", req.unredirected_hdrs["Authorization"])
        return found


def read_body(response: http.client.HTTPResponse, limit: int, name: str) -> bytes:
    """Return the whole body, and close the response; a body longer than `limit` bytes is cut at `limit` + 1. Errors call it `name`.

    Raises:
        HttpError: when the connection breaks.
    """
    try:
        with response:
            data = response.read(limit + 1)
            announced = int(response.headers.get("Content-Length") or 0)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise HttpError(f"{name}: the answer broke off ({type(error).__name__}); run the command again") from None
    if len(data) < min(announced, limit + 1):
        raise HttpError(f"{name}: the answer broke off after {len(data)} of {announced} bytes; run the command again")
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A body of known size on a server."""

    name: str
    """What logs and errors call it."""
    size: int
    open: Callable[[int, int | None], http.client.HTTPResponse]
    """Asks for the bytes from a start up to an end, which is not included; None means the end of the body."""
    part: int = _PART
    """Bytes to ask for at once."""
    wait: Wait = time.sleep
    """Makes the pauses between tries."""


class Body(io.RawIOBase):
    """A remote body as a file, read from `start` on: when the connection breaks, the rest is asked for."""

    def __init__(self, remote: Remote, start: int = 0) -> None:
        super().__init__()
        self._remote, self._at = remote, start
        self._response: http.client.HTTPResponse | None = None
        self._end = start
        """Where the response at hand ends."""

    @property
    def position(self) -> int:
        """Return where the next byte is in the body."""
        return self._at

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's type of a buffer has no name before Python 3.12
        """Fill the buffer with the next bytes and return their number, 0 at the end.

        Raises:
            HttpError: after four broken connections in a row without a new byte, or when the server answers with an error.
        """
        if self._at >= self._remote.size:
            return 0
        for pause in (*PAUSES, None):
            reason = "it ended too soon"
            try:
                count = self._read(memoryview(buffer)[: self._remote.size - self._at])
            except (OSError, http.client.HTTPException) as error:
                count, reason = 0, str(error) or type(error).__name__
            if count:
                self._at += count
                return count
            self._drop()
            if pause is not None:
                log.warning("%s: the connection broke (%s); asking for the rest from byte %d", self._remote.name, reason, self._at)
                self._remote.wait(pause)
        raise NoAnswer(
            f"{self._remote.name}: the connection broke at byte {self._at} of {self._remote.size} four times; run the command again later"
        )

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        super().close()

    def _read(self, view: memoryview) -> int:
        if self._response is None or self._at == self._end:
            self._drop()
            end = min(self._at + self._remote.part, self._remote.size)
            self._response = self._remote.open(self._at, end if end < self._remote.size else None)
            self._end = end
            if self._response.status != http.client.PARTIAL_CONTENT:
                # The server knows no ranges: it sends the whole body, whose beginning is here already.
                self._end = self._remote.size
                self._skip(self._response)
        return self._response.readinto(view)

    def _skip(self, response: http.client.HTTPResponse) -> None:
        left = self._at
        while left:
            piece = response.read(min(left, 1 << 20))
            if not piece:
                raise http.client.IncompleteRead(b"", left)
            left -= len(piece)

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None


def byte_range(start: int, end: int | None) -> dict[str, str]:
    """Return the header that asks for the bytes from `start` up to `end`, which is not included; none for a whole body."""
    if not start and end is None:
        return {}
    return {"Range": f"bytes={start}-{'' if end is None else end - 1}"}


def is_loopback(url: str) -> bool:
    """Return whether an address is on this machine, where registries speak plain HTTP.

    >>> is_loopback("http://127.0.0.1:5000/v2/"), is_loopback("http://127.evil.example/"), is_loopback("http://localhost:x@evil.example")
    (True, False, False)
    """
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _words_of(error: urllib.error.HTTPError) -> str:
    with error, suppress(OSError, http.client.HTTPException):
        words = " ".join(error.read(400).decode("utf-8", "replace").split())
        return f" ({words})" if words else ""
    return ""
