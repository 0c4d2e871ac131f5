"""FastDeploy as the engine: flags that fit the machine, the checkpoint and each other, with the operator's word above every default.

`prepare` decides everything before a process starts, from values alone, and reports all contradictions at once: FastDeploy itself finds
them one at a time, some only after the weights are loaded, in a log that nobody sees. What it asserts is cited from FDConfig.check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handler.early import SERVER
from handler.errors import InvalidSettings
from handler.fastdeploy.cleanup import Residue
from handler.fastdeploy.devices import Gpu, devices, fit_gpus, visible
from handler.fastdeploy.flags import collect_flags, collect_variables, flag_table, range_problem, to_argv
from handler.fastdeploy.model_config import head_counts, is_misread, language_part, layout_problems, longest_context
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.logs import Tail
from handler.settings import Settings

if TYPE_CHECKING:
    from handler.dialect import Exchange
    from handler.job import Request

__all__ = ["FastDeployEngine", "Gpu", "Host", "check", "prepare"]

USUAL_LENGTH = 2048
"""FastDeploy's own default for --max-model-len."""

USUAL_CONCURRENCY = 512
"""FastDeploy's own default for --max-concurrency (2.6: 2048, over four HTTP processes)."""

_CHUNK = {True: 8192, False: 2048}
"""Tokens of a step with chunked prefill that FastDeploy takes unasked, by whether the V1 scheduler is on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the engine finds around it. `gpus` empty means that they are not known, and `free_ports(n)` returns n ports nobody holds."""

    gpus: tuple[Gpu, ...]
    free_ports: Callable[[int], Sequence[int]]
    log_directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FastDeployEngine:
    """FastDeploy's OpenAI server, run by the interpreter that has it: never the worker's own, their packages do not mix."""

    python: str
    release: str
    values: Mapping[str, Any]
    environment: Mapping[str, str]
    free_ports: Callable[[int], Sequence[int]]
    rules: Rules
    raw: bool = False
    residue: Residue = field(default_factory=Residue)
    name: str = "fastdeploy"

    def command(self, port: int) -> list[str]:
        """Return the argv that serves on 127.0.0.1:`port`, its other ports pinned to free ones."""
        values = {**self._ports(port), **self.values, "host": "127.0.0.1", "port": port}
        return [self.python, SERVER, *to_argv(values, flag_table(self.release))]

    def variables(self) -> dict[str, str]:
        """Return what the engine's environment needs beside the worker's own."""
        return dict(self.environment)

    def exchange(self, request: Request) -> Exchange:
        """Return how to put a request to it; raises InvalidJob for one that it must not see."""
        from handler.fastdeploy import dialect  # what requests need is imported once the engine runs

        return dialect.exchange(request, self.rules, raw=self.raw)

    def log_files(self) -> Tail:
        """Return the logs of its launcher and its workers; those of its HTTP server hold prompts."""
        return Tail(Path(self.environment["FD_LOG_DIR"]), ["launch_worker.log", "workerlog.*"])

    def explain(self, lines: Iterable[str]) -> str | None:
        """Return the cause of a failure that its last lines show."""
        from handler.fastdeploy.diagnose import explain

        return explain(lines)

    def clear(self) -> None:
        """Remove its files and queues in shared memory."""
        self.residue.clear()

    def _ports(self, port: int) -> dict[str, Any]:
        """Return a port for each queue of each copy of the model, and for the metrics where they cannot share the server's own (2.3)."""
        copies = self.values.get("data_parallel_size", 1)
        taken = {port, *_given_ports(self.values)}
        free = [str(free) for free in self.free_ports(2 * copies + 1 + len(taken)) if free not in taken]
        ports: dict[str, Any] = {"engine_worker_queue_port": free[:copies], "cache_queue_port": free[copies : 2 * copies]}
        if flag_table(self.release)["metrics_port"].default is not None:
            ports["metrics_port"] = int(free[2 * copies])
        return ports


def prepare(
    settings: Settings, model: Path | str, config: Mapping[str, Any], *, host: Host, texts: Mapping[str, str], release: str
) -> FastDeployEngine:
    """Return the engine for the checkpoint in `model`, whose config.json is `config`; a repository's name has none yet.

    `texts` are the variables of the deployment: the environment, with the baked file's above it.

    Raises:
        InvalidSettings: naming every text that is wrong, and every value that contradicts another, the checkpoint or the machine.
    """
    values, environment, gpus, problems = _decide(settings, config, host=host, texts=texts, release=release)
    problems += layout_problems(config, release)
    problems += _bad_path(str(model), "MODEL: its weights are in")
    if problems:
        raise InvalidSettings(problems)
    return FastDeployEngine(
        python=settings.engine.python,
        release=release,
        values={**values, "model": str(model), "served_model_name": settings.model.served_name},
        environment=_environment(environment, texts, host, config, release) | devices(gpus, values),
        free_ports=host.free_ports,
        rules=_rules(settings, values, config, environment, release),
        raw=settings.requests.raw,
    )


