"""FastDeploy on this machine, from the operator's variables to its command line, in three steps.

    start = FastDeployStart(settings)       check: variables, release, GPUs, driver; nothing has been downloaded
    start.accept(config)                    the same with a config.json, as soon as there is one, before any weight
    engine = start.prepare(weights)         what the checkpoint decides
    engine.examine()                        whether the machine can hold it; changes nothing, so it belongs beside the start

What the flags come to is `decision`'s, which knows values only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint.config import language_part, read_config
from checkpoint.find import Weights
from checkpoint.memory import oom_kills
from handler.engine import free_ports
from handler.errors import EngineFailedToStart, InvalidSettings
from handler.fastdeploy.cleanup import Cleanup, LogFolder
from handler.fastdeploy.decision import USUAL_LENGTH, Decision, decide, path_problems, pinned_ports
from handler.fastdeploy.flags import RELEASES, flag_table, to_argv
from handler.fastdeploy.formats import format_problems
from handler.fastdeploy.gpus import Gpu, image_findings, list_gpus, parse_architectures
from handler.fastdeploy.installed import installed_version
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.fastdeploy.text_formats import own_parser
from handler.logs import Tail
from handler.prestart import SERVER
from handler.settings import EngineSettings, Settings

if TYPE_CHECKING:
    from handler.exchange import Exchange
    from handler.job import Request

__all__ = ["FastDeployEngine", "FastDeployStart", "release_of"]

log = logging.getLogger(__name__)

_LOGS = ("launch_worker.log", "workerlog.*", "launch_cache_transfer_manager_*.log", "launch_cache_messager_*.log")
"""What its launchers, its ranks and the managers of its cache write; the logs of its HTTP server hold prompts."""


class FastDeployStart:
    """One start of FastDeploy that can work, as far as that can be known; `gpus` lists those of the machine.

    Raises:
        InvalidSettings: naming every variable that the engine or the machine does not allow for any checkpoint.
        EngineFailedToStart: when the GPUs cannot be listed, or cannot run what the image holds.
    """

    def __init__(self, settings: Settings, gpus: Callable[[], tuple[Gpu, ...]] = list_gpus) -> None:
        self._own_parser, texts = own_parser(settings.texts)
        self._settings = settings = replace(settings, texts=texts)
        self._release = release_of(settings.engine)
        self._gpus, broken = _listed(gpus)
        decision = self._decide(settings, None)
        if broken:
            raise broken
        # How many more are used, the checkpoint's heads decide: `examine` looks at those.
        first = self._chosen(decision)[:1]
        problems, _ = image_findings(first, _architectures(settings.engine), settings.engine.image_cuda)
        if problems:
            raise EngineFailedToStart("\n".join(problems))

    def accept(self, config: Mapping[str, Any]) -> None:
        """Refuse what the checkpoint with this config.json does not allow.

        Raises:
            InvalidSettings: naming every value that contradicts the checkpoint, and all that the release cannot read of it.
        """
        self._decide(self._settings, config)

    def prepare(self, weights: Weights) -> FastDeployEngine:
        """Return the engine for the weights that were found; a repository's name, which FastDeploy downloads itself, has no config yet.

        Raises:
            InvalidSettings: as `accept`, and when the path of the weights cannot be used.
            ModelUnavailable: when their config.json cannot be read.
        """
        config = read_config(weights.directory) if weights.directory else {}
        settings = replace(self._settings, texts={**self._settings.texts, **weights.variables})
        decision = self._decide(settings, config, path_problems(weights.model, "MODEL: its weights are in"))
        for note in decision.notes:
            log.warning("%s", note)
        given = decision.environment.get("FD_LOG_DIR")
        logs = None if given else LogFolder()
        folder = logs.path if logs else Path(given or "").absolute()  # a relative one would depend on who starts the process
        chosen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, decision.gpus))} if decision.gpus else {}
        return FastDeployEngine(
            python=settings.engine.python,
            release=self._release,
            values={**decision.values, "model": weights.model, "served_model_name": settings.model.served_name},
            environment={**decision.environment, **chosen, "FD_LOG_DIR": str(folder)},
            directory=weights.directory,
            gpus=self._chosen(decision),
            architectures=_architectures(settings.engine),
            cuda=settings.engine.image_cuda,
            rules=replace(_rules(settings, decision, config, self._release), own_parser=self._own_parser, directory=weights.directory),
            raw=settings.requests.raw,
            cleanup=Cleanup(release=self._release),
            logs=logs,
        )

    def _decide(self, settings: Settings, config: Mapping[str, Any] | None, problems: Sequence[str] = ()) -> Decision:
        decision = decide(settings, self._release, self._gpus, config)
        model_impl, plugins = decision.values.get("model_impl", "auto"), bool(decision.environment.get("FD_PLUGINS"))
        found = [*decision.problems, *_image_problems(settings.engine), *_plugin_problems(decision.values)]
        found += [*format_problems(config or {}, self._release, model_impl=model_impl, plugins=plugins), *problems]
        if found:
            raise InvalidSettings(found)
        return decision

    def _chosen(self, decision: Decision) -> tuple[Gpu, ...]:
        listed = {gpu.index: gpu for gpu in self._gpus}
        return tuple(listed[index] for index in decision.gpus if index in listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class FastDeployEngine:
    """FastDeploy's OpenAI server, run by the interpreter that has it: never the worker's own, their packages do not mix."""

    python: str
    release: str
    values: Mapping[str, Any]
    environment: Mapping[str, str]
    directory: Path | None
    gpus: tuple[Gpu, ...]
    architectures: tuple[int, ...]
    cuda: str
    rules: Rules
    raw: bool
    cleanup: Cleanup
    logs: LogFolder | None
    """The folder of its logs, unless the operator named one (FD_LOG_DIR), which is his to keep."""
    oom_kills: int = field(default_factory=oom_kills)
    """How many processes of this container the kernel had killed before, for want of memory."""
    name: str = "fastdeploy"
    polls: bool = True

    def command(self, port: int) -> list[str]:
        """Return the argv that serves on 127.0.0.1:`port`, its other ports pinned to free ones."""
        values = {**self._ports(port), **self.values, "host": "127.0.0.1", "port": port}
        self.cleanup.expect([port, *pinned_ports(values)])
        return [self.python, SERVER, *to_argv(values, flag_table(self.release))]

    def variables(self) -> dict[str, str]:
        """Return what the engine's environment needs beside the worker's own."""
        return dict(self.environment)

    def examine(self) -> None:
        """Look whether the machine can hold it, and log what is only estimated.

        Raises:
            EngineFailedToStart: naming every reason why it cannot.
        """
        from handler.fastdeploy.preflight import Demand, look_at_host, preflight

        quantization, experts = _quantizations(self.values.get("quantization") or {})
        demand = Demand(
            architectures=self.architectures,
            cuda=self.cuda,
            parallel=self.values["tensor_parallel_size"],
            quantization=quantization,
            experts=experts,
            length=self.values["max_model_len"],
            batched=self.values["max_num_batched_tokens"],
            requests=self.values["max_num_seqs"],
            memory_share=self.values.get("gpu_memory_utilization", 0.9),
        )
        findings = preflight(demand, self.gpus, look_at_host(), self.directory)
        for note in findings.notes:
            log.info("%s", note)
        if findings.problems:
            raise EngineFailedToStart("\n".join(findings.problems))

    def exchange(self, request: Request) -> Exchange:
        """Return how to put a request to it; raises InvalidJob for one that it must not see."""
        from handler.fastdeploy import dialect  # what requests need is imported once the engine runs

        return dialect.exchange(request, self.rules, raw=self.raw)

    def log_files(self) -> Tail:
        """Return the logs of its launchers and its workers, whose folder is there from now on."""
        if self.logs:
            self.logs.make()
        return Tail(Path(self.environment["FD_LOG_DIR"]), _LOGS)

    def bound_logs(self) -> None:
        """Keep its logs small; to be called now and then while it serves."""
        if self.logs:
            self.logs.bound()

    def gpu_memory(self) -> int | None:
        """Return the bytes in use on its GPUs, a sign of life while it loads; None where nvidia-smi does not tell. It takes a moment."""
        used = {gpu.index for gpu in self.gpus}
        try:
            told = [(gpu.memory_total, gpu.memory_free) for gpu in list_gpus() if gpu.index in used]
        except EngineFailedToStart:
            return None
        return sum(total - free for total, free in told if total is not None and free is not None)

    def fatal(self, line: str) -> bool:
        """Tell whether a line means its end, although its process may live for minutes, or for ever.

        A line of a log starts with the log's name: `launch_worker.log: ...`. When the engine is being stopped such lines are no news.
        """
        from handler.fastdeploy.diagnose import fatal

        return fatal(line)

    def explain(self, lines: Iterable[str]) -> str | None:
        """Return the cause of a failure that its last lines, or the kernel's count of processes it killed, show."""
        from handler.fastdeploy.diagnose import MAIN_MEMORY, explain

        return MAIN_MEMORY if oom_kills() > self.oom_kills else explain(lines, pinned=pinned_ports(self.values))

    def clear(self) -> None:
        """Remove its files and queues in shared memory, and its logs."""
        self.cleanup.clear()
        if self.logs:
            self.logs.remove()

    def _ports(self, port: int) -> dict[str, Any]:
        """Return a port for each queue of each copy of the model, and for the metrics where they cannot share the server's own (2.3)."""
        copies = self.values.get("data_parallel_size", 1)
        taken = {port, *pinned_ports(self.values)}
        free = [str(free) for free in free_ports(2 * copies + 1 + len(taken)) if free not in taken]
        ports: dict[str, Any] = {"engine_worker_queue_port": free[:copies], "cache_queue_port": free[copies : 2 * copies]}
        if flag_table(self.release)["metrics_port"].default is not None:
            ports["metrics_port"] = int(free[2 * copies])
        return ports


