"""Read a job's input, in any of its three shapes, into one `Request` to the engine.

    {"openai_route": "/v1/chat/completions", "openai_input": {...}}     what RunPod's OpenAI route sends
    {"route": "/v1/embeddings", "method": "POST", "body": {...}}        any route of the engine
    {"prompt": "..." | "messages": [...], "sampling_params": {...}}     native

Native input also takes the names `text` and `input` for the prompt, and sampling parameters such as `max_tokens` beside it. Rules
that are not obvious: `stream` belongs to the body where there is one, and a `stream` beside `openai_route` or `route` is ignored; a
value in `sampling_params` wins over the same name beside it; `max_new_tokens` is another name of `max_tokens`; `null` means not given.
`ROUTES` is all that may be asked of the engine.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from handler.errors import InvalidJob
from handler.json_text import kind_of, not_finite, shown
from handler.settings import BatchLimits

__all__ = ["CHAT", "COMPLETIONS", "ROUTES", "Request", "methods_of", "parse_test_job", "read_job", "read_test_job"]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

ROUTES: Mapping[str, tuple[str, ...]] = {
    CHAT: ("POST",),
    COMPLETIONS: ("POST",),
    "/v1/embeddings": ("POST",),
    "/v1/reward": ("POST",),
    "/v1/responses": ("POST",),
    "/v1/messages": ("POST",),
    "/v1/messages/count_tokens": ("POST",),
    "/v1/models": ("GET",),
    "/health": ("GET",),
    "/ping": ("GET",),
    "/metrics": ("GET",),
}
"""What may be asked of the engine, by which methods, in either face; any other route is unknown here, whatever the engine offers.

The rule: a route is let through if it answers a question or tells how the engine is, and changes nothing. Whoever may send requests is not
whoever runs the deployment, so FastDeploy's control routes stay closed: /v1/pause, /v1/resume, /v1/is_paused, /v1/sleep, /v1/wakeup,
/v1/update_weights, /v1/abort_requests, /update_model_weight, /clear_load_weight, /rearrange_experts, /check_redundant,
/get_per_expert_tokens_stats, /controller/..., and with them what a later release may add. A list of what is let through needs no news
of them.
"""

_STREAMLESS = frozenset({"/v1/embeddings", "/v1/reward", "/v1/messages/count_tokens"})
"""Routes that answer whole whatever `stream` says: neither FastDeploy 2.3 to 2.6 nor Anthropic's API knows the field there."""

_POST_ROUTES = frozenset(path for path, methods in ROUTES.items() if methods == ("POST",))
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_PROMPTS = ("prompt", "messages", "text", "input")
_BATCHING = ("max_batch_size", "min_batch_size", "batch_size_growth_factor")
_SWITCHES = ("stream", "apply_chat_template", "use_openai_format")
_SAMPLING = frozenset(
    # OpenAI's fields and FastDeploy's own (FastDeploy 2.3, entrypoints/openai/protocol.py).
    """bad_words chat_template chat_template_kwargs enable_thinking frequency_penalty guided_choice guided_grammar guided_json guided_regex
    include_stop_str_in_output logit_bias logprobs max_completion_tokens max_new_tokens max_tokens metadata min_p min_tokens model n
    presence_penalty reasoning_effort reasoning_max_tokens repetition_penalty response_format return_token_ids seed stop stop_token_ids
    stream_options structural_tag temperature tool_choice tools top_k top_logprobs top_p user""".split()
)
_NATIVE = frozenset((*_PROMPTS, *_BATCHING, *_SWITCHES, "sampling_params", *_SAMPLING))
MAX_BATCH = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to the engine.

    `body` is None where the method carries none. `native` asks for the native answer shape; `batch` bounds the pieces of a stream.
    """

    method: str
    path: str
    query: str = ""
    body: dict[str, Any] | None = None
    stream: bool = False
    native: bool = False
    batch: BatchLimits | None = None


def read_job(job_input: object, defaults: BatchLimits) -> Request:
    """Return the request that a job's input asks for.

    Raises:
        InvalidJob: naming the field, what it holds and what was expected.
    """
    if not isinstance(job_input, dict):
        raise InvalidJob(f"input: got {kind_of(job_input)}, expected an object", param="input")
    given = {name: value for name, value in job_input.items() if value is not None}
    batch = _batch(given, defaults)
    if "openai_route" in given:
        request = _openai(given, batch)
    elif "route" in given:
        request = _generic(given, batch)
    elif any(name in given for name in _PROMPTS):
        request = _native(given, batch)
    elif "openai_input" in given:
        raise InvalidJob("openai_route: missing, expected a route such as /v1/chat/completions beside openai_input", param="openai_route")
    else:
        raise InvalidJob("input: expected one of openai_route, route, prompt or messages, got none of them", param="input")
    _check_route(request, "openai_route" if "openai_route" in given else "route")
    _check_json(request.body)
    return request


def methods_of(path: str) -> tuple[str, ...]:
    """Return the methods that a route of the engine takes; none for a route that is not let through."""
    return ROUTES.get("/v1/models" if path.startswith("/v1/models/") else path, ())


def read_test_job(path: Path) -> dict[str, Any]:
    """Return the job in a `test_input.json`; raises InvalidJob when it cannot be read or is no job."""
    try:
        return parse_test_job(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidJob(f"{path}: cannot be read ({error})", param="input") from None


def parse_test_job(text: str, source: str) -> dict[str, Any]:
    """Return the job in a JSON text, an object whose `input` is the job's input; raises InvalidJob naming `source` when it is none."""
    try:
        job = json.loads(text)
    except ValueError as error:
        raise InvalidJob(f"{source}: expected JSON ({error})", param="input") from None
    if not isinstance(job, dict) or "input" not in job:
        raise InvalidJob(f'{source}: expected an object with "input"', param="input")
    return {"id": "local", **job}


