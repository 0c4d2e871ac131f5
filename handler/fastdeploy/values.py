"""What a text must be to be a value of one of FastDeploy's flags or variables, and what value it is.

The parser itself accepts any number and nearly any name; what its configuration refuses a minute later, once the weights load, is refused
here. Bounds and names are those of FastDeploy's own checks (FDConfig.check, CacheConfig, the quantization registry).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from handler.fastdeploy.text_formats import OWN_PARSERS

__all__ = [
    "INTEGER_VARIABLES",
    "NUMBER_VARIABLES",
    "check_speakable",
    "name_problems",
    "order",
    "range_problem",
    "read_number",
    "read_switch",
    "read_value",
    "values_known_to",
]

_KNOWN: Mapping[str, Mapping[str, str]] = {
    "guided_decoding_backend": {"off": "2.3", "auto": "2.3", "xgrammar": "2.3", "guidance": "2.4"},
    "load_choices": {"default": "2.3", "default_v1": "2.3", "dummy": "2.5"},
    "quantization": dict.fromkeys(
        "wint2 wint4 wint8 weight_only block_wise_fp8 w4afp8 w8a8 w4a8 wfp8afp8 mix_quant tensor_wise_fp8 kvcache".split(), "2.3"
    )
    | {"modelopt_fp4": "2.5", "mxfp4": "2.5"},
    "scheduler_name": {"local": "2.3", "global": "2.3", "splitwise": "2.3", "dp": "2.3"},
    "splitwise_role": {"mixed": "2.3", "prefill": "2.3", "decode": "2.3"},
}
"""Names that the engine takes where its parser would take any, each with the first release that has it."""

_PARSERS = {
    "reasoning_parser": ("ernie-45-vl", "ernie-45-vl-thinking", "ernie-x1", "qwen3"),
    "tool_call_parser": ("ernie-45-vl-thinking", "ernie-x1"),
}
"""Parsers that the releases 2.3 to 2.6 register themselves (ReasoningParserManager, ToolParserManager); any other is a KeyError once the
model is loaded. A plugin may register more: a file (TOOL_PARSER_PLUGIN), or an installed package that FD_PLUGINS names."""

_METHODS = {"2.3": ("mtp", "ngram_match"), "2.6": ("mtp", "naive", "ngram", "suffix")}
"""Methods of speculative decoding (SpeculativeConfig), from a release on."""

_BACKENDS: Mapping[str, Mapping[str, str]] = {
    "FD_ATTENTION_BACKEND": dict.fromkeys(("NATIVE_ATTN", "APPEND_ATTN", "MLA_ATTN", "FLASH_ATTN", "PLAS_ATTN"), "2.3")
    | {"FLASH_MASK_ATTN": "2.4", "DSA_ATTN": "2.6"},
    "FD_MODEL_SOURCE": dict.fromkeys(("AISTUDIO", "MODELSCOPE", "HUGGINGFACE"), "2.3"),
    "FD_MOE_BACKEND": dict.fromkeys(("cutlass", "marlin", "triton"), "2.3")
    | {"flashinfer-cutlass": "2.5", "flashinfer-trtllm": "2.5", "flashinfer-cutedsl": "2.6"},
    "FD_SAMPLING_CLASS": dict.fromkeys(("base", "base_non_truncated", "air", "rejection"), "2.3") | {"triton": "2.6"},
}
"""Variables that name a part of the engine, and the names of its parts on CUDA (envs.py, platforms/cuda.py): another name ends a worker
while the model loads, or is read as the default without a word."""

_ANY = math.inf
_RANGES: Mapping[str, tuple[float, float]] = {
    "block_size": (1, _ANY),
    "controller_port": (-1, 65535),
    "data_parallel_size": (1, 8),
    "gpu_memory_utilization": (0.01, 1),
    "kv_cache_ratio": (0, 1),
    "max_concurrency": (1, _ANY),
    "max_long_partial_prefills": (1, _ANY),
    "max_model_len": (16, _ANY),
    "max_num_batched_tokens": (1, _ANY),
    "max_num_partial_prefills": (1, _ANY),
    "max_num_seqs": (1, 256),
    "metrics_port": (1, 65535),
    "num_gpu_blocks_override": (1, _ANY),
    "swap_space": (0, _ANY),
    "tensor_parallel_size": (1, 8),
    "timeout": (0, _ANY),
    "timeout_graceful_shutdown": (0, _ANY),
    "workers": (1, _ANY),
}
"""Smallest and largest value, both inclusive. Parallel sizes end at 8 because a node is taken to have at most eight GPUs."""

_TEXT_SWITCHES = {"guided_decoding_disable_any_whitespace"}
"""Switches that the parser reads as text, so that "False" is as true as "True": on they get "true", off they are left out."""

_PORT_LISTS = {"cache_queue_port", "engine_worker_queue_port", "innode_prefill_ports", "pd_comm_port", "rdma_comm_ports"}

_UNQUANTIZED = {"bf16", "none"}
"""What forms offer for weights as they are; FastDeploy has no name for that, and would look for a method of this name."""

INTEGER_VARIABLES = frozenset(
    """
    ENABLE_V1_KVCACHE_SCHEDULER FD_CACHE_PROC_ERROR_COUNT FD_CACHE_PROC_EXIT_TIMEOUT FD_CONSOLE_DECODE_LOG_INTERVAL
    FD_CONSOLE_SCHEDULER_METRICS FD_CUSTOM_AR_MAX_SIZE_MB FD_DEALER_CONNECTIONS FD_DEBUG FD_DETERMINISTIC_LOG_MODE FD_DETERMINISTIC_MODE
    FD_DETERMINISTIC_SPLIT_KV_SIZE FD_DISABLED_RECOVER FD_DISABLE_CHUNKED_PREFILL FD_ENABLE_ASYNC_LLM FD_ENABLE_E2W_TENSOR_CONVERT
    FD_ENABLE_INTERNAL_ADAPTER FD_ENABLE_MAX_PREFILL FD_ENABLE_MODEL_CACHE FD_ENABLE_MODEL_LOAD_CACHE FD_ENABLE_MULTI_API_SERVER
    FD_ENABLE_PDL FD_ENABLE_PD_RDMA_EAGER_CONNECT FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE FD_ENABLE_RETURN_TEXT FD_ENABLE_RL
    FD_ENABLE_SWAP_SPACE_CLEARING FD_ENABLE_V1_UPDATE_WEIGHTS FD_ENC_DEC_BLOCK_NUM FD_ENGINE_TASK_QUEUE_WITH_SHM
    FD_EP_MAX_PREFETCH_TASK_NUM FD_FILL_BITMASK_BATCH FD_FOR_TORCH_MODEL_FORMAT FD_FP8_QUANT_WITH_POW2SCALE FD_GUIDANCE_DISABLE_ADDITIONAL
    FD_LLGUIDANCE_LOG_LEVEL FD_LOG_MAX_LEN FD_LOG_REQUESTS FD_LOG_REQUESTS_LEVEL FD_MAX_STOP_SEQS_NUM FD_MOE_PROB_IN_ADVANCE
    FD_NVFP4_LOAD_BLOCKSCALE_LEAVE FD_OFFLINE_PERF_TEST_FOR_PD FD_OTLP_EXPORTER_MAX_EXPORT_BATCH_SIZE
    FD_OTLP_EXPORTER_SCHEDULE_DELAY_MILLIS FD_PD_REORDER FD_PREFILL_WAIT_DECODE_RESOURCE_SECONDS
    FD_RESERVE_MIN_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL
    FD_RESERVE_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL FD_SAVE_OUTPUT_CACHE_FOR_PREEMPTED_REQUEST
    FD_SiluAndMul_USE_PHI_SWIGLU FD_STOP_SEQS_MAX_LEN FD_SUPPORT_MAX_CONNECTIONS FD_TP_GROUP_GID_OFFSET FD_USE_AGGREGATE_SEND
    FD_USE_BLACKWELL_GEMM FD_USE_DEEP_GEMM FD_USE_FASTSAFETENSOR FD_USE_GET_SAVE_OUTPUT_V1 FD_USE_HF_TOKENIZER FD_USE_PFCC_DEEP_EP
    FD_USE_PHI_FP8_QUANT FD_USE_PHI_MOE_PERMUTE FD_USE_PHI_MOE_TOPK FD_USE_PHI_RMSNORM FD_WORKER_ALIVE_TIMEOUT ZMQ_SEND_BATCH_DATA
    """.split()
)
"""Variables that FastDeploy's envs.py reads with int(): any other text ends its start in a traceback. Switches among them are 1 and 0."""