def check(settings: Settings, *, host: Host, texts: Mapping[str, str], release: str) -> Sequence[int]:
    """Refuse whatever `prepare` would refuse for any checkpoint, and return the indices of the GPUs that the engine may use.

    Raises:
        InvalidSettings: naming every text that is wrong, and every value that contradicts another or the machine.
    """
    *_, gpus, problems = _decide(settings, None, host=host, texts=texts, release=release)
    if problems:
        raise InvalidSettings(problems)
    return gpus or ()


def _decide(
    settings: Settings, config: Mapping[str, Any] | None, *, host: Host, texts: Mapping[str, str], release: str
) -> tuple[dict[str, Any], dict[str, str], list[int] | None, list[str]]:
    """Return the engine's flags, its variables, its GPUs, and what is wrong; `config` is None before a checkpoint is there."""
    values, problems = collect_flags(texts, release)
    environment, more = collect_variables(texts)
    problems += more
    values = _from_settings(settings, values)
    if config is not None:
        problems += _fit_length(values, config)
    problems += _bad_ranges(values)
    gpus, more = visible(texts.get("CUDA_VISIBLE_DEVICES", "").strip(), host.gpus)
    problems += more
    problems += fit_gpus(values, head_counts(config or {}), gpus)
    if "max_model_len" in values:  # else the checkpoint decides it
        problems += _fit_tokens(values, environment)
    problems += _conflicts(values, environment, settings.port)
    problems += _bad_path(environment.get("FD_LOG_DIR", ""), "FD_LOG_DIR: got")
    return values, environment, gpus, problems


def _rules(settings: Settings, values: Mapping[str, Any], config: Mapping[str, Any], environment: Mapping[str, str], release: str) -> Rules:
    """Return what requests to this engine must keep to."""
    language = language_part(config)
    return Rules(
        engine=CAPABILITIES[release],
        served_name=settings.model.served_name,
        aliases=frozenset({settings.model.source}),
        vocab_size=language.get("vocab_size"),
        max_model_len=values.get("max_model_len", USUAL_LENGTH),
        guided_decoding=values.get("guided_decoding_backend", "off") != "off",
        tool_parser=bool(values.get("tool_call_parser")),
        reasoning_parser=values.get("reasoning_parser"),
        logprobs=bool(values.get("enable_logprob")),
        vision="vision_config" in config,
        private_media=settings.requests.private_media,
        max_stops=int(environment.get("FD_MAX_STOP_SEQS_NUM", 5)),
        max_tokens_limit=settings.requests.max_tokens_limit or None,
        strict=settings.requests.strict,
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
    asked = {dest: value for dest, value in values.items() if dest not in _PORTS or _ports_of(values, dest) or not isinstance(value, list)}
    return own | asked


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


# --- how the rest fits together


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
    named = [(port, dest.upper()) for dest in _PORTS for port in _ports_of(values, dest)] + [(worker_port, "PORT")] * bool(worker_port)
    for port in sorted({port for port, _ in named}):
        names = [name for other, name in named if other == port]
        if len(names) > 1:
            yield f"{', '.join(dict.fromkeys(names))}: got {port} {len(names)} times, expected ports of their own"


_OF_THE_SHELL = re.compile(r"""[\s"'`$&|;<>()*?\[\\]""")


def _bad_path(path: str, what: str) -> list[str]:
    """Check a path that FastDeploy writes into the one text by which a shell starts its launcher (LLMEngine._start_worker_service)."""
    expected = "expected a path without white space and characters of the shell: FastDeploy's launcher does not quote it"
    return [f"{what} {path!r}, {expected}"] if _OF_THE_SHELL.search(path) else []


def _given_ports(values: Mapping[str, Any]) -> list[int]:
    return [port for dest in _PORTS for port in _ports_of(values, dest)]


_PORTS = ("metrics_port", "controller_port", "engine_worker_queue_port", "cache_queue_port")


def _ports_of(values: Mapping[str, Any], dest: str) -> list[int]:
    """Return the ports that the operator pinned; 0 and less mean any free one, or none."""
    given = values.get(dest, [])
    return [int(port) for port in (given if isinstance(given, list) else [given]) if int(port) > 0]


# --- the engine's environment


def _environment(
    passed: Mapping[str, str], texts: Mapping[str, str], host: Host, config: Mapping[str, Any], release: str
) -> dict[str, str]:
    own = {
        "DO_NOT_TRACK": texts.get("DO_NOT_TRACK", "").strip() or "1",  # from 2.4 on it reports its use to its makers
    }
    if release == "2.5":
        own["FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE"] = "1"  # 2.6 has it on; before 2.5 nothing aborts
    if is_misread(config, release):
        own["FD_FOR_TORCH_MODEL_FORMAT"] = "1"
    logs = Path(passed.get("FD_LOG_DIR", host.log_directory)).absolute()  # a relative one would depend on who starts the process
    return own | dict(passed) | {"FD_LOG_DIR": str(logs)}
