"""The two kinds of refusal: `StartupError` stops the start of the engine, `BadRequest` answers one request.

Exception
|- StartupError      for the operator: directory, file, flag or machine does not fit
`- BadRequest   for the caller: the body of a request does not fit
"""

from __future__ import annotations

from typing import Literal, TypeAlias

RequestKind: TypeAlias = Literal["chat", "completion"]
"""Which of the two routes a request came to."""


class StartupError(Exception):
    """The engine will not start; the text is one line: what, got, expected, what to do.

    `problem` replaces "got .., expected .." where a sentence says it better.
    """

    def __init__(self, thing: str, *, remedy: str, got: str = "", expected: str = "", problem: str | None = None) -> None:
        line = f"{thing}: {problem or f'got {got}, expected {expected}'}; {remedy}"
        super().__init__(" ".join(line.split()))


class BadRequest(Exception):
    """A request that cannot be served as it is.

    `status` is the HTTP status, `param` the offending field (None: the body as a whole), `code` OpenAI's
    machine-readable reason.
    """

    def __init__(self, message: str, *, param: str | None, code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


def error_body(message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None) -> dict[str, object]:
    """Return OpenAI's error object, the one shape of every error this server words itself."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