def _openai(given: Mapping[str, Any], batch: BatchLimits | None) -> Request:
    path, query = _route(given["openai_route"], "openai_route")
    body = _object(given.get("openai_input", {}), "openai_input")
    if path in _POST_ROUTES:
        if not body:
            raise InvalidJob(f"openai_input: missing or empty, expected the request body of {path}", param="openai_input")
        return _post(path, query, body, batch)
    if not body or path.startswith("/v1/models"):
        return Request(method="GET", path=path, query=query, batch=batch)
    return _post(path, query, body, batch)


def _generic(given: Mapping[str, Any], batch: BatchLimits | None) -> Request:
    path, query = _route(given["route"], "route")
    body = None if given.get("body") is None else _object(given["body"], "body")
    method = given.get("method", "GET" if body is None else "POST")
    if not isinstance(method, str) or method.upper() not in _METHODS:
        raise InvalidJob(f"method: got {shown(method)}, expected one of {', '.join(_METHODS)}", param="method")
    method = method.upper()
    if method in {"GET", "HEAD", "OPTIONS", "DELETE"}:
        if body:
            raise InvalidJob(f"body: a {method} request carries none", param="body")
        return Request(method=method, path=path, query=query, batch=batch)
    return replace(_post(path, query, body or {}, batch), method=method)


def _check_route(request: Request, field: str) -> None:
    methods = methods_of(request.path)
    if not methods:
        message = f"{field}: {shown(request.path)} is no route that is let through to the engine, expected one of {', '.join(ROUTES)}"
        raise InvalidJob(message, param=field, code="unknown_route", status=404)
    if request.method not in methods:
        message = f"method: got {request.method}, expected {' or '.join(methods)} for {request.path}"
        raise InvalidJob(message, param="method", code="method_not_allowed", status=405)
    if request.stream and request.path in _STREAMLESS:
        raise InvalidJob(f"stream: got true, expected false or nothing: {request.path} does not stream", param="stream")


def _post(path: str, query: str, body: dict[str, Any], batch: BatchLimits | None) -> Request:
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidJob(f"stream: got {shown(stream)}, expected true or false", param="stream")
    return Request(method="POST", path=path, query=query, body=body, stream=bool(stream), batch=batch)


