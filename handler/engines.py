"""Choose the engine that ENGINE names, and make it for this machine and this checkpoint."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from checkpoint.find import Weights
from checkpoint.unavailable import ModelUnavailable
from handler.errors import EngineFailedToStart, InvalidSettings
from handler.fastdeploy.flags import RELEASES, variable_names
from handler.fastdeploy.gpus import Gpu as ListedGpu
from handler.fastdeploy.gpus import image_findings, list_gpus, parse_architectures
from handler.fastdeploy.installed import installed_version
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.fastdeploy.start import FastDeployEngine, Gpu, Host, check, prepare
from handler.launch import CpuEngine, Engine, free_ports
from handler.settings import Settings

if TYPE_CHECKING:
    from handler.dialect import Exchange
    from handler.job import Request

__all__ = ["Fit", "choose_engine", "has_fastdeploy"]

log = logging.getLogger(__name__)

Fit: TypeAlias = Callable[[Weights], tuple[Engine, Callable[[], None]]]
"""Makes the engine for the weights that were found, with the look at whether it can run here."""


def has_fastdeploy(settings: Settings) -> bool:
    """Tell whether FastDeploy is the engine: ENGINE names it, or leaves the choice and its interpreter has it."""
    kind = settings.engine.kind
    return kind == "fastdeploy" or (kind == "auto" and bool(installed_version(settings.engine.python)))


def choose_engine(settings: Settings) -> Fit:
    """Return how the engine is made for a checkpoint, after a look at all that needs none: variables, release, GPUs, driver.

    What is returned takes the weights that were found, and returns the engine and the look at whether it can run here. That look takes a
    while and changes nothing about the start, so it belongs beside it; it raises EngineFailedToStart when the machine cannot run the
    engine (too little memory). Before, it raises InvalidSettings for what the checkpoint does not allow, and ModelUnavailable when that
    has no config.json that can be read, or the engine cannot download it itself.

    Raises:
        InvalidSettings: naming every variable that the engine or the machine does not allow for any checkpoint.
        EngineFailedToStart: when the GPUs cannot be listed, or cannot run what the image holds.
    """
    if has_fastdeploy(settings):
        return _fastdeploy(settings)
    ignored = sorted(name for name in settings.texts if name in variable_names())
    if ignored:
        log.warning("the CPU engine ignores %s", ", ".join(ignored))
    return functools.partial(_cpu, settings)


def _cpu(settings: Settings, weights: Weights) -> tuple[Engine, Callable[[], None]]:
    if weights.directory is None:
        raise ModelUnavailable(f"MODEL_SOURCE={settings.model.origin}: the CPU engine downloads nothing, expected huggingface")
    rules = Rules(
        engine=CAPABILITIES["cpu"],
        served_name=settings.model.served_name,
        aliases=frozenset({settings.model.source}),
        guided_decoding=True,
        max_tokens_limit=settings.requests.max_tokens_limit or None,
        strict=settings.requests.strict,
    )

    def put(request: Request) -> Exchange:
        from handler.fastdeploy import dialect  # what requests need is imported once the engine runs

        return dialect.exchange(request, rules, raw=settings.requests.raw)

    engine = CpuEngine(model=weights.directory, served_name=rules.served_name, settings=settings.engine, put=put)
    return engine, lambda: None


def _fastdeploy(settings: Settings) -> Fit:
    release, architectures = _release(settings), _architectures(settings)
    listed = {gpu.index: gpu for gpu in list_gpus()}
    host = Host(
        gpus=tuple(Gpu(index=gpu.index, uuid=gpu.uuid) for gpu in listed.values()),
        free_ports=free_ports,
        # Nobody can guess it; `tempfile` would cost each start its imports.
        log_directory=Path("/tmp", f"fastdeploy-{os.urandom(8).hex()}"),  # noqa: S108
    )
    first, *_ = check(settings, host=host, texts=settings.texts, release=release)
    # How many more are used, the checkpoint's heads decide: they are looked at when those are known.
    problems, _ = image_findings([listed[first]], architectures, settings.engine.image_cuda)
    if problems:
        raise EngineFailedToStart("\n".join(problems))

    def fit(weights: Weights) -> tuple[Engine, Callable[[], None]]:
        config = _config(weights.directory) if weights.directory else {}
        texts = {**settings.texts, **weights.variables}
        engine = prepare(settings, weights.model, config, host=host, texts=texts, release=release)
        if engine.environment["FD_LOG_DIR"] == str(host.log_directory):
            host.log_directory.mkdir(mode=0o700)
        used = tuple(listed[int(index)] for index in engine.environment["CUDA_VISIBLE_DEVICES"].split(","))
        return engine, lambda: _examine(engine, used, architectures, settings, weights)

    return fit


def _examine(
    engine: FastDeployEngine, gpus: tuple[ListedGpu, ...], architectures: tuple[int, ...], settings: Settings, weights: Weights
) -> None:
    from handler.fastdeploy.preflight import Plan, look_at_host, preflight, require

    quantization, experts = _quantizations(engine.values.get("quantization") or {})
    plan = Plan(
        architectures=architectures,
        cuda=settings.engine.image_cuda,
        parallel=engine.values.get("tensor_parallel_size", 1),
        quantization=quantization,
        experts=experts,
        length=engine.values.get("max_model_len", 0),
        batched=engine.values.get("max_num_batched_tokens", 0),
        requests=settings.engine.max_num_seqs,
        memory_share=engine.values.get("gpu_memory_utilization", 0.9),
    )
    findings = preflight(plan, gpus, look_at_host(), weights.directory)
    for note in findings.notes:
        log.info("%s", note)
    require(findings)


def _architectures(settings: Settings) -> tuple[int, ...]:
    text = settings.engine.image_architectures
    try:
        return parse_architectures(text)
    except ValueError as error:
        raise InvalidSettings([f"IMAGE_ARCHITECTURES: got {text!r}, expected {error}"]) from None


def _quantizations(value: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the quantization that a value of the flag asks for, and that of routed experts where it is a mixture that tells both."""
    name, parts = value.get("quantization", ""), (value.get("dense_quant_type"), value.get("moe_quant_type"))
    return (str(parts[0]), str(parts[1])) if name == "mix_quant" and all(parts) else (str(name), None)


def _release(settings: Settings) -> str:
    """Return the release whose flags and habits hold: the named one, or the installed one."""
    if settings.engine.release:
        return settings.engine.release
    version = installed_version(settings.engine.python)
    release = ".".join(version.split(".")[:2])
    if release in RELEASES:
        return release
    found = f"FastDeploy {version}" if version else "no FastDeploy"
    python = settings.engine.python
    raise InvalidSettings([f"FASTDEPLOY_RELEASE: not set, and ENGINE_PYTHON={python} has {found}; expected one of {', '.join(RELEASES)}"])


def _config(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise ModelUnavailable(f"{path}: got {type(config).__name__}, expected an object")
    return config