NUMBER_VARIABLES = frozenset(
    """
    FD_EP_BATCHED_TOKEN_TIMEOUT FD_RESERVE_DECAY_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL FD_TOKEN_PROCESSOR_HEALTH_TIMEOUT
    """.split()
)
"""Variables that it reads with float()."""


def values_known_to(release: str, dest: str) -> tuple[str, ...]:
    """Return the names that a release's engine takes for a flag; none means that any will do, or that its parser knows them."""
    return tuple(name for name, since in _KNOWN.get(dest, {}).items() if order(since) <= order(release))


def name_problems(values: Mapping[str, Any], environment: Mapping[str, str], release: str) -> list[str]:
    """Return one sentence for each flag or variable that names what the release's engine does not have, and no plugin can bring along."""
    problems = []
    if not (values.get("tool_parser_plugin") or environment.get("FD_PLUGINS")):
        for dest, known in _PARSERS.items():
            name = values.get(dest)
            if name and str(name).replace("_", "-") not in known:  # as the engine reads it
                ours = f"one of the worker's, {', '.join(OWN_PARSERS)}, " if dest == "tool_call_parser" else ""
                expected = f"{ours}one of FastDeploy {release}'s own, {', '.join(known)}, or a file that registers it (TOOL_PARSER_PLUGIN)"
                problems.append(f"{dest.upper()}: got {name!r}, expected {expected}")
    method = values.get("speculative_config", {}).get("method")
    methods = [names for first, names in _METHODS.items() if order(first) <= order(release)][-1]
    if method is not None and method not in methods:
        problems.append(f"SPECULATIVE_CONFIG: got method {method!r}, expected one of {', '.join(methods)}")
    for variable, parts in _BACKENDS.items():
        text = environment.get(variable, "")
        having = [name for name, first in parts.items() if order(first) <= order(release)]
        if text and text not in having and text.lower() not in having:
            problems.append(f"{variable}: got {text!r}, expected one of {', '.join(having)}")
    return problems


