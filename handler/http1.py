"""HTTP/1.1 requests over keep-alive connections to one server: the engine on loopback, or RunPod's job API.

Every token of every stream passes here twice, from the engine and to the job API, and the request machinery of a general client was half
the cost of that. So this does what those two need and nothing else: no redirects, cookies, proxies, compression or pipelining. httptools
(a parser in C) reads the HTTP. An answer that is closed before its end closes its connection, which tells an engine to stop working; a
reader that is slow pauses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from handler.timeouts import timeout

__all__ = ["Answer", "Broken", "Client", "Connection", "Refused", "Target"]

_MAX_WAITING = 1 << 20
"""Bytes of an answer that wait for their reader before the connection is paused."""
_CONNECT_TIMEOUT = 10.0
"""Seconds for TCP and TLS to connect."""


class Broken(ConnectionError):
    """The connection failed, or what came is no HTTP. `begun` says whether the head of an answer had arrived."""

    def __init__(self, message: str, *, begun: bool) -> None:
        super().__init__(message)
        self.begun = begun


class Refused(Broken):
    """No connection could be made; the request was not sent."""

    def __init__(self, message: str, *, by_server: bool = False) -> None:
        super().__init__(message, begun=False)
        self.by_server = by_server
        """Whether the machine answered that nothing listens on the port."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, split into the server and what a request line asks it for."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """Return the parts of an http or https URL; raises ValueError for any other text."""
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("expected an address of printable ASCII")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("expected an address that starts with http:// or https://, without a user")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), path)

    @property
    def authority(self) -> str:
        """Return what a Host header names."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class Answer:
    """One answer: its head when it is returned, its body as it arrives. Close it; one that is not read to its end breaks its connection."""

    def __init__(self, connection: Connection, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers
        self._connection, self._now = connection, asyncio.get_running_loop().time
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._reader: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._sink: Callable[[bytes], None] | None = None
        self._end: Callable[[BaseException | None], None] | None = None
        self.complete = False
        """Whether all of it has arrived."""
        self.heard = self._now()
        """When something of it arrived last, on the loop's clock, while it is read."""

    def pour(self, sink: Callable[[bytes], None], end: Callable[[BaseException | None], None]) -> None:
        """Hand every piece of the body to `sink` as it arrives, in the call of the loop that received it.

        `end` is called once: with None after the last piece, or with what broke the answer off, an error of `sink` among it.
        """
        self._sink, self._end = sink, end
        pieces, self._waiting = list(self._pieces), 0
        self._pieces.clear()
        for piece in pieces:
            self.feed(piece)
        self._tell_end()

    def pause(self) -> None:
        """Stop reading the connection until `resume`."""
        if self._connection.transport is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if self._connection.transport is not None:
            self._connection.transport.resume_reading()

    async def read(self) -> bytes:
        """Return what has arrived since the call before, waiting for some; nothing at the end. Raises what broke the answer off."""
        while not self._pieces:
            if self.complete:
                return b""
            if self._error:
                raise self._error
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._waiting > _MAX_WAITING:
            self.resume()
        self._waiting = 0
        return data

    async def all(self) -> bytes:
        """Return the rest of the body."""
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Give the connection back for the next request, or break it off if the answer has not ended."""
        self._sink = self._end = None
        self._connection.release(self)

    # --- what the connection, and who gives an answer up, calls

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self._error:
            return
        if self._sink:
            try:
                self._sink(data)
            except Exception as error:  # noqa: BLE001  # whatever it is, it ends this answer, also one that has arrived whole
                self._break_off(error)
            return
        self.heard = self._now()
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting > _MAX_WAITING:
            self.pause()
        self._wake()

    def finish(self) -> None:
        """Note that all has arrived."""
        if not self._error:
            self.complete = True
            self._wake()
            self._tell_end()

    def fail(self, error: BaseException) -> None:
        """End the answer with an error, which its reader gets after what arrived before."""
        if not self.complete and not self._error:
            self._break_off(error)

    def _break_off(self, error: BaseException) -> None:
        self._error = error
        self._wake()
        self._tell_end()

    def _tell_end(self) -> None:
        if self._end and (self.complete or self._error):
            end, self._end = self._end, None
            end(self._error)

    def _wake(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)


class Connection(asyncio.Protocol):
    """One connection, which carries one request at a time; httptools calls the methods `on_...` as it reads the answer."""

    def __init__(self, released: Callable[[Connection, bool], None]) -> None:
        self._released = released
        self._parser = httptools.HttpResponseParser(self)
        self._head: asyncio.Future[Answer] | None = None
        self._answer: Answer | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._ends_with_connection = False
        self._reusable = True
        self.transport: asyncio.Transport | None = None
        self.used = False
        """Whether it has carried a request before."""

    async def send(self, data: bytes, timeout: float) -> Answer:
        """Send a request and return its answer once the head has arrived."""
        if self.transport is None:
            raise Broken("the server closed the connection", begun=False)
        loop = asyncio.get_running_loop()
        head: asyncio.Future[Answer] = loop.create_future()
        self._head = head
        self.transport.write(data)
        timer = loop.call_later(timeout, self._time_out)
        try:
            return await head
        finally:
            timer.cancel()

    def _time_out(self) -> None:
        if self._head and not self._head.done():
            self._head.set_exception(asyncio.TimeoutError())

    def hang_up(self) -> None:
        """Close the sending side; what the server sends is still read. On TLS the server sees a connection that was cut off."""
        self.used = False  # the request is not to be sent again
        if self.transport is not None and (made := self.transport.get_extra_info("socket")):
            with contextlib.suppress(OSError):  # closed meanwhile
                made.shutdown(socket.SHUT_WR)

    def abandon(self) -> None:
        """End the use by a request whose answer is no longer waited for."""
        self._reusable = False
        self.release(self._answer)

    def release(self, answer: Answer | None) -> None:
        """End the use by one answer; may be called twice."""
        if answer is not self._answer:
            return
        self._answer = self._head = None
        transport = self.transport
        again = transport is not None and not transport.is_closing() and answer is not None and answer.complete and self._reusable
        if transport is not None and again:
            self.used = True
            transport.resume_reading()
        elif transport is not None:
            transport.abort()
        self._released(self, again)

    def fail(self, message: str) -> None:
        """End the connection, and the answer on it with an error."""
        error = Broken(message, begun=self._answer is not None)
        if self._answer:
            self._answer.fail(error)
        if self._head and not self._head.done():
            self._head.set_exception(error)
        if self.transport is not None:
            self.transport.abort()

    # --- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # for the type checker
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Read what arrived; of a body that came in several chunks, hand on all at once."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"the server sent what is no HTTP ({error})")
        self._hand_on()

    def eof_received(self) -> None:
        """Take the end of what the server sends."""
        if self._ends_with_connection and self._answer:
            self._answer.finish()
        self.fail("the server closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""
        self.transport = None
        self.fail(f"the connection was lost ({exc})" if exc else "the server closed the connection")

    # --- what the parser calls

    def on_message_begin(self) -> None:
        """Begin an answer."""
        self._headers = {}
        if self._head is None or self._answer is not None:
            self.fail("the server sent what no request asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Give the answer to who waits for it; an informational one (1xx) is passed over."""
        status, headers = self._parser.get_status_code(), self._headers
        if status < 200 or not self._head or self._head.done():
            return
        self._ends_with_connection = "content-length" not in headers and "chunked" not in headers.get("transfer-encoding", "")
        # The engine's real server closes the connection after an unhandled exception, without saying so in the head.
        self._reusable = self._parser.should_keep_alive() and status < 500
        self._answer = Answer(self, status, headers)
        self._head.set_result(self._answer)

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """End the answer."""
        self._hand_on()
        if self._answer:
            self._answer.finish()

    def _hand_on(self) -> None:
        if self._body:
            data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            if self._answer:
                self._answer.feed(data)


