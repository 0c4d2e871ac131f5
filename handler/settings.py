"""The one table of variables, read once into frozen values.

Order of precedence, lowest first: the defaults below, the environment, and `local_model_args.json` of a baked image (a JSON
object with the same names), so that a baked model is never replaced by a stray variable. Every problem is found before the first one
is reported. A name that nobody knows is a mistake when it comes from the file, or when it looks like a known one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from handler.errors import InvalidSettings

__all__ = [
    "BAKED_SETTINGS",
    "TABLE",
    "BatchLimits",
    "EngineSettings",
    "Limits",
    "ModelSettings",
    "Secret",
    "Settings",
    "Variable",
    "read_settings",
]

BAKED_SETTINGS = Path("/local_model_args.json")
"""Where a baked image keeps its settings."""

Kind = Literal["text", "integer", "number", "boolean", "list", "object", "choice", "secret"]


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
class Variable:
    """One variable of the deployment.

    `minimum` and `maximum` bound numbers, both inclusive; `aliases` are names that other workers' users bring along; the first that is set
    wins, the variable's own name before all.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    aliases: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


TABLE: tuple[Variable, ...] = (
    Variable(
        name="MODEL",
        kind="text",
        default="",
        aliases=("MODEL_NAME", "MODEL_REPO"),
        help="The model to serve: a Hugging Face repository (org/name) or a directory that holds a checkpoint.",
    ),
    Variable(
        name="MODEL_REVISION",
        kind="text",
        default="",
        aliases=("REVISION",),
        help="Branch, tag or commit of the repository; empty means its default branch.",
    ),
    Variable(
        name="MODEL_SOURCE",
        kind="choice",
        default="huggingface",
        choices=("huggingface", "modelscope", "aistudio"),
        help="Where a repository is: from Hugging Face the worker downloads it, from the others FastDeploy does so itself.",
    ),
    Variable(
        name="BAKED_MODELS",
        kind="text",
        default="/models",
        help="The folder of an image's baked models, a Hugging Face cache. Set by the image.",
    ),
    Variable(
        name="HF_HOME",
        kind="text",
        default="",
        help="Where downloads go; empty means the network volume if one is mounted, else the library's own folder.",
    ),
    Variable(name="HF_ENDPOINT", kind="text", default="", help="Address of the hub or a mirror; empty means Hugging Face itself."),
    Variable(
        name="IMAGE_ARCHITECTURES",
        kind="text",
        default="",
        help="Compute capabilities that the image holds kernels for, such as 80,90. Set by the image.",
    ),
    Variable(name="IMAGE_CUDA", kind="text", default="", help="The image's CUDA version, such as 12.6. Set by the image."),
    Variable(
        name="SERVED_MODEL_NAME",
        kind="text",
        default="",
        aliases=("OPENAI_SERVED_MODEL_NAME_OVERRIDE",),
        help="The name clients use for the model; empty means the value of MODEL.",
    ),
    Variable(
        name="HF_TOKEN",
        kind="secret",
        default="",
        aliases=("HUGGING_FACE_HUB_TOKEN",),
        help="Access token for gated or private repositories.",
    ),
    Variable(
        name="ENGINE",
        kind="choice",
        default="auto",
        choices=("auto", "fastdeploy", "cpu"),
        help="The engine that answers; auto takes FastDeploy where it is installed and the CPU engine elsewhere.",
    ),
    Variable(
        name="FASTDEPLOY_RELEASE",
        kind="choice",
        default="",
        choices=("2.3", "2.4", "2.5", "2.6"),
        help="The release of FastDeploy that is installed; empty means to look.",
    ),
    Variable(
        name="ENGINE_PYTHON",
        kind="text",
        default="python3",
        help="The interpreter that has FastDeploy installed.",
    ),
    Variable(
        name="ENGINE_STARTUP_TIMEOUT",
        kind="number",
        default=1200.0,
        minimum=1,
        maximum=86400,
        help="Seconds from the engine's start to its first answer; past that the worker gives up. RunPod itself waits 7 minutes unless "
        "RUNPOD_INIT_TIMEOUT says otherwise.",
    ),
    Variable(
        name="ENGINE_STARTUP_STALL_TIMEOUT",
        kind="number",
        default=180.0,
        minimum=1,
        maximum=86400,
        help="Seconds without a sign of work (a line of log, bytes read, CPU time) after which a starting engine is given up.",
    ),
    Variable(
        name="ENGINE_RESTARTS",
        kind="integer",
        default=1,
        minimum=0,
        maximum=5,
        help="How often an engine that failed to start for no recognised reason is started again; never after its first answer.",
    ),
    Variable(
        name="ENGINE_STOP_TIMEOUT",
        kind="number",
        default=10.0,
        minimum=0,
        maximum=600,
        help="Seconds between asking the engine to stop (SIGTERM) and ending it (SIGKILL).",
    ),
    Variable(
        name="MAX_MODEL_LEN",
        kind="integer",
        default=0,
        minimum=0,
        maximum=10_000_000,
        help="Longest prompt plus answer in tokens; 0 leaves it to the engine.",
    ),
    Variable(
        name="MAX_NUM_SEQS", kind="integer", default=8, minimum=1, maximum=256, help="Requests that the engine decodes at the same time."
    ),
    Variable(
        name="MAX_CONCURRENCY",
        kind="integer",
        default=0,
        minimum=0,
        maximum=4096,
        help="Jobs that the worker takes at the same time; 0 means four times MAX_NUM_SEQS, so that the engine's queue never runs dry.",
    ),
    Variable(name="DEFAULT_BATCH_SIZE", kind="integer", default=50, minimum=1, maximum=65536, help="Most tokens in one streamed piece."),
    Variable(
        name="DEFAULT_MIN_BATCH_SIZE",
        kind="integer",
        default=1,
        minimum=1,
        maximum=65536,
        help="Most tokens in the first streamed piece of a job.",
    ),
    Variable(
        name="DEFAULT_BATCH_SIZE_GROWTH_FACTOR",
        kind="number",
        default=3.0,
        minimum=1,
        maximum=1000,
        help="By how much each streamed piece may be larger than the one before it, until DEFAULT_BATCH_SIZE.",
    ),
    Variable(
        name="REQUEST_STALL_TIMEOUT",
        kind="number",
        default=300.0,
        minimum=1,
        maximum=86400,
        help="Seconds without a byte from the engine after which a request is given up with a 504.",
    ),
    Variable(
        name="REQUEST_STALLS_FATAL",
        kind="integer",
        default=3,
        minimum=1,
        maximum=1000,
        help="After so many requests in a row that were given up the engine is taken for dead.",
    ),
    Variable(
        name="STRICT_REQUESTS",
        kind="boolean",
        default=False,
        help="Refuse requests with options that FastDeploy would ignore in silence, instead of naming them in the log.",
    ),
    Variable(
        name="RAW_ENGINE_OUTPUT",
        kind="boolean",
        default=False,
        help="Pass FastDeploy's answers on as they are, without the repairs that make them OpenAI's.",
    ),
    Variable(
        name="MAX_TOKENS_LIMIT",
        kind="integer",
        default=0,
        minimum=0,
        maximum=10_000_000,
        help="Most tokens that one answer may ask for; 0 means no limit. FastDeploy 2.3 and 2.4 cannot abort a request.",
    ),
    Variable(
        name="PORT",
        kind="integer",
        default=0,
        minimum=0,
        maximum=65535,
        help="Port of the worker's own HTTP server; 0 means none. RunPod sets it on load-balancing endpoints.",
    ),
    Variable(
        name="LOG_LEVEL", kind="choice", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="How much the worker logs."
    ),
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSettings:
    """How requests to FastDeploy are treated."""

    strict: bool
    raw: bool
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
        ),
        requests=RequestSettings(
            strict=values["STRICT_REQUESTS"], raw=values["RAW_ENGINE_OUTPUT"], max_tokens_limit=values["MAX_TOKENS_LIMIT"]
        ),
        port=values["PORT"],
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


_PARSERS: dict[str, Callable[[Variable, str], Any]] = {
    "text": lambda _, text: text,
    "secret": lambda _, text: Secret(text),
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
    near = difflib.get_close_matches(name, known, n=1, cutoff=closeness)
    return f"; did you mean {near[0]}?" if near else ""


_LOOKS_LIKE_OURS = 0.88
"""Similarity (difflib's ratio) from which an unknown variable is taken for a misspelt one: MAX_MODEL_LN is 0.96 like MAX_MODEL_LEN; the
closest innocent pair among common variables of containers is MODEL_DIR and MODEL_ID at 0.82."""


_ENGINE_PREFIX = "FD_"
"""FastDeploy's own switches: it knows more than are documented."""


def _misspelt(environment: Mapping[str, str], known: Collection[str]) -> list[str]:
    unknown = sorted(name for name in environment if name not in known and name.isupper() and not name.startswith(_ENGINE_PREFIX))
    hints = ((name, _hint(name, known, _LOOKS_LIKE_OURS)) for name in unknown)
    return [f"{name}: unknown{hint}" for name, hint in hints if hint]
