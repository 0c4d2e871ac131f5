"""The recorded exchanges of every release, with the bodies of the answers, and which of them are two forms of one request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from handler.fastdeploy.assemble import Assembler
from handler.sse import FrameSplitter, frames_of
from tests.twins.replay.recordings import RELEASES, json_object, load

ROUTES = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    release: str
    case: str
    path: str
    request: dict[str, Any]
    status: int | None
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.body.startswith(b"data: ")

    @property
    def question(self) -> str:
        """What was asked, whatever the form of the answer."""
        rest = {name: value for name, value in self.request.items() if name not in {"stream", "stream_options"}}
        return json.dumps([self.release, self.case.partition("_")[0], self.path, rest], sort_keys=True)

    def frames(self) -> list[bytes]:
        return frames_of(FrameSplitter().feed(self.body))

    def answer(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value

    def assembled(self, usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """Assemble the stream; `usage` stands in where the recorded request asked for none."""
        assembler = Assembler(self.path, n=self.request.get("n") or 1)
        for frame in self.frames():
            assembler.feed(frame)
        if usage is not None:
            assembler.feed(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        return assembler.answer()

    @property
    def tells_usage(self) -> bool:
        return b'"choices":[],"usage"' in self.body or b'"choices":[],' in self.body

    def __str__(self) -> str:
        return f"{self.release}-{self.case}"


def _exchanges() -> Iterator[Exchange]:
    for release in RELEASES:
        for one in load(release):
            request = json_object(one.request.body)
            if one.request.path in ROUTES and request:
                yield Exchange(release=release, case=one.case, path=one.request.path, request=request, status=one.status, body=one.body)


EXCHANGES = list(_exchanges())
ANSWERED = [exchange for exchange in EXCHANGES if exchange.status == 200 and exchange.body]
STREAMS = [exchange for exchange in ANSWERED if exchange.is_stream]
WHOLE = [exchange for exchange in ANSWERED if not exchange.is_stream]
TWINS = [(stream, whole) for stream in STREAMS for whole in WHOLE if stream.question == whole.question]


def named(release: str, case: str) -> Exchange:
    return next(exchange for exchange in EXCHANGES if (exchange.release, exchange.case) == (release, case))
