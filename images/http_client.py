"""Ask a server over HTTP: a secret goes to no other server, what breaks off is taken up again, and a refusal becomes one sentence."""

from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from images.build_errors import Unreachable

__all__ = ["PAUSES", "Answer", "Refused", "Rest", "Silent", "ask", "is_loopback", "read_body"]

Answer = http.client.HTTPResponse

PAUSES = (0.5, 1.0, 3.0)
"""Seconds to wait before the second, third and fourth try of something that a server failed to do."""

_TIMEOUT = 60
_HICCUPS = {408, 425, 429, 500, 502, 503, 504}


class Refused(Unreachable):
    """A server said no: `status` is its HTTP status, `challenge` what it wants to see instead (the header WWW-Authenticate)."""

    def __init__(self, message: str, status: int, challenge: str) -> None:
        self.status, self.challenge = status, challenge
        super().__init__(message)


class Silent(Unreachable):
    """A server did not answer at all."""


def ask(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    secret: Mapping[str, str] | None = None,
    offset: int = 0,
    data: bytes | None = None,
) -> Answer:
    """Return the answer to a request, which sends `data`, its body unread; the caller closes it.

    `secret` are headers for this server alone: a redirect to another place goes without them. With an `offset` the rest of the body from
    there on is asked for; whether the server gave that or all of it is in its status, 206 or 200.

    Raises:
        Refused: when the server answered with an error.
        Silent: when it did not answer at all, after four tries.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise Unreachable(f"{_shown(url)}: expected an address that begins with https:// or http://")
    proxies = urllib.request.ProxyHandler({}) if is_loopback(url) else urllib.request.ProxyHandler()
    opener = urllib.request.build_opener(proxies, _Redirects())
    reason: Exception
    for pause in (*PAUSES, None):
        # A new one for each try: on the way through a proxy it is rewritten, and as that it would go out again, in clear text.
        request = urllib.request.Request(url, data, method=method, headers=dict(headers or {}))  # noqa: S310  # checked above
        if offset:
            request.add_header("Range", f"bytes={offset}-")
        for name, value in (secret or {}).items():
            request.add_unredirected_header(name, value)
        try:
            answer: Answer = opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            reason = error
            said = _said(error)
            if error.code not in _HICCUPS or pause is None:
                message = f"{method} {_shown(url)}: the server answered {error.code} {error.reason}{said}"
                raise Refused(message, error.code, error.headers.get("WWW-Authenticate", "")) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error
        else:
            return answer
        if pause is not None:
            time.sleep(pause)
    raise Silent(f"{method} {_shown(url)}: no answer: {getattr(reason, 'reason', reason)}; check the address and the network") from reason


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects with the method that was asked with, and with the secret as long as they lead to the same server."""

    def redirect_request(self, req: urllib.request.Request, *arguments: Any) -> urllib.request.Request | None:
        found = super().redirect_request(req, *arguments)
        if found is not None and req.get_method() == "HEAD":
            found.method = "HEAD"  # before Python 3.13 it would become a GET
        if found is not None and _server(found.full_url) == _server(req.full_url) and "Authorization" in req.unredirected_hdrs:
            found.add_unredirected_header("Authorization", req.unredirected_hdrs["Authorization"])
        return found


def read_body(answer: Answer, most: int, what: str) -> bytes:
    """Return the whole body of an answer that is at most `most` bytes long, and close it; a longer one is cut at `most` + 1.

    Raises:
        Unreachable: when it breaks off.
    """
    try:
        with answer:
            data = answer.read(most + 1)
            told = int(answer.headers.get("Content-Length") or 0)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(f"{what}: the answer broke off ({type(error).__name__}); run the command again") from None
    if len(data) < min(told, most + 1):
        raise Unreachable(f"{what}: the answer broke off after {len(data)} of {told} bytes; run the command again")
    return data


class Rest(io.RawIOBase):
    """The body behind an address from `offset` to `size`, as a file: when the connection breaks off, the rest is asked for.

    `ask_from(offset)` asks for the body from there on. Four broken connections in a row, none with a new byte, are an error.
    """

    def __init__(self, ask_from: Callable[[int], Answer], size: int, what: str, offset: int = 0) -> None:
        super().__init__()
        self._ask_from, self._size, self._what, self._at = ask_from, size, what, offset
        self._answer: Answer | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's name for any buffer is no type before 3.12
        """Fill the buffer with what comes next and return its length, 0 at the end.

        Raises:
            Unreachable: when the server cannot be asked any more, or sends more or less than `size` bytes.
        """
        for pause in (*PAUSES, None):
            count = self._try(memoryview(buffer)[: self._size - self._at])
            if count or self._at == self._size:
                self._at += count
                return count
            if pause is not None:
                time.sleep(pause)
        raise Unreachable(f"{self._what}: broke off at byte {self._at} of {self._size}, again and again; run the command again later")

    def close(self) -> None:
        """Close the connection."""
        if self._answer is not None:
            self._answer.close()
        super().close()

    def _try(self, view: memoryview) -> int:
        try:
            if self._answer is None:
                self._answer = self._ask_from(self._at)
                if self._at and self._answer.status != http.client.PARTIAL_CONTENT:
                    self._skip(self._answer)
            count = self._answer.readinto(view)
        except (OSError, http.client.HTTPException):
            count = 0
        if not count and self._at < self._size and self._answer is not None:
            self._answer.close()
            self._answer = None
        return count

    def _skip(self, answer: Answer) -> None:
        """Read what is there already from a server that always begins at the beginning."""
        left = self._at
        while left:
            piece = answer.read(min(left, 1 << 20))
            if not piece:
                raise http.client.IncompleteRead(b"", left)
            left -= len(piece)


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def is_loopback(url: str) -> bool:
    """Tell whether an address is on this machine, where registries speak plain HTTP."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _said(error: urllib.error.HTTPError) -> str:
    with error, suppress(OSError, http.client.HTTPException):
        words = " ".join(error.read(400).decode("utf-8", "replace").split())
        return f" ({words})" if words else ""
    return ""


def _shown(url: str) -> str:
    """Return an address without its query, which may hold a signature."""
    return url.partition("?")[0]
