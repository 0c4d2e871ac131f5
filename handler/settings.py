"""The variables of a deployment: each is declared once, as a field of a frozen dataclass, and read once into its value.

Pages, forms and checks are made from the declarations (`TABLE`). Order of precedence, lowest first: the defaults, the environment, and
`local_model_args.json` of a baked image (a JSON object with the same names), so that a stray variable never replaces a baked model. Every
problem is found before the first one is reported. An unknown name is a problem in the file, and in the environment where it looks like a
known one. FastDeploy's flags are variables too; they have tables of their own (`fastdeploy/flag_tables/`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from checkpoint.unavailable import is_address, is_header_text, masked
from handler.errors import InvalidSettings
from handler.unsupported import INSTEAD, REFUSED, refusals, report

__all__ = [
    "BAKED_SETTINGS",
    "TABLE",
    "BatchLimits",
    "EngineSettings",
    "Limits",
    "ModelSettings",
    "RequestSettings",
    "Secret",
    "Settings",
    "Variable",
    "read_settings",
]

BAKED_SETTINGS = Path("/local_model_args.json")
"""Where a baked image keeps its settings."""

Kind = Literal["text", "integer", "number", "boolean", "list", "object", "choice", "secret"]
Group = Literal["model", "capacity", "start", "requests", "operation", "image"]
Form = Literal["shown", "advanced", "absent"]
T = TypeVar("T")


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
    """What pages, forms and checks know of a variable.

    `minimum` and `maximum` bound numbers, both inclusive; `aliases` are names that users of other workers bring along. `group` is the
    heading on pages; `form` says whether a deployment form offers the variable at once, among its advanced fields, or not at all.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    aliases: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    group: Group = "operation"
    form: Form = "advanced"

    @property
    def names(self) -> tuple[str, ...]:
        """The names it is read under; those that are set must agree."""
        return (self.name, *self.aliases)

    def parse(self, text: str) -> Any:
        """Return the value that a text means.

        Raises:
            ValueError: saying what was expected.
        """
        value: Any = text
        match self.kind:
            case "text":
                if not text.isprintable():  # a line break would forge a line of the log, half a surrogate pair cannot be encoded
                    raise ValueError("one line of printable text")
            case "integer" | "number":
                value = self._number(text)
            case "boolean":
                value = _BOOLEANS.get(text.lower())
                if value is None:
                    raise ValueError("true, false, 1 or 0")
            case "choice":
                value = next((choice for choice in self.choices if choice.lower() == text.lower()), None)
                if value is None:
                    raise ValueError("one of " + ", ".join(self.choices))
            case "list":
                value = tuple(part.strip() for part in text.split(",") if part.strip())
            case "object":
                value = _object(text)
            case "secret":
                if not is_header_text(text):
                    raise ValueError("printable ASCII without blanks or line breaks")
                value = Secret(text)
        return value

    def _number(self, text: str) -> float:
        whole = self.kind == "integer"
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            raise ValueError("a whole number" if whole else "a number") from None
        low, high = self.minimum, self.maximum
        if low is not None and high is not None and not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return value


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_KINDS: dict[type, Kind] = {str: "text", int: "integer", float: "number", bool: "boolean", tuple: "list", dict: "object", Secret: "secret"}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError("a JSON object")  # noqa: TRY004  # a problem of the value, not of the program
    return value


