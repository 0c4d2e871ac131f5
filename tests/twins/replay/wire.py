"""HTTP/1.1 as bytes: a request read from a socket, and a recorded answer cut where its chunks were cut."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from multidict import CIMultiDict

LAST_CHUNK = b"0\r\n\r\n"


class BadRequest(Exception):
    """What the client sent is not a request this reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; header names are found in any case, `path` is without its query."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    def with_body(self, body: bytes) -> "Request":
        """The same request with this body."""
        return replace(self, body=body)

    @property
    def wire(self) -> bytes:
        """Its bytes as a client sends them."""
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer, cut into the pieces in which a server sends it."""

    head: bytes
    """Status line and headers, with the blank line."""
    pieces: tuple[bytes, ...]
    """The payload of each chunk (one SSE event each, in every recording), or the body as one piece."""
    chunked: bool
    """Whether `pieces` travel as chunks with a last empty chunk."""
    whole: bool = True
    """False: the server closed the connection before the last empty chunk."""

    def framed(self, piece: bytes) -> bytes:
        """The bytes of one piece on the wire."""
        return frame(piece) if self.chunked else piece

    def kept(self) -> "Answer":
        """The same to a client that keeps the connection: every one recorded asked for its end, and was told of it."""
        return replace(self, head=self.head.replace(b"Connection: close\r\n", b""))

    @property
    def end(self) -> bytes:
        """The bytes after the last piece."""
        return LAST_CHUNK if self.chunked and self.whole else b""


def frame(payload: bytes) -> bytes:
    """One HTTP chunk, as uvicorn writes it: size in lower-case hexadecimal, no extension."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def parse_head(head: bytes) -> Request:
    """Request line and headers, without the blank line.

    Raises:
        BadRequest: the request line does not have three words, or a header has no colon.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or any(":" not in line for line in lines):
        raise BadRequest(f"not an HTTP/1.1 request head: {head[:80]!r}")
    headers = CIMultiDict((name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
    return Request(method=words[0], path=words[1].partition("?")[0], headers=headers)


async def read_request(reader: asyncio.StreamReader, idle: float | None = None) -> Request:
    """Read one request with its whole body.

    Raises:
        BadRequest: it is not HTTP/1.1 as `parse_head` reads it.
        asyncio.IncompleteReadError: the client closed before the end.
        asyncio.TimeoutError: it did not come within `idle` seconds.
    """
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), idle)
    request = parse_head(head[:-4])
    if request.headers.get("transfer-encoding", "").lower() == "chunked":
        return request.with_body(await _read_chunks(reader))
    return request.with_body(await reader.readexactly(int(request.headers.get("content-length", "0"))))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return body


def split(raw: bytes) -> Answer:
    """Cut a recorded answer; writing head, framed pieces and end gives `raw` again."""
    head, blank, body = raw.partition(b"\r\n\r\n")
    chunked = b"\r\ntransfer-encoding: chunked" in head.lower()
    if not chunked:
        return Answer(head=head + blank, pieces=(body,) if body else (), chunked=False)
    pieces: list[bytes] = []
    while body not in {LAST_CHUNK, b""}:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(body[:length])
        body = body[length + 2 :]
    return Answer(head=head + blank, pieces=tuple(pieces), chunked=True, whole=body == LAST_CHUNK)


def text_answer(status: str, body: str = "", content_type: str | None = None) -> Answer:
    """A short answer of our own, with uvicorn's headers; `status` is like `404 Not Found`."""
    data = body.encode()
    kind = f"content-type: {content_type}\r\n" if content_type else ""
    head = f"HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-length: {len(data)}\r\n{kind}Connection: close\r\n\r\n"
    return Answer(head=head.encode(), pieces=(data,) if data else (), chunked=False)


def json_answer(status: str, value: object) -> Answer:
    """A short JSON answer of our own."""
    return text_answer(status, json.dumps(value, separators=(",", ":")), "application/json")


def stream_answer(pieces: tuple[bytes, ...] = (), *, whole: bool = True) -> Answer:
    """An event stream of our own, with the headers of FastDeploy's."""
    head = (
        b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    return Answer(head=head, pieces=pieces, chunked=True, whole=whole)
