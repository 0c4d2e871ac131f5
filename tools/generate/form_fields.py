"""The fields of a deployment form: the worker's variables, and those of FastDeploy's flags that deployments are likely to need.

A form that is sent as it is must start every release, so a flag is a field only where all releases read it alike, and only choices and
switches have a default: whatever else is left empty is the engine's to decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from handler.fastdeploy.flags import EXTRA_ARGS
from handler.fastdeploy.table import RELEASES, Flag, flag_table
from handler.settings import TABLE, Variable
from tools.generate.flag_help import GROUPS, meaning

__all__ = ["FLAGS", "HEADINGS", "Field", "fields", "title"]

Kind = Literal["text", "model", "number", "boolean", "choice", "secret"]

HEADINGS: Mapping[str, str] = {
    "model": "Model",
    "capacity": "Capacity",
    "start": "Start and end",
    "requests": "Requests and answers",
    "operation": "Operation",
    "image": "Set by the image",
}
"""Of the groups of the worker's own variables, in the order in which they are shown."""

FLAGS = tuple(
    """
    quantization tensor_parallel_size data_parallel_size enable_expert_parallel gpu_memory_utilization max_num_batched_tokens block_size
    enable_prefix_caching swap_space load_choices reasoning_parser tool_call_parser tool_parser_plugin chat_template enable_logprob
    max_logprobs logprobs_mode guided_decoding_backend limit_mm_per_prompt mm_processor_kwargs graph_optimization_config
    speculative_config seed
    """.split()
)
"""FastDeploy's flags in the form, by destination."""

_SHOWN = {"quantization", "reasoning_parser"}

_KINDS: Mapping[str, Kind] = {"integer": "number", "number": "number", "boolean": "boolean", "choice": "choice", "secret": "secret"}

_WORDS = {"gpu": "GPU", "hf": "Hugging Face", "http": "HTTP", "len": "length", "mm": "multimodal", "num": "", "seqs": "sequences"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field; a default of None means that it is left empty, and the reader of the variable decides."""

    name: str
    title: str
    kind: Kind
    help: str
    group: str
    default: Any = None
    options: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    advanced: bool = True
    required: bool = False


def fields() -> list[Field]:
    """Return the fields in the order of the form."""
    return [*_own(), *_flags(), _platforms(), _extra()]


def title(name: str) -> str:
    """Return a variable's name as a person would write it: "Max model length" for MAX_MODEL_LEN."""
    words = [_WORDS.get(word, word) for word in name.lower().split("_")]
    text = " ".join(filter(None, words))
    return text[0].upper() + text[1:]


def _own() -> Iterator[Field]:
    for group, heading in HEADINGS.items():
        yield from (_of_variable(variable, heading) for variable in TABLE if variable.group == group and variable.form != "absent")


def _of_variable(variable: Variable, heading: str) -> Field:
    return Field(
        name=variable.name,
        title=title(variable.name),
        kind="model" if variable.name == "MODEL" else _KINDS.get(variable.kind, "text"),
        help=variable.help,
        group=heading,
        default=_plain(variable.default),
        options=variable.choices,
        minimum=variable.minimum,
        maximum=variable.maximum,
        advanced=variable.form == "advanced",
        required=variable.name == "MODEL",
    )


def _plain(default: Any) -> Any:
    """Return a default as forms write it: 1200 instead of 1200.0, and an empty text as none."""
    if isinstance(default, float) and default.is_integer():
        return int(default)
    return None if default == "" else default


def _flags() -> Iterator[Field]:
    for dest in FLAGS:
        forms = [flag_table(release)[dest] for release in RELEASES]
        yield _of_flag(dest, forms)


def _of_flag(dest: str, forms: list[Flag]) -> Field:
    newest = forms[-1]
    shared = tuple(choice for choice in newest.choices if all(choice in form.choices for form in forms))
    kind: Kind = "boolean" if not newest.takes_value else "choice" if shared else "number" if newest.type in ("int", "float") else "text"
    default: Any = None
    if kind == "boolean":
        default = bool(newest.default)
    elif dest == "quantization":
        default, shared = "none", ("none", *shared)  # what the worker takes for no quantization
    elif kind == "choice":
        default = newest.default
    group = next(heading for heading, group in GROUPS.items() if dest in group)
    said = f" Empty means {newest.default}." if kind == "number" and newest.default is not None and dest != "tensor_parallel_size" else ""
    return Field(
        name=dest.upper(),
        title=title(dest),
        kind=kind,
        help=meaning(dest) + said,
        group=group,
        default=default,
        options=shared,
        advanced=dest not in _SHOWN,
    )


def _platforms() -> Field:
    return Field(
        name="RUNPOD_INIT_TIMEOUT",
        title="RunPod init timeout",
        kind="number",
        help="Seconds after which RunPod takes a worker that is not ready for broken; without it 7 minutes, which a large model's "
        "download and load can exceed.",
        group=HEADINGS["start"],
        default=1800,
        minimum=60,
    )


def _extra() -> Field:
    return Field(
        name=EXTRA_ARGS,
        title="FastDeploy extra arguments",
        kind="text",
        help="Further flags of FastDeploy's server, as words on a command line.",
        group=HEADINGS["operation"],
    )
