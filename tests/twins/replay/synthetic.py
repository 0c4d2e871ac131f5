"""Answers of made-up tokens in the form of FastDeploy 2.3's, at a steady rate, for benches of hundreds of streams at once.

The frames of a length are made once; a stream is a timer, not a task: each tick writes all tokens that are due in one write, so a busy
machine delays tokens but never the rate.
"""

import asyncio
import json
import time
from functools import lru_cache
from itertools import cycle, islice
from typing import Any, Final
from uuid import uuid4

from .recordings import json_object
from .seen import Entry
from .wire import LAST_CHUNK, Answer, Request, frame, json_answer, split, stream_answer

MODEL: Final = "synthetic"
ROUTES: Final = ("/v1/chat/completions", "/v1/completions")
PROMPT_TOKENS: Final = 32
WORDS: Final = (" the", " engine", " says", " 你", "好", ",", " token", " after", " token", ".")
_ID: Final = "00000000-0000-0000-0000-000000000000"
_CREATED: Final = 1795433459
_BACKLOG: Final = 1 << 20  # bytes; a client this far behind gets its tokens later, in larger writes
_SHORTEST_TICK_S: Final = 0.001


class Stream:
    """The frames of one streamed answer, the same for all requests of a length but for the id."""

    def __init__(self, request: Request, most: int, *, rate: float, keeps: bool = False) -> None:
        """Make what `request` asks for, of at most `most` tokens, at `rate` tokens per second; `keeps` is of the connection."""
        body = json_object(request.body)
        opening = frame(_role_event().encode()) if request.path == ROUTES[0] else b""
        usage = _wants_usage(body)
        self.rate = rate
        self.id = str(uuid4()).encode()
        answer = stream_answer()
        self.opening = (answer.kept() if keeps else answer).head + opening.replace(_ID.encode(), self.id)
        self.frames = _frames(request.path, _token_count(body, most), usage=usage)
        self.events = bool(opening) + len(self.frames) + usage + 2  # the last token is followed by finish_reason, usage and [DONE]


def whole(request: Request, most: int) -> Answer:
    """The whole answer to a request as a value: JSON, or the stream with all its events."""
    body = json_object(request.body)
    tokens = _token_count(body, most)
    if body.get("stream") is True:
        stream = Stream(request, most, rate=1.0)
        return split(stream.opening + b"".join(stream.frames))
    text = "".join(islice(cycle(WORDS), tokens))
    chat = request.path == ROUTES[0]
    message = {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": None}
    said: dict[str, Any] = {"message": message} if chat else {"text": text, "reasoning_content": None, "tool_calls": None}
    value = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid4()}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, **said, "logprobs": None, "draft_logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(tokens),
    }
    return json_answer("200 OK", value)


class Pump:
    """Writes one stream at its rate until it is out or stopped."""

    def __init__(self, transport: asyncio.WriteTransport, stream: Stream, entry: Entry) -> None:
        """Write the opening now; the first token follows after one interval. Await `done`, and call `stop` in the end."""
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._stream = stream
        self._entry = entry
        self._sent = 0
        self._write(stream.opening)
        self._start = self._loop.time()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_at(self._start + 1 / stream.rate, self._tick)

    def stop(self) -> None:
        """Write no more."""
        self._timer.cancel()

    def _tick(self) -> None:
        frames, rate, now = self._stream.frames, self._stream.rate, self._loop.time()
        due = min(len(frames), int((now - self._start) * rate + 1e-6))
        if due > self._sent and self._transport.get_write_buffer_size() < _BACKLOG:
            self._write(b"".join(frames[self._sent : due]).replace(_ID.encode(), self._stream.id))
            self._sent = due
        if self._sent < len(frames):
            self._timer = self._loop.call_at(max(self._start + (due + 1) / rate, now + _SHORTEST_TICK_S), self._tick)
        elif not self.done.done():
            self.done.set_result(None)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._entry.wrote(len(data), data.count(b"\r\ndata: "))


@lru_cache(maxsize=8)
def _frames(path: str, tokens: int, *, usage: bool) -> tuple[bytes, ...]:
    """The chunks after the opening, one per token, the last of them with all that follows it; ids to be replaced."""
    make = _chat_event if path == ROUTES[0] else _text_event
    *rest, last = [frame(make(word).encode()) for word in islice(cycle(WORDS), tokens)]
    last += frame(make("", finish="stop").encode())
    if usage:
        last += frame(_usage_event(path, tokens).encode())
    return (*rest, last + frame(b"data: [DONE]\n\n") + LAST_CHUNK)


def _token_count(body: dict[str, Any], most: int) -> int:
    asked = body.get("max_completion_tokens") or body.get("max_tokens")
    return min(asked, most) if isinstance(asked, int) and asked > 0 else most


def _wants_usage(body: dict[str, Any]) -> bool:
    """FastDeploy sends usage only with `stream_options`, in which `include_usage` is true by default."""
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage", True))


def _event(kind: str, prefix: str, rest: dict[str, Any]) -> str:
    head = {"id": f"{prefix}-{_ID}", **({"object": kind} if kind else {}), "created": _CREATED, "model": MODEL}
    return "data: " + json.dumps({**head, **rest}, ensure_ascii=False, separators=(",", ":"))


def _role_event() -> str:
    delta = {
        "role": "assistant",
        "content": "",
        "prompt_token_ids": None,
        "completion_token_ids": None,
        "reasoning_content": "",
        "tool_calls": None,
    }
    # The space before the line end is FastDeploy's: only the first chunk of a choice has it.
    return _event("chat.completion.chunk", "chatcmpl", {"choices": [{"index": 0, "delta": delta}]}) + " \n\n"


def _chat_event(word: str, finish: str | None = None) -> str:
    delta = {"content": word, "prompt_token_ids": None, "completion_token_ids": None, "reasoning_content": "", "tool_calls": None}
    choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "draft_logprobs": None}
    choice.update({"finish_reason": finish} if finish else {}, arrival_time=0.031440019607543945)
    return _event("chat.completion.chunk", "chatcmpl", {"choices": [choice]}) + "\n\n"


def _text_event(word: str, finish: str | None = None) -> str:
    choice: dict[str, Any] = {"index": 0, "text": word, "arrival_time": 0.031440019607543945, "logprobs": None, "draft_logprobs": None}
    choice.update(dict.fromkeys(("prompt_token_ids", "completion_token_ids", "completion_tokens")), reasoning_content="")
    choice.update({"finish_reason": finish} if finish else {}, tool_calls=None)
    return _event("", "cmpl", {"choices": [choice]}) + "\n\n"


def _usage_event(path: str, tokens: int) -> str:
    kind, prefix = ("chat.completion.chunk", "chatcmpl") if path == ROUTES[0] else ("", "cmpl")
    return _event(kind, prefix, {"choices": [], "usage": _usage(tokens)}) + "\n\n"


def _usage(tokens: int) -> dict[str, Any]:
    details = {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 0}}
    return {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + tokens, "completion_tokens": tokens, **details}
