"""Flags that fit the machine, the checkpoint and each other, with the operator's word above every default.

`decide` works from values alone and names all contradictions at once: FastDeploy itself finds them one at a time, some only after the
weights are loaded, in a log inside the container. What it asserts is cited from FDConfig.check.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoint.config import head_counts, longest_context
from handler.fastdeploy.flags import collect_flags, collect_variables, range_problem
from handler.fastdeploy.formats import is_misread, own_quantization, stands_in
from handler.fastdeploy.gpus import Gpu, fit_gpus, visible
from handler.fastdeploy.values import name_problems
from handler.settings import Settings

__all__ = ["PORTS", "USUAL_LENGTH", "Decision", "decide", "path_problems", "pinned_ports"]

USUAL_LENGTH = 2048
"""FastDeploy's own default for --max-model-len."""

USUAL_CONCURRENCY = 512
"""FastDeploy's own default for --max-concurrency (2.6: 2048, over four HTTP processes)."""

PORTS = ("metrics_port", "controller_port", "engine_worker_queue_port", "cache_queue_port")
"""Flags that pin a port, or a list of them."""

_CHUNK = {True: 8192, False: 2048}
"""Tokens of a step with chunked prefill that FastDeploy takes unasked, by whether the V1 scheduler is on."""

_OF_THE_SHELL = re.compile(r"""[\s"'`$&|;<>()*?\[\\]""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How FastDeploy is to be started, but for what each start has of its own: model, name and ports."""

    values: Mapping[str, Any]
    """Its flags by destination."""
    environment: Mapping[str, str]
    """The variables that it reads itself."""
    gpus: tuple[int, ...]
    """The GPUs it gets, as nvidia-smi numbers them; empty where they are not known."""
    problems: tuple[str, ...]
    """One sentence for each text that is wrong, and each value that contradicts another, the checkpoint or the machine."""
    notes: tuple[str, ...]
    """What the operator may not expect of a start that works."""


def decide(settings: Settings, release: str, gpus: Sequence[Gpu], config: Mapping[str, Any] | None = None) -> Decision:
    """Return what `settings` come to on a machine with these GPUs (none: not known) for the checkpoint that has this config.json.

    `config` is None before there is a checkpoint: then what only it can tell is left open. An empty one tells nothing.
    """
    texts = settings.texts
    values, problems = collect_flags(texts, release)
    environment, more = collect_variables(texts)
    problems += more
    values = _from_settings(settings, values)
    asked = dict(values)
    if config is not None:
        problems += _fit_length(values, config)
    problems += _bad_ranges(values)
    allowed, more = visible(texts.get("CUDA_VISIBLE_DEVICES", "").strip(), gpus)
    problems += more
    problems += fit_gpus(values, head_counts(config or {}), allowed)
    if "max_model_len" in values:  # else the checkpoint decides it
        problems += _fit_tokens(values, environment)
    problems += _conflicts(values, environment, settings.port)
    problems += name_problems(values, environment, release)
    problems += path_problems(environment.get("FD_LOG_DIR", ""), "FD_LOG_DIR: got")
    ranks = values["tensor_parallel_size"] * values.get("data_parallel_size", 1)
    return Decision(
        values=values,
        environment=_own_variables(texts, config or {}, release) | environment,
        gpus=tuple(allowed[:ranks]) if allowed else (),  # exactly as many as ranks: FastDeploy starts one for each name
        problems=tuple(problems),
        notes=tuple(_notes(asked, values, config or {}, release)),
    )


def _from_settings(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that come from the worker's own settings, under those that the operator named himself."""
    own = {
        "max_concurrency": max(USUAL_CONCURRENCY, settings.limits.max_concurrency),
        "max_num_seqs": settings.engine.max_num_seqs,
        "timeout_graceful_shutdown": int(settings.engine.stop_timeout),
        "workers": 1,
    }
    if settings.engine.max_model_len:
        own["max_model_len"] = settings.engine.max_model_len
    # A port of 0 asks for any free one, which every queue gets anyway.
    asked = {dest: value for dest, value in values.items() if dest not in PORTS or _ports_of(values, dest) or not isinstance(value, list)}
    return own | asked


def _own_variables(texts: Mapping[str, str], config: Mapping[str, Any], release: str) -> dict[str, str]:
    """Return the variables that FastDeploy gets unless the operator sets them."""
    own = {"DO_NOT_TRACK": texts.get("DO_NOT_TRACK", "").strip() or "1"}  # from 2.4 on it reports its use to its makers
    if release == "2.5":
        own["FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE"] = "1"  # 2.6 has it on; before 2.5 nothing aborts
    if release == "2.6":
        own["FD_LOG_REQUESTS"] = "0"  # prompts and answers; older releases cannot leave them out of their logs
    if is_misread(config, release):
        own["FD_FOR_TORCH_MODEL_FORMAT"] = "1"
    return own


def _notes(asked: Mapping[str, Any], values: Mapping[str, Any], config: Mapping[str, Any], release: str) -> Iterable[str]:
    longest, length = longest_context(config), values.get("max_model_len", 0)
    if "max_model_len" not in asked and longest > length > 0:
        yield (
            f"MAX_MODEL_LEN: not set, so prompt and answer together may have {length} tokens, FastDeploy's default; "
            f"the model allows {longest}"
        )
    if (stored := own_quantization(config)) and "quantization" in asked:
        yield f"QUANTIZATION: has no effect, since the weights are stored quantized ({stored}) and FastDeploy uses that"
    if name := stands_in(config, release):
        yield f"FastDeploy {release} has no {name} of its own: PaddleFormers' stands in, if it has one"


# --- how values fit each other


def _bad_ranges(values: Mapping[str, Any]) -> list[str]:
    """Check what settings read, whose own bounds are wider than the engine's."""
    found = ((dest, value, range_problem(dest, value)) for dest, value in values.items())
    return [f"{dest.upper()}: got {value}, expected {expected}" for dest, value, expected in found if expected]


def _fit_length(values: dict[str, Any], config: Mapping[str, Any]) -> list[str]:
    longest = longest_context(config)
    length = values.setdefault("max_model_len", min(USUAL_LENGTH, longest or USUAL_LENGTH))
    if longest and length > longest:
        return [f"MAX_MODEL_LEN: got {length}, expected at most {longest}, which is what the model's config.json allows"]
    return []


def _chunked(values: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether prompts are computed in pieces: FastDeploy turns that on by itself, except for split roles and where told not to."""
    unasked = values.get("splitwise_role", "mixed") == "mixed" and not _on(environment, "FD_DISABLE_CHUNKED_PREFILL", default=False)
    return values.get("enable_chunked_prefill", False) or unasked


def _on(environment: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = environment.get(name, "")
    return text != "0" if text else default


def _fit_tokens(values: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Give a step as many tokens as FastDeploy would by itself, within the bounds that it asserts and does not keep on its own."""
    length, together, block = values["max_model_len"], values["max_num_seqs"], values.get("block_size", 64)
    v1 = _on(environment, "ENABLE_V1_KVCACHE_SCHEDULER", default=True)
    chunked = _chunked(values, environment)
    # Without chunks a step has to hold the longest prompt.
    low = {"BLOCK_SIZE": block, "MAX_NUM_SEQS": together} if chunked else {"MAX_MODEL_LEN": length, "MAX_NUM_SEQS": together}
    most = length * together
    usual = max(_CHUNK[v1] if chunked else length, *low.values())
    name = "MAX_NUM_BATCHED_TOKENS" if "max_num_batched_tokens" in values else "MAX_MODEL_LEN x MAX_NUM_SEQS"
    tokens = values.setdefault("max_num_batched_tokens", min(most, usual))
    problems = [f"{name}: got {tokens}, expected at least {least}, which is {count}" for least, count in low.items() if tokens < count]
    if tokens > most:
        problems.append(f"{name}: got {tokens}, expected at most MAX_MODEL_LEN x MAX_NUM_SEQS, which is {most}")
    return problems


def _conflicts(values: Mapping[str, Any], environment: Mapping[str, str], worker_port: int) -> Iterable[str]:
    """Yield one sentence for each pair of values that FastDeploy's configuration refuses together."""
    partial, long_ones = values.get("max_num_partial_prefills", 1), values.get("max_long_partial_prefills", 1)
    if long_ones > partial:
        yield f"MAX_LONG_PARTIAL_PREFILLS: got {long_ones}, expected at most MAX_NUM_PARTIAL_PREFILLS, which is {partial}"
    if partial > 1 and not _chunked(values, environment):
        yield f"MAX_NUM_PARTIAL_PREFILLS: got {partial}, expected 1 unless ENABLE_CHUNKED_PREFILL is true"
    if values.get("guided_decoding_backend", "off") != "off" and values.get("speculative_config", {}).get("method"):
        yield "GUIDED_DECODING_BACKEND: expected off together with SPECULATIVE_CONFIG: FastDeploy cannot guide speculative decoding"
    if _on(environment, "ENABLE_V1_KVCACHE_SCHEDULER", default=True) and _on(environment, "FD_DISABLED_RECOVER", default=False):
        yield "FD_DISABLED_RECOVER: expected 0 unless ENABLE_V1_KVCACHE_SCHEDULER is 0"
    copies = values.get("data_parallel_size", 1)
    for dest in ("engine_worker_queue_port", "cache_queue_port"):
        if dest in values and len(values[dest]) != copies:
            yield f"{dest.upper()}: got {len(values[dest])} ports, expected one for each model copy (DATA_PARALLEL_SIZE), which is {copies}"
    named = [(port, dest.upper()) for dest in PORTS for port in _ports_of(values, dest)] + [(worker_port, "PORT")] * bool(worker_port)
    for port in sorted({port for port, _ in named}):
        names = [name for other, name in named if other == port]
        if len(names) > 1:
            yield f"{', '.join(dict.fromkeys(names))}: got {port} {len(names)} times, expected ports of their own"


def path_problems(path: str, what: str) -> list[str]:
    """Check a path that FastDeploy writes into the one text by which a shell starts its launcher (LLMEngine._start_worker_service)."""
    expected = "expected a path without white space and characters of the shell: FastDeploy's launcher does not quote it"
    return [f"{what} {path!r}, {expected}"] if _OF_THE_SHELL.search(path) else []


def pinned_ports(values: Mapping[str, Any]) -> list[int]:
    """Return the ports that the operator pinned; 0 and less mean any free one, or none."""
    return [port for dest in PORTS for port in _ports_of(values, dest)]


def _ports_of(values: Mapping[str, Any], dest: str) -> list[int]:
    given = values.get(dest, [])
    return [int(port) for port in (given if isinstance(given, list) else [given]) if int(port) > 0]