def variable(  # noqa: PLR0913  # one argument for each thing that is known of a variable
    name: str,
    default: T,
    *,
    within: tuple[float, float] | tuple[None, None] = (None, None),
    choices: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    group: Group = "operation",
    form: Form = "advanced",
) -> Callable[[str], T]:
    """Return a function that takes the variable's help and declares the field of a settings dataclass that holds its value.

    The default's type tells the kind. No form offers what the image sets.
    """

    def declare(help_text: str) -> T:
        declared = Variable(
            name=name,
            kind="choice" if choices else _KINDS[type(default)],
            default="" if isinstance(default, Secret) else default,
            help=help_text,
            aliases=aliases,
            minimum=within[0],
            maximum=within[1],
            choices=choices,
            group=group,
            form="absent" if group == "image" else form,
        )
        return field(default_factory=lambda: default, metadata={"variable": declared})

    return declare


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which weights to serve, and under which name."""

    source: str = variable("MODEL", "", aliases=("MODEL_NAME", "MODEL_REPO"), group="model", form="shown")(
        "The model to serve: a Hugging Face repository (org/name) or a directory that holds a checkpoint."
    )
    revision: str = variable("MODEL_REVISION", "", aliases=("REVISION",), group="model")(
        "Branch, tag or commit of the repository; empty means its default branch."
    )
    origin: str = variable("MODEL_SOURCE", "huggingface", choices=("huggingface", "modelscope", "aistudio"), group="model")(
        "Where a repository is: from Hugging Face the worker downloads it, from the others FastDeploy does so itself."
    )
    baked: str = variable("BAKED_MODELS", "/models", group="image")(
        "The folder of an image's baked models, a Hugging Face cache. Set by the image."
    )
    home: str = variable("HF_HOME", "", group="model")(
        "Where downloads go; empty means the network volume if one is mounted, else the library's own folder."
    )
    hub_cache: str = variable("HF_HUB_CACHE", "", aliases=("HUGGINGFACE_HUB_CACHE",), group="model", form="absent")(
        "The Hugging Face cache that downloads go to; empty means hub below HF_HOME. It wins over HF_HOME, as in the library."
    )
    endpoint: str = variable("HF_ENDPOINT", "", group="model")("Address of the hub or a mirror; empty means Hugging Face itself.")
    served_name: str = variable("SERVED_MODEL_NAME", "", aliases=("OPENAI_SERVED_MODEL_NAME_OVERRIDE",), group="model", form="shown")(
        "The name clients use for the model; empty means the value of MODEL."
    )
    token: Secret = variable("HF_TOKEN", Secret(), aliases=("HUGGING_FACE_HUB_TOKEN",), group="model", form="shown")(  # noqa: RUF009
        "Access token for gated or private repositories."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Which engine to start, and how long to wait for it; times in seconds."""

    image_architectures: str = variable("IMAGE_ARCHITECTURES", "", group="image")(
        "Compute capabilities that the image holds kernels for, such as 80,90. Set by the image."
    )
    image_cuda: str = variable("IMAGE_CUDA", "", group="image")("The image's CUDA version, such as 12.6. Set by the image.")
    kind: str = variable("ENGINE", "auto", choices=("auto", "fastdeploy", "cpu"), group="image")(
        "The engine that answers; auto takes FastDeploy where it is installed and the CPU engine elsewhere."
    )
    release: str = variable("FASTDEPLOY_RELEASE", "", choices=("2.3", "2.4", "2.5", "2.6"), group="image")(
        "The release of FastDeploy that is installed; empty means to look."
    )
    python: str = variable("ENGINE_PYTHON", "python3", group="image")("The interpreter that has FastDeploy installed.")
    variables: tuple[str, ...] = variable("ENGINE_VARIABLES", (), group="start", form="absent")(
        "Names, separated by commas, of further variables that the engine's process gets; it gets those that FastDeploy, CUDA and the "
        "system are known to read, and no other."
    )
    startup_timeout: float = variable("ENGINE_STARTUP_TIMEOUT", 1200.0, within=(1, 86400), group="start")(
        "Seconds from the engine's start to its first answer; past that the worker gives up. RunPod itself waits 7 minutes unless "
        "RUNPOD_INIT_TIMEOUT says otherwise."
    )
    startup_stall_timeout: float = variable("ENGINE_STARTUP_STALL_TIMEOUT", 180.0, within=(1, 86400), group="start")(
        "Seconds without a sign of work (a line of log, bytes read, CPU time) after which a starting engine is given up."
    )
    restarts: int = variable("ENGINE_RESTARTS", 1, within=(0, 5), group="start")(
        "How often an engine that failed to start for no recognised reason is started again; never after its first answer."
    )
    stop_timeout: float = variable("ENGINE_STOP_TIMEOUT", 10.0, within=(0, 600), group="start")(
        "Seconds between asking the engine to stop (SIGTERM) and ending it (SIGKILL)."
    )
    max_model_len: int = variable("MAX_MODEL_LEN", 0, within=(0, 10_000_000), group="capacity", form="shown")(
        "Longest prompt plus answer in tokens; 0 leaves it to the engine."
    )
    max_num_seqs: int = variable("MAX_NUM_SEQS", 8, within=(1, 256), group="capacity", form="shown")(
        "Requests that the engine decodes at the same time."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How many tokens the pieces of a stream may hold: the first `minimum`, each next `growth` times more, never over `maximum`.

    0 is not set. Where none is set, pieces are not bounded; where one is, the others are 1, 3 and 50.
    """

    maximum: int = variable("DEFAULT_BATCH_SIZE", 0, within=(0, 65536), group="requests")(
        "Most tokens in one streamed piece; 0 means all that has arrived, or 50 where one of the two below is set."
    )
    minimum: int = variable("DEFAULT_MIN_BATCH_SIZE", 0, within=(0, 65536), group="requests")(
        "Most tokens in the first streamed piece of a job; 0 means all that has arrived, or 1 where another bound is set."
    )
    growth: float = variable("DEFAULT_BATCH_SIZE_GROWTH_FACTOR", 0.0, within=(0, 1000), group="requests")(
        "By how much each streamed piece may be larger than the one before it, until DEFAULT_BATCH_SIZE; 0 means 3 where a bound is set."
    )

    def filled(self) -> BatchLimits | None:
        """Return the bounds with those that are not set filled in; None where none is set."""
        if not (self.maximum or self.minimum or self.growth):
            return None
        most = self.maximum or max(50, self.minimum)
        return BatchLimits(maximum=most, minimum=self.minimum or 1, growth=self.growth or 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what the worker takes and how long it waits; times in seconds."""

    max_concurrency: int = variable("MAX_CONCURRENCY", 0, within=(0, 4096), group="capacity", form="shown")(
        "Jobs that the worker takes at the same time; 0 means four times MAX_NUM_SEQS, so that the engine's queue never runs dry."
    )
    stall_timeout: float = variable("REQUEST_STALL_TIMEOUT", 300.0, within=(1, 86400), group="requests")(
        "Seconds without a byte from the engine after which a request is given up with a 504."
    )
    fatal_stalls: int = variable("REQUEST_STALLS_FATAL", 3, within=(1, 1000), group="requests")(
        "After so many requests in a row that were given up the engine is taken for dead."
    )
    http_timeout: float = variable("HTTP_REQUEST_TIMEOUT", 320.0, within=(1, 86400), group="requests")(
        "Seconds that an HTTP request may take in all, streamed answers included; it ends with a 504. RunPod's load balancer cuts it "
        "after 330."
    )
    http_drain: float = variable("HTTP_DRAIN_TIMEOUT", 20.0, within=(0, 3600), group="requests")(
        "Seconds that running HTTP requests are given to end after SIGTERM; then they end with a 503."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSettings:
    """How requests to the engine are treated."""

    strict: bool = variable("STRICT_REQUESTS", False, group="requests")(
        "Refuse requests with options that the engine would ignore in silence, instead of naming them in the log."
    )
    raw: bool = variable("RAW_ENGINE_OUTPUT", False, group="requests")(
        "Pass the engine's answers on as they are, without the repairs that make them OpenAI's."
    )
    private_media: bool = variable("ALLOW_PRIVATE_MEDIA", False, group="requests")(
        "Let requests name images and videos on this machine (file://) and on addresses that are not public: FastDeploy opens them."
    )
    max_tokens_limit: int = variable("MAX_TOKENS_LIMIT", 0, within=(0, 10_000_000), group="requests")(
        "Most tokens that one answer may ask for; 0 means no limit. FastDeploy 2.3 and 2.4 cannot abort a request."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the operator decided."""

    model: ModelSettings = field(default_factory=ModelSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    batch: BatchLimits = field(default_factory=BatchLimits)
    limits: Limits = field(default_factory=Limits)
    requests: RequestSettings = field(default_factory=RequestSettings)
    port: int = variable("PORT", 0, within=(0, 65535), form="absent")(
        "Port of the worker's own HTTP server; 0 means none. RunPod sets it on load-balancing endpoints."
    )
    health_port: int = variable("PORT_HEALTH", 0, within=(0, 65535), form="absent")(
        "Port of the health check and of /metrics where it is not PORT; 0 means PORT."
    )
    health_path: str = variable("HEALTH_CHECK_PATH", "/ping")(
        "Path of the health check: 204 while the engine loads, 200 when it is ready, 503 when it is dead or the worker leaves."
    )
    job_loop: str = variable("JOB_LOOP", "worker", choices=("worker", "sdk"), form="absent")(
        "What takes RunPod's jobs: the worker's own loop, or the loop of RunPod's SDK as it is, which is slower and loses jobs and pieces "
        "where the network fails; for the day on which RunPod's API changes."
    )
    log_level: str = variable("LOG_LEVEL", "INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))("How much the worker logs.")
    texts: Mapping[str, str] = field(repr=False)
    """The deployment's variables as they were written, the baked file's over the environment's: engines read their own from it."""
    warnings: tuple[str, ...] = ()
    """What the operator has to know although the worker can start."""


def _declared(kind: Any) -> Iterator[Variable]:
    for part in fields(kind):
        if found := part.metadata.get("variable"):
            yield found
        elif is_dataclass(section := cast("Any", part.default_factory)):
            yield from _declared(section)


TABLE: tuple[Variable, ...] = tuple(sorted(_declared(Settings), key=lambda one: one.name.startswith("HTTP_")))
"""Every variable of the worker, in the order of the pages: that of the declarations, but the limits of HTTP come last."""


def read_settings(environment: Mapping[str, str], *, baked: Path = BAKED_SETTINGS, engine_names: Collection[str] = ()) -> Settings:
    """Return the settings that defaults, `environment` and the baked file give together.

    `engine_names` are variables that are not the worker's but an engine's: known here, and checked there.

    Raises:
        InvalidSettings: naming every variable that is wrong, what it holds, what was expected, and the nearest known name.
    """
    problems: list[str] = []
    known = [*(name for one in TABLE for name in one.names), *engine_names]
    written = _read_baked(baked, known, problems)
    problems += [*_misspelt(environment, known), *refusals(environment)]
    values = {one.name: _value(one, environment, written, problems) for one in TABLE}
    values["SERVED_MODEL_NAME"] = values["SERVED_MODEL_NAME"] or values["MODEL"]
    values["MAX_CONCURRENCY"] = values["MAX_CONCURRENCY"] or 4 * values["MAX_NUM_SEQS"]
    settings: Settings = _filled(Settings, values, texts={**environment, **written}, warnings=tuple(report(environment)))
    problems += _contradictions(settings)
    if problems:
        raise InvalidSettings(problems, settings)
    return settings


def _filled(kind: Any, values: Mapping[str, Any], **others: Any) -> Any:
    """Return the dataclass with the value of the variable that each of its fields declares."""
    for part in fields(kind):
        if found := part.metadata.get("variable"):
            others[part.name] = values[found.name]
        elif is_dataclass(section := cast("Any", part.default_factory)):
            others[part.name] = _filled(section, values)
    return kind(**others)


_HEALTH_PATH = re.compile(r"/(?!(?:v1|openai)(?:/|$)|metrics$)[\w.~/-]*")


def _contradictions(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each value that its kind allows, and other values or the use of it do not."""
    batch, address, path = settings.batch, settings.model.endpoint, settings.health_path
    if 0 < batch.growth < 1:
        yield f"DEFAULT_BATCH_SIZE_GROWTH_FACTOR: got {batch.growth:g}, expected a number from 1 to 1000, or 0"
    if 0 < batch.maximum < batch.minimum:
        yield f"DEFAULT_MIN_BATCH_SIZE: got {batch.minimum}, expected at most DEFAULT_BATCH_SIZE, which is {batch.maximum}"
    if address and not is_address(address):
        yield f"HF_ENDPOINT: got {masked(address)!r}, expected the address of a hub, such as https://huggingface.co"
    if not _HEALTH_PATH.fullmatch(path):
        yield f"HEALTH_CHECK_PATH: got {path!r}, expected a plain path such as /ping, not below /v1 or /openai, nor /metrics"


def _read_baked(path: Path, known: Collection[str], problems: list[str]) -> dict[str, str]:
    """Return the baked file's settings as the texts that the environment would hold; a missing file means none."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    expected = "expected a JSON object with names of variables"
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
        if not isinstance(found, dict):
            problems.append(f"{path}: got {type(found).__name__}, {expected}")
            return {}
        written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items() if value is not None}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error})")
        return {}
    except RecursionError:
        problems.append(f"{path}: nested too deeply, {expected}")
        return {}
    except ValueError as error:
        problems.append(f"{path}: {expected} ({error})")
        return {}
    problems += [f"{path}: {_shown(name)}: given twice, expected once" for name in twice]
    unknown = [name for name in found if name not in known and not _ENGINE_NAME.fullmatch(name)]
    problems += [f"{path}: {_shown(name)}: unknown{_hint(name, known)}" for name in unknown]
    return written


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _value(declared: Variable, environment: Mapping[str, str], baked: Mapping[str, str], problems: list[str]) -> Any:
    """Return the parsed value from the baked file, the environment or the default.

    An empty text means not set: that is what the platform's forms send for a field left empty.
    """
    for source in (baked, environment):
        texts = {name: text for name in declared.names if (text := source.get(name, "").strip())}
        if not texts:
            continue
        shown = {name: "***" if declared.kind == "secret" else repr(text) for name, text in texts.items()}
        (name, text), *others = texts.items()
        problems += [
            f"{other}: got {shown[other]}, expected the same as {name}, which is {shown[name]}: set one of them"
            for other, value in others
            if value != text
        ]
        try:
            return declared.parse(text)
        except ValueError as error:
            problems.append(f"{name}: got {shown[name]}, expected {error}")
            return declared.default
    if declared.name == "MODEL":
        problems.append("MODEL: not set, expected a Hugging Face repository (org/name) or a directory that holds a checkpoint")
    return Secret() if declared.kind == "secret" else declared.default


def _hint(name: str, known: Collection[str], closeness: float = 0.6) -> str:
    if why := REFUSED.get(name) or INSTEAD.get(name):
        return f"; {why}"
    import difflib  # only for mistakes

    near = difflib.get_close_matches(name, known, n=1, cutoff=closeness)
    return f"; did you mean {near[0]}?" if near else ""


_LOOKS_LIKE_OURS = 0.88
"""Similarity (difflib's ratio) from which an unknown variable is taken for a misspelt one: MAX_MODEL_LN is 0.96 like MAX_MODEL_LEN, and
LOGLEVEL, which means the same elsewhere but would say nothing here, 0.94 like LOG_LEVEL. Of the innocent ones, MODEL_DIR is 0.82 like
MODEL_ID."""


_ENGINE_NAME = re.compile(r"FD_\w+", re.ASCII)
"""FastDeploy's own switches: it knows more than are documented."""


def _misspelt(environment: Mapping[str, str], known: Collection[str]) -> list[str]:
    strange = (name for name in environment if name not in known and name not in INSTEAD and name not in REFUSED)
    unknown = sorted(name for name in strange if name.isupper() and not name.startswith("FD_"))
    # A slip spares the first letters or the last; comparing every pair would cost 10 ms of each start.
    similar = {name: [near for near in known if near[:2] == name[:2] or near[-2:] == name[-2:]] for name in unknown}
    hints = ((name, _hint(name, near, _LOOKS_LIKE_OURS)) for name, near in similar.items() if near)
    return [f"{_shown(name)}: unknown{hint}" for name, hint in hints if hint]
