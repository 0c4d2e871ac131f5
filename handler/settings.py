"""The variables of a deployment, read once into frozen values.

Order of precedence, lowest first: the defaults of the table, the environment, and `local_model_args.json` of a baked image (a JSON
object with the same names), so that a baked model is never replaced by a stray variable. Every problem is found before the first one
is reported. A name that nobody knows is a mistake when it comes from the file, or when it looks like a known one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint.unavailable import is_address, is_header_text
from handler.errors import InvalidSettings
from handler.variables import TABLE, Variable

__all__ = [
    "BAKED_SETTINGS",
    "BatchLimits",
    "EngineSettings",
    "Limits",
    "ModelSettings",
    "Secret",
    "Settings",
    "read_settings",
]

BAKED_SETTINGS = Path("/local_model_args.json")
"""Where a baked image keeps its settings."""


_HEALTH_PATH = re.compile(r"/(?!(?:v1|openai)(?:/|$)|metrics$)[\w.~/-]*")


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that no log, error or repr shows; `reveal` is the only way to its value."""

    _value: str = ""

    def __repr__(self) -> str:
        return "Secret('***')"

    def __bool__(self) -> bool:
        return bool(self._value)

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How many tokens the pieces of a stream may hold: the first `minimum`, each next `growth` times more, never over `maximum`."""

    minimum: int = 1
    maximum: int = 50
    growth: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which weights to serve, and under which name."""

    source: str
    revision: str
    served_name: str
    origin: str = "huggingface"
    baked: str = "/models"
    home: str = ""
    endpoint: str = ""
    token: Secret = field(default_factory=Secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Which engine to start, and how long to wait for it; times in seconds."""

    kind: str
    image_architectures: str
    image_cuda: str
    release: str
    python: str
    startup_timeout: float
    startup_stall_timeout: float
    restarts: int
    stop_timeout: float
    max_model_len: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what the worker takes and how long it waits; times in seconds."""

    max_concurrency: int
    stall_timeout: float
    fatal_stalls: int
    http_timeout: float
    http_drain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSettings:
    """How requests to the engine are treated."""

    strict: bool
    raw: bool
    private_media: bool
    max_tokens_limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the operator decided."""

    model: ModelSettings
    engine: EngineSettings
    batch: BatchLimits
    limits: Limits
    requests: RequestSettings
    port: int
    health_port: int
    health_path: str
    log_level: str
    texts: Mapping[str, str] = field(repr=False)
    """The deployment's variables as they were written, the baked file's over the environment's: engines read their own from it."""


def read_settings(
    environment: Mapping[str, str],
    *,
    baked: Path = BAKED_SETTINGS,
    table: Collection[Variable] = TABLE,
    engine_names: Collection[str] = (),
) -> Settings:
    """Return the settings that defaults, `environment` and the baked file give together.

    `engine_names` are variables that are not the worker's but an engine's: known here, and checked there.

    Raises:
        InvalidSettings: naming every variable that is wrong, what it holds, what was expected, and the nearest known name.
    """
    problems: list[str] = []
    known = [*_names(table), *engine_names]
    written = _read_baked(baked, known, problems)
    problems += _misspelt(environment, known)
    values = {variable.name: _value(variable, environment, written, problems) for variable in table}
    if not values["MODEL"]:
        problems.append("MODEL: not set, expected a Hugging Face repository (org/name) or a directory that holds a checkpoint")
    if values["DEFAULT_MIN_BATCH_SIZE"] > values["DEFAULT_BATCH_SIZE"]:
        got, most = values["DEFAULT_MIN_BATCH_SIZE"], values["DEFAULT_BATCH_SIZE"]
        problems.append(f"DEFAULT_MIN_BATCH_SIZE: got {got}, expected at most DEFAULT_BATCH_SIZE, which is {most}")
    if (address := values["HF_ENDPOINT"]) and not is_address(address):
        problems.append(f"HF_ENDPOINT: got {address!r}, expected the address of a hub, such as https://huggingface.co")
    if not _HEALTH_PATH.fullmatch(path := values["HEALTH_CHECK_PATH"]):
        problems.append(f"HEALTH_CHECK_PATH: got {path!r}, expected a plain path such as /ping, not below /v1 or /openai, nor /metrics")
    if problems:
        raise InvalidSettings(problems)
    return Settings(
        model=ModelSettings(
            source=values["MODEL"],
            revision=values["MODEL_REVISION"],
            served_name=values["SERVED_MODEL_NAME"] or values["MODEL"],
            origin=values["MODEL_SOURCE"],
            baked=values["BAKED_MODELS"],
            home=values["HF_HOME"],
            endpoint=values["HF_ENDPOINT"],
            token=values["HF_TOKEN"],
        ),
        engine=EngineSettings(
            kind=values["ENGINE"],
            image_architectures=values["IMAGE_ARCHITECTURES"],
            image_cuda=values["IMAGE_CUDA"],
            release=values["FASTDEPLOY_RELEASE"],
            python=values["ENGINE_PYTHON"],
            startup_timeout=values["ENGINE_STARTUP_TIMEOUT"],
            startup_stall_timeout=values["ENGINE_STARTUP_STALL_TIMEOUT"],
            restarts=values["ENGINE_RESTARTS"],
            stop_timeout=values["ENGINE_STOP_TIMEOUT"],
            max_model_len=values["MAX_MODEL_LEN"],
            max_num_seqs=values["MAX_NUM_SEQS"],
        ),
        batch=BatchLimits(
            minimum=values["DEFAULT_MIN_BATCH_SIZE"],
            maximum=values["DEFAULT_BATCH_SIZE"],
            growth=values["DEFAULT_BATCH_SIZE_GROWTH_FACTOR"],
        ),
        limits=Limits(
            max_concurrency=values["MAX_CONCURRENCY"] or 4 * values["MAX_NUM_SEQS"],
            stall_timeout=values["REQUEST_STALL_TIMEOUT"],
            fatal_stalls=values["REQUEST_STALLS_FATAL"],
            http_timeout=values["HTTP_REQUEST_TIMEOUT"],
            http_drain=values["HTTP_DRAIN_TIMEOUT"],
        ),
        requests=RequestSettings(
            strict=values["STRICT_REQUESTS"],
            raw=values["RAW_ENGINE_OUTPUT"],
            private_media=values["ALLOW_PRIVATE_MEDIA"],
            max_tokens_limit=values["MAX_TOKENS_LIMIT"],
        ),
        port=values["PORT"],
        health_port=values["PORT_HEALTH"],
        health_path=values["HEALTH_CHECK_PATH"],
        log_level=values["LOG_LEVEL"],
        texts={**environment, **written},
    )


def _read_baked(path: Path, known: Collection[str], problems: list[str]) -> dict[str, str]:
    """Return the baked file's settings as the texts that the environment would hold; a missing file means none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error})")
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        problems.append(f"{path}: expected a JSON object with names of variables ({error})")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{path}: got {type(found).__name__}, expected a JSON object with names of variables")
        return {}
    unknown = [name for name in found if name not in known and not name.startswith(_ENGINE_PREFIX)]
    problems += [f"{path}: {name}: unknown{_hint(name, known)}" for name in unknown]
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items() if value is not None}


def _value(variable: Variable, environment: Mapping[str, str], baked: Mapping[str, str], problems: list[str]) -> Any:
    """Return the parsed value from the baked file, the environment or the default.

    An empty text means not set: that is what the platform's forms send for a field left empty.
    """
    for source in (baked, environment):
        for name in (variable.name, *variable.aliases):
            text = source.get(name, "").strip()
            if text:
                try:
                    return _PARSERS[variable.kind](variable, text)
                except ValueError as error:
                    shown = "***" if variable.kind == "secret" else repr(text)
                    problems.append(f"{name}: got {shown}, expected {error}")
                    return variable.default
    return Secret() if variable.kind == "secret" else variable.default


def _in_range(variable: Variable, value: float) -> None:
    low, high = variable.minimum, variable.maximum
    if value != value or (low is not None and value < low) or (high is not None and value > high):  # noqa: PLR0124  # NaN
        raise ValueError(f"a number from {low:g} to {high:g}")


def _integer(variable: Variable, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError("a whole number") from None
    _in_range(variable, value)
    return value


def _number(variable: Variable, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("a number") from None
    _in_range(variable, value)
    return value


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _boolean(_: Variable, text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError("true, false, 1 or 0") from None


def _list(_: Variable, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _object(_: Variable, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError("a JSON object")  # noqa: TRY004  # a problem of the value, not of the program
    return value


def _choice(variable: Variable, text: str) -> str:
    for choice in variable.choices:
        if text.lower() == choice.lower():
            return choice
    raise ValueError("one of " + ", ".join(variable.choices))


def _secret(_: Variable, text: str) -> Secret:
    if not is_header_text(text):
        raise ValueError("printable ASCII without blanks or line breaks")
    return Secret(text)


_PARSERS: dict[str, Callable[[Variable, str], Any]] = {
    "text": lambda _, text: text,
    "secret": _secret,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "list": _list,
    "object": _object,
    "choice": _choice,
}


def _names(table: Collection[Variable]) -> list[str]:
    return [name for variable in table for name in (variable.name, *variable.aliases)]


def _hint(name: str, known: Collection[str], closeness: float = 0.6) -> str:
    import difflib  # only for mistakes

    near = difflib.get_close_matches(name, known, n=1, cutoff=closeness)
    return f"; did you mean {near[0]}?" if near else ""


_LOOKS_LIKE_OURS = 0.88
"""Similarity (difflib's ratio) from which an unknown variable is taken for a misspelt one: MAX_MODEL_LN is 0.96 like MAX_MODEL_LEN, and
LOGLEVEL, which means the same elsewhere but would say nothing here, 0.94 like LOG_LEVEL. Of the innocent ones, MODEL_DIR is 0.82 like
MODEL_ID."""


_OTHERS = frozenset({"CODE_REVISION"})
"""What other workers know, and what is more like ours than that: a deployment that moves here may still carry it."""


_ENGINE_PREFIX = "FD_"
"""FastDeploy's own switches: it knows more than are documented."""


def _misspelt(environment: Mapping[str, str], known: Collection[str]) -> list[str]:
    strange = (name for name in environment if name not in known and name not in _OTHERS)
    unknown = sorted(name for name in strange if name.isupper() and not name.startswith(_ENGINE_PREFIX))
    # A slip spares the first letters or the last; comparing every pair would cost 10 ms of each start.
    similar = {name: [near for near in known if near[:2] == name[:2] or near[-2:] == name[-2:]] for name in unknown}
    hints = ((name, _hint(name, near, _LOOKS_LIKE_OURS)) for name, near in similar.items() if near)
    return [f"{name}: unknown{hint}" for name, hint in hints if hint]
