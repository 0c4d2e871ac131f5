"""The arguments of `ci/just serve`, and the frozen `Options` that they become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from images.arguments import Key, Kind, file_named, one_of, some, whole
from images.build_errors import UnknownChoice
from tools.serve.worker_variables import API_KEY, MODEL_KEY, worker_variables

__all__ = ["KEYS", "Options", "read_options"]


def _endpoint(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError(text)
    return text


KEYS = (
    Key("port", "The port on 127.0.0.1; 0 takes a free one.", default="8000", check=whole(0, 65535)),
    MODEL_KEY,
    Key("engine", "What computes the answers; ENGINE, or else cpu, where it is not given.", check=one_of("cpu", "fastdeploy", "auto")),
    Key("endpoint", "The endpoint's id in addresses.", default="local", check=Kind("letters, digits, - or _", _endpoint)),
    Key("api-key-file", f"A file with the key that clients must send; {API_KEY} may hold the key itself.", check=some("a file")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to serve and where. `port` 0 takes a free one; an empty `api_key` admits every client; `variables` are the worker's own."""

    port: int = 8000
    endpoint: str = "local"
    api_key: str = field(default="", repr=False)
    key_file: Path | None = None
    """The file that the key is from; None where it is from the environment."""
    model: str = "demo"
    """The name that clients give."""
    variables: Mapping[str, str] = field(default_factory=dict)


def read_options(values: Mapping[str, str], environment: Mapping[str, str]) -> Options:
    """Return the options for the values of KEYS; variables of the worker are taken from the environment.

    Raises:
        UnknownChoice: when the file with the key cannot be read, or holds none.
    """
    variables = worker_variables(environment, model=values["model"])
    if values["engine"]:
        variables["ENGINE"] = values["engine"]
    key_file = file_named(values["api-key-file"], environment).resolve() if values["api-key-file"] else None
    return Options(
        port=int(values["port"]),
        endpoint=values["endpoint"],
        api_key=_read_key(key_file) if key_file else environment.get(API_KEY, "").strip(),
        key_file=key_file,
        model=variables["SERVED_MODEL_NAME"],
        variables=variables,
    )


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UnknownChoice(f"api-key-file: {path}: cannot be read ({error})") from None
    if not key:
        raise UnknownChoice(f"api-key-file: {path}: got an empty file, expected a key")
    return key