def release_of(settings: EngineSettings) -> str:
    """Return the release whose flags and habits hold: the named one, or the installed one.

    Raises:
        InvalidSettings: when none is named, and none that is known is installed.
    """
    if settings.release:
        return settings.release
    version = installed_version(settings.python)
    release = ".".join(version.split(".")[:2])
    if release in RELEASES:
        return release
    found = f"FastDeploy {version}" if version else "no FastDeploy"
    raise InvalidSettings(
        [f"FASTDEPLOY_RELEASE: not set, and ENGINE_PYTHON={settings.python} has {found}; expected one of {', '.join(RELEASES)}"]
    )


def _listed(gpus: Callable[[], tuple[Gpu, ...]]) -> tuple[tuple[Gpu, ...], EngineFailedToStart | None]:
    """Return the machine's GPUs, or why they cannot be listed: wrong variables are reported first, since that needs no GPU."""
    try:
        return gpus(), None
    except EngineFailedToStart as error:
        return (), error


def _architectures(settings: EngineSettings) -> tuple[int, ...]:
    return parse_architectures(settings.image_architectures)


def _image_problems(settings: EngineSettings) -> list[str]:
    try:
        _architectures(settings)
    except ValueError as error:
        return [f"IMAGE_ARCHITECTURES: got {settings.image_architectures!r}, expected {error}"]
    return []