def order(release: str) -> tuple[int, ...]:
    """Return what sorts releases: 2.10 comes after 2.9."""
    return tuple(int(part) for part in release.split("."))


def read_value(dest: str, kind: str, text: str, *, choices: tuple[str, ...] = (), many: bool = False) -> Any:
    """Return what the parser stores for `text` as a value of the flag, or None where that is the same as not giving the flag.

    Raises:
        ValueError: saying what was expected.
    """
    check_speakable(text)
    if dest in _TEXT_SWITCHES:
        return "true" if read_switch(text) else None
    if dest == "quantization" and text.lower() in _UNQUANTIZED:
        return None
    if many:
        return _names(text)
    if choices and not (kind == "quantization" and text.startswith("{")):
        text = _one_of(text, choices)
    value = _READERS[kind](text)
    if dest == "quantization":
        value["quantization"] = _one_of(str(value.get("quantization")), choices)
    if dest in _PORT_LISTS:
        value = [str(_port(port)) for port in value]
    if problem := range_problem(dest, value):
        raise ValueError(problem)
    return value


def range_problem(dest: str, value: Any) -> str:
    """Return what FastDeploy's configuration expects of the number ("a number from 0 to 1"), or "" when it is content."""
    low, high = _RANGES.get(dest, (-_ANY, _ANY))
    if not isinstance(value, int | float) or low <= value <= high:
        return ""
    return f"a number of at least {low:g}" if high == _ANY else f"a number from {low:g} to {high:g}"


def read_switch(text: str) -> bool:
    """Return what a text for a switch means.

    Raises:
        ValueError: when it is none of the four words.
    """
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError("true, false, 1 or 0") from None


def read_number(text: str, kind: Callable[[str], float]) -> float:
    """Return the number of kind int or float that a text holds.

    Raises:
        ValueError: when it is not one, or not a finite one.
    """
    try:
        value = kind(text)
    except ValueError:
        value = _ANY
    if value != value or abs(value) == _ANY:  # noqa: PLR0124  # NaN; math.isfinite overflows on large whole numbers
        raise ValueError("a whole number" if kind is int else "a number")
    return value


def check_speakable(text: str) -> None:
    """Accept a text that a command line and an environment can hold.

    Raises:
        ValueError: when it is empty, a bare -- (argparse drops it), or holds a NUL or half a surrogate pair.
    """
    try:
        if "\0" not in text and text != "--" and text.encode("utf-8", "surrogateescape"):
            return
    except UnicodeEncodeError:
        pass
    raise ValueError("a text that a command line can hold")


def _one_of(text: str, known: Collection[str]) -> str:
    for name in known:
        if text.lower() == name.lower():
            return name
    raise ValueError("one of " + ", ".join(known))


def _names(text: str) -> list[str]:
    names = text.replace(",", " ").split()
    if not names or any(name.startswith("-") for name in names):
        raise ValueError("names, separated by spaces or commas, none of which starts with a dash")
    return names


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise ValueError("ports from 0 to 65535, separated by commas")
    return int(text)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError("a JSON object")  # noqa: TRY004  # a problem of the value, not of the program
    return value


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError("values separated by single commas")
    return parts


_READERS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "nullable_str": str,
    "int": lambda text: read_number(text, int),
    "float": lambda text: read_number(text, float),
    "json": _object,
    "list": _parts,
    "quantization": lambda text: _object(text) if text.startswith("{") else {"quantization": text},
}
