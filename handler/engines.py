"""Choose the engine that ENGINE names, and make it for this machine and this checkpoint."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handler.errors import InvalidSettings, ModelUnavailable
from handler.fastdeploy.flags import RELEASES, variable_names
from handler.fastdeploy.installed import installed_version
from handler.fastdeploy.server import FastDeployEngine, Gpu, Host, prepare
from handler.gpus import Gpu as VisibleGpu
from handler.gpus import select, visible_gpus
from handler.launch import CpuEngine, Engine, free_ports
from handler.models import Weights
from handler.settings import Settings

__all__ = ["choose_engine", "has_fastdeploy"]

log = logging.getLogger(__name__)


def has_fastdeploy(settings: Settings) -> bool:
    """Tell whether FastDeploy is the engine: ENGINE names it, or leaves the choice and its interpreter has it."""
    kind = settings.engine.kind
    return kind == "fastdeploy" or (kind == "auto" and bool(installed_version(settings.engine.python)))


def choose_engine(settings: Settings, weights: Weights) -> tuple[Engine, Callable[[], None]]:
    """Return the engine for the checkpoint that was found, and the look at whether it can run here at all.

    The look takes a while and changes nothing about the start, so it belongs beside it; it raises EngineFailedToStart when the machine
    cannot run the engine (wrong architecture, old driver, too little memory), and InvalidSettings for IMAGE_ARCHITECTURES.

    Raises:
        InvalidSettings: naming every variable that the engine, the checkpoint or the machine does not allow.
        ModelUnavailable: when the checkpoint has no config.json that can be read, or the engine cannot download it itself.
        EngineFailedToStart: when the GPUs cannot be listed.
    """
    if has_fastdeploy(settings):
        return _fastdeploy(settings, weights)
    ignored = sorted(name for name in settings.texts if name in variable_names())
    if ignored:
        log.warning("the CPU engine ignores %s", ", ".join(ignored))
    if weights.directory is None:
        raise ModelUnavailable(f"MODEL_SOURCE={settings.model.origin}: the CPU engine downloads nothing, expected huggingface")
    return CpuEngine(model=weights.directory, served_name=settings.model.served_name, settings=settings.engine), lambda: None


def _fastdeploy(settings: Settings, weights: Weights) -> tuple[FastDeployEngine, Callable[[], None]]:
    release = _release(settings)
    listed = visible_gpus()
    host = Host(
        gpus=tuple(Gpu(index=gpu.index, uuid=gpu.uuid) for gpu in listed),
        free_ports=free_ports,
        log_directory=_log_directory(),
    )
    config = _config(weights.directory) if weights.directory else {}
    texts = {**settings.texts, **weights.variables}
    engine = prepare(settings, weights.model, config, host=host, texts=texts, release=release)
    gpus = select(listed, settings.texts.get("CUDA_VISIBLE_DEVICES"))
    return engine, lambda: _examine(engine, gpus, settings, weights)


def _examine(engine: FastDeployEngine, gpus: tuple[VisibleGpu, ...], settings: Settings, weights: Weights) -> None:
    from handler.preflight import Plan, look_at_host, parse_architectures, preflight, require

    try:
        architectures = parse_architectures(settings.engine.image_architectures)
    except ValueError as error:
        raise InvalidSettings([f"IMAGE_ARCHITECTURES: got {settings.engine.image_architectures!r}, expected {error}"]) from None
    plan = Plan(
        architectures=architectures,
        cuda=settings.engine.image_cuda,
        parallel=engine.values.get("tensor_parallel_size", 1),
        quantization=str(engine.values.get("quantization") or ""),
        length=engine.values.get("max_model_len", 0),
        batched=engine.values.get("max_num_batched_tokens", 0),
        requests=settings.engine.max_num_seqs,
        memory_share=engine.values.get("gpu_memory_utilization", 0.9),
    )
    findings = preflight(plan, gpus, look_at_host(), weights.directory)
    for note in findings.notes:
        log.info("%s", note)
    require(findings)


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


def _log_directory() -> Path:
    """Make the folder for the engine's logs, which nobody else may have made before; `tempfile` would cost each start its imports."""
    directory = Path("/tmp", f"fastdeploy-{os.urandom(8).hex()}")  # noqa: S108  # nobody can guess it, and nobody else can read it
    directory.mkdir(mode=0o700)
    return directory