def _native(given: Mapping[str, Any], batch: BatchLimits | None) -> Request:
    for name in given:
        if name not in _NATIVE:
            near = difflib.get_close_matches(name, _NATIVE, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidJob(f"{name}: unknown field{hint}", param=name, code="unknown_field")
    switches = {name: given.get(name, False) for name in _SWITCHES}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidJob(f"{name}: got {shown(value)}, expected true or false", param=name)

    body = _sampling({name: value for name, value in given.items() if name in _SAMPLING})
    body |= _sampling(_object(given.get("sampling_params", {}), "sampling_params"))
    for name in (*_PROMPTS, "stream"):
        if name in body:
            raise InvalidJob(f"sampling_params.{name}: belongs beside sampling_params, not into it", param=f"sampling_params.{name}")

    path = _prompt(given, body, chat=switches["apply_chat_template"])
    native = not switches["use_openai_format"]
    if switches["stream"]:
        body["stream"] = True
        if native:
            body["stream_options"] = {"include_usage": True}
    return Request(method="POST", path=path, body=body, stream=switches["stream"], native=native, batch=batch)


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given of sampling parameters, under the engine's names."""
    found = {name: value for name, value in given.items() if value is not None}
    if "max_new_tokens" in found:
        found = {"max_tokens": found.pop("max_new_tokens")} | found
    return found


def _prompt(given: Mapping[str, Any], body: dict[str, Any], *, chat: bool) -> str:
    """Write the one prompt that was given into `body` and return the route that takes it."""
    names = [name for name in _PROMPTS if name in given]
    if len(names) > 1:
        raise InvalidJob(f"{names[1]}: got both {' and '.join(names)}, expected one of them", param=names[1])
    name, value = names[0], given[names[0]]
    if name == "messages":
        if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
            raise InvalidJob(f"messages: got {shown(value)}, expected a list of message objects, at least one", param="messages")
        body["messages"] = value
        return CHAT
    if chat:
        if not isinstance(value, str):
            raise InvalidJob(f"{name}: got {kind_of(value)}, expected a text when apply_chat_template is true", param=name)
        body["messages"] = [{"role": "user", "content": value}]
        return CHAT
    if not isinstance(value, (str, list)) or not value:
        raise InvalidJob(f"{name}: got {shown(value)}, expected a text, a list of texts or token ids, not empty", param=name)
    body["prompt"] = value
    return COMPLETIONS


def _route(value: object, field: str) -> tuple[str, str]:
    """Return path and query of a route, without a leading `/openai`, without a trailing slash."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidJob(f"{field}: got {shown(value)}, expected a path such as /v1/chat/completions", param=field)
    if not value.isascii() or " " in value.strip():
        message = f"{field}: got {shown(value)}, expected a path without blanks, characters others than ASCII percent-encoded"
        raise InvalidJob(message, param=field)
    path, _, query = value.strip().partition("?")
    path = "/" + path.strip("/")
    if path.startswith("/openai/"):
        path = path.removeprefix("/openai")
    parts = unquote(path).split("/")
    if ".." in parts or "" in parts[1:] or not value.isprintable() or "#" in value or "\\" in value:
        raise InvalidJob(f"{field}: got {shown(value)}, expected a plain path such as /v1/chat/completions", param=field)
    return path, query


def _batch(given: Mapping[str, Any], deployment: BatchLimits) -> BatchLimits | None:
    """Return the bounds on this request's pieces: its own where given, else the deployment's, kept in order; None for none."""
    defaults = deployment.filled()
    if not any(name in given for name in _BATCHING):
        return defaults
    defaults = defaults or BatchLimits(maximum=50, minimum=1, growth=3.0)
    most = _number(given, "max_batch_size", defaults.maximum, whole=True)
    least = _number(given, "min_batch_size", min(defaults.minimum, most), whole=True)
    if least > most:
        if "max_batch_size" in given:
            raise InvalidJob(f"min_batch_size: got {least:g}, expected at most max_batch_size, which is {most:g}", param="min_batch_size")
        most = least
    growth = _number(given, "batch_size_growth_factor", defaults.growth, whole=False)
    return BatchLimits(minimum=int(least), maximum=int(most), growth=growth)


def _number(given: Mapping[str, Any], name: str, default: float, *, whole: bool) -> float:
    value = given.get(name, default)
    right = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= MAX_BATCH and (not whole or value == int(value))
    )
    if not right:
        raise InvalidJob(f"{name}: got {shown(value)}, expected a {'whole ' if whole else ''}number from 1 to {MAX_BATCH}", param=name)
    return float(value)


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidJob(f"{field}: got {kind_of(value)}, expected an object", param=field)
    return value


def _check_json(body: object) -> None:
    """Refuse what JSON cannot carry to the engine: NaN and the infinities, which Python's reader lets through, and nesting without end."""
    try:
        json.dumps(body, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        field = "input" if isinstance(error, RecursionError) else not_finite(body)
        raise InvalidJob(f"{field}: cannot be sent to the engine as JSON ({error})", param=field) from None
