"""Read the words after `ci/just serve` into `Options`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tools.serve.worker_variables import worker_variables

__all__ = ["Options", "UsageError", "read_arguments"]

_ENGINES = ("cpu", "fastdeploy", "auto")
_KEYS = ("port", "model", "engine", "endpoint", "api_key")


class UsageError(Exception):
    """The person who typed the command must change it; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to serve and where. `port` 0 takes a free one; an empty `api_key` lets everybody in; `variables` are the worker's own."""

    port: int = 8000
    endpoint: str = "local"
    api_key: str = field(default="", repr=False)
    model: str = "demo"
    """The name that clients give."""
    variables: Mapping[str, str] = field(default_factory=dict)


def read_arguments(arguments: list[str], environment: Mapping[str, str]) -> Options:
    """Return the options for `key=value` words; variables that steer a worker are taken from the environment.

    Raises:
        UsageError: a key is unknown or given twice, or a value does not fit.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in _KEYS or not equals:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise UsageError(f"{argument}: expected one of {', '.join(f'{known}=...' for known in _KEYS)}{hint}")
        if key in given:
            raise UsageError(f"{key}: given twice, as {given[key]} and {value}; expected once")
        given[key] = value
    options = Options(port=_port(given.get("port", "8000")), api_key=given.get("api_key", ""))
    if "endpoint" in given:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", given["endpoint"]):
            raise UsageError(f"endpoint: got {given['endpoint']!r}, expected letters, digits, - or _")
        options = replace(options, endpoint=given["endpoint"])
    if given.get("engine", "cpu") not in _ENGINES:
        raise UsageError(f"engine: got {given['engine']!r}, expected one of {', '.join(_ENGINES)}")
    if given.get("model") == "":
        raise UsageError("model: got nothing, expected a Hugging Face repository (org/name) or a directory")
    variables = worker_variables(environment, model=given.get("model", ""))
    if "engine" in given:
        variables["ENGINE"] = given["engine"]
    return replace(options, model=variables["SERVED_MODEL_NAME"], variables=variables)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise UsageError(f"port: got {text!r}, expected a whole number from 0 to 65535 (0 takes a free port)")
    return int(text)