def _plugin_problems(values: Mapping[str, Any]) -> list[str]:
    """Check the file of a plugin: FastDeploy starts without one that it cannot import."""
    plugin = values.get("tool_parser_plugin")
    return [f"TOOL_PARSER_PLUGIN: got {plugin!r}, expected a file of Python"] if plugin and not Path(plugin).is_file() else []


def _rules(settings: Settings, decision: Decision, config: Mapping[str, Any], release: str) -> Rules:
    """Return what requests to this engine must keep to."""
    values = decision.values
    return Rules(
        engine=CAPABILITIES[release],
        served_name=settings.model.served_name,
        aliases=frozenset({settings.model.source}),
        vocab_size=language_part(config).get("vocab_size"),
        max_model_len=values.get("max_model_len", USUAL_LENGTH),
        guided_decoding=values.get("guided_decoding_backend", "off") != "off",
        tool_parser=bool(values.get("tool_call_parser")),
        reasoning_parser=values.get("reasoning_parser"),
        logprobs=bool(values.get("enable_logprob")),
        vision="vision_config" in config,
        private_media=settings.requests.private_media,
        max_stops=int(decision.environment.get("FD_MAX_STOP_SEQS_NUM", 5)),
        max_tokens_limit=settings.requests.max_tokens_limit or None,
        strict=settings.requests.strict,
    )


def _quantizations(value: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the quantization that a value of the flag asks for, and that of routed experts where it is a mixture that tells both."""
    name, parts = value.get("quantization", ""), (value.get("dense_quant_type"), value.get("moe_quant_type"))
    return (str(parts[0]), str(parts[1])) if name == "mix_quant" and all(parts) else (str(name), None)
