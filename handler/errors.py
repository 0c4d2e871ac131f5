"""The tree of errors, split by who must act, and the one mapping to OpenAI error objects.

    WorkerError
    |-- InvalidJob             the caller: the job or the request cannot be served as it stands
    |-- Unavailable            the caller may send the same request again: the worker is loading, full, leaving, or it took too long
    |-- InvalidSettings        the operator: variables or files of the deployment are wrong
    |-- EngineFailedToStart    the operator: the engine never became ready
    |-- EngineRejected         the engine answered, and its answer is an error; status and body are kept
    |-- EngineDied             the engine ended or broke off while it was needed
    |-- EngineTimeout          the engine is there and silent
    `-- Told                   any of them, as another API than OpenAI's chat tells it

Every error that a caller may see goes through `to_openai`; nothing else writes an error object, but for the APIs of `translation`. Neither
a traceback nor a Python repr ever passes it.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = [
    "EngineDied",
    "EngineFailedToStart",
    "EngineRejected",
    "EngineTimeout",
    "InvalidJob",
    "InvalidSettings",
    "Told",
    "Unavailable",
    "WorkerError",
    "for_log",
    "last_frames",
    "to_openai",
]


class WorkerError(Exception):
    """The root; never raised itself."""

    status = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None


class InvalidJob(WorkerError):
    """The caller must change the request; `param` names the field."""

    type = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = "invalid_value", status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class Unavailable(WorkerError):
    """The worker cannot take the request, or not finish it; `retry_after` says after how many seconds the same one may be sent again."""

    def __init__(self, message: str, *, status: int = 503, code: str = "unavailable", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after
        self.type = _TYPES.get(status, "server_error")


class InvalidSettings(WorkerError):
    """The operator must change the listed settings; `problems` holds one sentence for each.

    `settings` is what the others come to, with defaults for the wrong ones, where they could be read: further looks may take it.
    """

    code = "invalid_settings"

    def __init__(self, problems: list[str], settings: object = None) -> None:
        super().__init__("\n".join(problems))
        self.problems, self.settings = problems, settings


class EngineFailedToStart(WorkerError):
    """The operator must look at the cause in the message; no job was taken."""

    code = "engine_failed_to_start"


class EngineRejected(WorkerError):
    """The engine answered with an error: its HTTP status and body, as they came."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the engine answered {status}")
        self.status, self.body = status, body


class EngineDied(WorkerError):
    """The engine's process ended, or its answer broke off before the end; the request may be sent again to another worker."""

    status = 503
    code = "engine_died"


class EngineTimeout(WorkerError):
    """The engine sent nothing for longer than allowed; the request was given up."""

    status = 504
    type = "timeout_error"
    code = "engine_timeout"


class Told(WorkerError):
    """An error whose body is written already; `last` is what ends a stream that has begun."""

    def __init__(self, message: str, status: int, body: dict[str, Any], last: bytes) -> None:
        super().__init__(message)
        self.status, self.body, self.last = status, body, last


def to_openai(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the OpenAI error object for any exception.

    An exception from outside the tree is our own fault: it becomes a bare 500, and its text, which may hold anything, stays out.
    """
    if isinstance(error, EngineRejected):
        return _engine_answer(error)
    if isinstance(error, Told):
        return error.status, error.body
    if isinstance(error, WorkerError):
        return error.status, _error_object(str(error), error.type, error.param, error.code)
    return 500, _error_object("internal error of the worker; its log has the details", "server_error", None, "internal_error")


def last_frames(error: BaseException) -> bytes:
    """Return what ends a stream that has begun and breaks with this error."""
    return error.last if isinstance(error, Told) else b"data: " + json.dumps(to_openai(error)[1]).encode() + b"\n\n"


def for_log(error: BaseException) -> str:
    """Return what the worker's log may say of a failed request: not the message where it may quote the request, which may be a prompt."""
    status, body = to_openai(error)
    quotes = isinstance(error, (InvalidJob, EngineRejected, Told))
    return json.dumps({"status": status} | {name: value for name, value in body["error"].items() if not (quotes and name == "message")})


def _error_object(message: str, type_: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


def _engine_answer(error: EngineRejected) -> tuple[int, dict[str, Any]]:
    """Translate the error bodies that FastDeploy's server was seen to send: {"error": {...}}, {"error": text}, {"detail": ...}, or none."""
    try:
        body = json.loads(error.body)
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    found = body.get("error", body.get("detail"))
    details = found if isinstance(found, dict) else {"message": found if isinstance(found, str) else None}

    status, code, param = error.status, details.get("code"), details.get("param")
    said = str(details.get("message") or "")
    # FastDeploy answers 500 to most mistakes of the caller and tells them apart only by type and code.
    if status >= 500 and code == "model_not_support":
        status, code, param = 404, "model_not_found", "model"
    elif status >= 500 and details.get("type") in {"invalid_request_error", "invalid_request"}:
        status, code = 400, None if code == "400" else code
    elif status >= 500 and (report := _UNFIT.match(said)):
        status, param = 400, "model" if report["field"] == "model_name" else report["field"]
        said = f"{param}: {report['problem']}"
    fallback = "invalid_request_error" if 400 <= status < 500 else "server_error"
    message = _presentable(said) or f"the engine answered {error.status} without a message"
    return status, _error_object(message, _TYPES.get(status, fallback), _text(param), _text(code))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


_UNFIT = re.compile(r"\d+ validation errors? for ServeContext.*\n(?P<field>.+)\n\s+(?P<problem>[^\n\[]*[^\s\[])")
"""What FastDeploy's routes for embeddings and rewards say, as if it were their own failure, of a request that does not fit them."""
_WRAPPER = re.compile(r"^request\[[^\]]*\] generator error: ")
_TRACEBACK = re.compile(r",?\s*Traceback \(most recent call last\):.*", re.DOTALL)
_DICTIONARY = re.compile(r":? *\{'.*\}\s*$", re.DOTALL)
_DIRECTORIES = re.compile(r"(?<![\w/:.])/(?:[\w.+-]+/)+")
_LAST_LINE = re.compile(r"^(?:[\w.]+(?:Error|Exception|Warning): )?(.+)$")


def _presentable(message: str) -> str:
    """Return an engine's message without what tells of its insides: tracebacks, Python dicts, directories.

    Of a traceback that stands alone, the text of the exception is left.
    """
    cut = _TRACEBACK.sub("", _WRAPPER.sub("", message)).strip()
    if not cut:
        last = message.strip().rsplit("\n", 1)[-1].strip()
        found = _LAST_LINE.match(last)
        cut = found.group(1) if found else last
    return _DIRECTORIES.sub("", _DICTIONARY.sub("", cut)).strip()