class Client:
    """Requests to one server. Close it in the end; that breaks off every answer that is still being read."""

    def __init__(self, target: Target, *, headers: Mapping[str, str] | None = None, idle: float = 30.0) -> None:
        """`headers` go with every request; `idle` is for how many seconds a connection without a request is kept."""
        self._target, self._idle = target, idle
        lines = {"Host": target.authority, **(headers or {})}
        if any(not text.isprintable() for text in lines.values()):
            raise ValueError("a header holds a character that no header may hold")
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1")
        self._free: deque[tuple[float, Connection]] = deque()
        self._busy: set[Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._closed: BaseException | None = None

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        lines: bytes = b"",
        timeout: float,
        used: Callable[[Connection], None] | None = None,
    ) -> Answer:
        """Send a request and return the answer once its head has arrived.

        `lines` are further header lines, each with its end; `timeout` is for how many seconds to wait for the head, and `used` gets the
        connection that the request goes over.

        A request that meets a kept connection which the server has closed meanwhile is sent once more on a new one: no byte of an answer
        had come, and a server that closes first has not read it. `opened` gets the connection, for who wants to hang up on it.

        Raises:
            Refused: no connection; the request was not sent.
            Broken: the connection ended before the head had arrived.
            asyncio.TimeoutError: the head did not arrive in time.
        """
        length = b"" if method in ("GET", "HEAD") and not body else b"Content-Length: %d\r\n" % len(body)
        head = b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (method.encode(), path.encode(), self._lines, length, lines)
        while True:
            connection = self._kept() or await self._connect()
            self._busy.add(connection)
            if used:
                used(connection)
            try:
                return await connection.send(head + body, timeout)
            except BaseException as error:
                connection.abandon()
                if not isinstance(error, Broken) or not connection.used or self._closed:
                    raise
                self._drop()  # what was kept as long will be closed as well

    def close(self, error: BaseException | None = None) -> None:
        """Close all connections and take no further request; answers that are being read end with `error`."""
        self._closed = error or Broken("the client was closed", begun=False)
        self._drop()
        for connection in list(self._busy):
            if connection._answer:  # noqa: SLF001  # one module, one idea
                connection._answer.fail(self._closed)  # noqa: SLF001
            connection.fail("the client was closed")
        self._busy.clear()

    def _drop(self) -> None:
        while self._free:
            _, connection = self._free.popleft()
            if connection.transport is not None:
                connection.transport.abort()

    def _kept(self) -> Connection | None:
        """Return a connection that is free, the one used last, and close those that were free for too long."""
        now = asyncio.get_running_loop().time()
        while self._free and (now - self._free[0][0] > self._idle or self._free[0][1].transport is None):
            _, connection = self._free.popleft()
            if connection.transport is not None:
                connection.transport.abort()
        while self._free:
            _, connection = self._free.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    async def _connect(self) -> Connection:
        if self._closed:
            raise self._closed
        loop, target = asyncio.get_running_loop(), self._target
        if target.scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with timeout(_CONNECT_TIMEOUT):
                _, made = await loop.create_connection(lambda: Connection(self._put_back), target.host, target.port, ssl=self._tls)
        except asyncio.TimeoutError:
            raise Refused(f"no connection within {_CONNECT_TIMEOUT:g} s") from None
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            raise Refused(f"no connection ({type(error).__name__}: {error})", by_server=refused) from error
        return made

    def _put_back(self, connection: Connection, again: bool) -> None:
        self._busy.discard(connection)
        if again and not self._closed:
            self._free.append((asyncio.get_running_loop().time(), connection))
