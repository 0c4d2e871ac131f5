"""One answer as a list of steps: the recorded pieces, with pacing and the faults that FastDeploy was measured to have.

Each fault was seen of FastDeploy 2.3 to 2.6, run with only its GPU worker replaced.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .wire import Answer, frame, stream_answer

DONE: Final = b"data: [DONE]\n\n"

_TRACEBACK_S: Final = 0.015
"""Seconds between an unhandled exception's answer and the end of its connection. With so many a worker that pools its connections loses as
many requests as were lost with the real server, 27 to 78 of 160."""

_TRACEBACK_EVENT: Final = {
    "error": {
        "message": 'Traceback (most recent call last):\n  File "serving_chat.py", line 268, in chat_completion_stream_generator\n'
        '    raise ValueError("{}".format(res["error_msg"]))\nValueError: Error: the worker process died\n',
        "type": "internal_error",
        "param": None,
        "code": None,
    }
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Write `data`; it completes `events` SSE events."""

    data: bytes
    events: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Write nothing for `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Silence:
    """Write nothing more, with the connection open until the client closes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Close the connection, some time after the answer was finished."""

    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection without finishing the answer."""


@dataclass(frozen=True, slots=True)
class Die:
    """End the server process with SIGKILL."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Lose every connection and come back, as FastDeploy does whose HTTP process was killed: gunicorn starts another on the same socket."""


Step = Send | Pause | Silence | Close | Drop | Die | Restart


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A way to misbehave, as given by `--fault KIND[:ARG]`."""

    kind: str
    argument: float | None = None

    def number(self, default: float) -> float:
        """The argument, or `default` where none was given."""
        return default if self.argument is None else self.argument

    def count(self, default: int) -> int:
        """The argument as a number of events."""
        return int(self.number(default))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How fast and in what sizes an answer is written."""

    event_delay: float = 0.0
    """Seconds before every event but the first."""
    rechunk: int = 0
    """Write payloads in pieces of so many bytes, each an HTTP chunk of its own if the answer is chunked; 0 keeps the recorded ones."""


def script(answer: Answer, *, pacing: Pacing, fault: Fault | None = None, keeps: bool = False) -> list[Step]:
    """The steps of one answer; `fault` is one of `REQUEST_FAULTS`, `keeps` whether the client wants to keep the connection."""
    if fault is not None and fault.kind == "empty-200":
        # As recorded: the head of a stream, whatever was asked for, and the connection closed without a chunk.
        answer = stream_answer(whole=False)
    ending = list(_ending(answer, keeps=keeps))
    answer = answer.kept() if keeps else answer
    steps = [*_paced(answer, pacing), *ending]
    if fault is None:
        return steps
    first = _first_events(steps, fault.count(1))
    faulty: dict[str, list[Step]] = {
        "never-answer": [Silence()],
        "slow-headers": [Pause(seconds=fault.number(1.0)), *steps],
        "error-mid-stream": [*first, *_error_end(answer), *ending] if answer.chunked else steps,
        "cut-stream": _cut(answer, steps, fault),
        "stall-after-events": [*first, Silence()],
        "die-after-events": [*first, Die()],
        "restart-after-events": [*first, Restart()],
    }
    return faulty.get(fault.kind, steps)


REQUEST_FAULTS: Final = (
    "never-answer",
    "slow-headers",
    "empty-200",
    "error-mid-stream",
    "cut-stream",
    "stall-after-events",
    "die-after-events",
    "restart-after-events",
)


def is_unhandled(answer: Answer) -> bool:
    """Whether this is the answer to an exception that nothing in FastDeploy expected.

    It has the text of the exception and neither `param` nor `code` (fastdeploy/utils.py, `ExceptionHandler.handle_exception`); failures
    that the routes themselves answer have one of them, or begin with the id of the request.
    """
    if not answer.head.startswith(b"HTTP/1.1 500 "):
        return False
    error = json.loads(b"".join(answer.pieces))["error"]
    told = (error["type"], error["param"], error["code"])
    return told == ("internal_error", None, None) and not error["message"].startswith("request[")


def _ending(answer: Answer, *, keeps: bool) -> Iterator[Step]:
    """After an exception uvicorn closes a connection that it has just promised to keep, once it has logged the traceback."""
    if is_unhandled(answer):
        yield Close(after_s=_TRACEBACK_S)
    elif not (keeps and answer.whole):
        yield Close()


def _error_end(answer: Answer) -> list[Step]:
    """An error event, then `[DONE]`, which FastDeploy sends from a `finally`."""
    error = b"data: " + json.dumps(_TRACEBACK_EVENT, separators=(",", ":")).encode() + b"\n\n"
    return [Send(data=frame(error), events=1), Send(data=frame(DONE), events=1), Send(data=answer.end)]


def _paced(answer: Answer, pacing: Pacing) -> Iterator[Step]:
    yield Send(data=answer.head)
    for position, piece in enumerate(answer.pieces):
        if position and pacing.event_delay:
            yield Pause(seconds=pacing.event_delay)
        size = pacing.rechunk or len(piece)
        for start in range(0, len(piece), size):
            last = start + size >= len(piece)
            yield Send(data=answer.framed(piece[start : start + size]), events=int(answer.chunked and last))
    if answer.end:
        yield Send(data=answer.end)


def _first_events(steps: list[Step], count: int) -> list[Step]:
    """The head and the first `count` events; nothing of a plain answer, which uvicorn writes at once when it is whole."""
    if not any(isinstance(step, Send) and step.events for step in steps):
        return []
    kept: list[Step] = steps[:1]
    for step in steps[1:]:
        if count <= 0:
            break
        kept.append(step)
        count -= step.events if isinstance(step, Send) else 0
    return kept


def _cut(answer: Answer, steps: list[Step], fault: Fault) -> list[Step]:
    """Without a number: everything but `[DONE]` and the last chunk. With one: so many events, then half of the next (a crashed server)."""
    if fault.argument is None or not answer.chunked:
        return [*_first_events(steps, len(answer.pieces) - 1), Drop()]
    count = fault.count(1)
    rest = answer.framed(answer.pieces[count]) if count < len(answer.pieces) else b""
    return [*_first_events(steps, count), Send(data=rest[: len(rest) // 2]), Drop()]
