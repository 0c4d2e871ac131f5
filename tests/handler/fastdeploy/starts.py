"""Starts of FastDeploy on made-up machines, for checkpoints that are a config.json."""

from __future__ import annotations

import atexit
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from checkpoint.find import Weights
from handler.errors import InvalidSettings
from handler.fastdeploy.gpus import Gpu
from handler.fastdeploy.start import FastDeployEngine, FastDeployStart
from handler.settings import read_settings
from tests.handler.fastdeploy.test_flags import accepted

ERNIE = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
PADDLE = {"architectures": ["Ernie4_5_ForCausalLM"], "dtype": "bfloat16"}
LOGS = "/var/log/engine"
_CONFIGS = tempfile.TemporaryDirectory()
atexit.register(_CONFIGS.cleanup)


def gpus(count: int) -> tuple[Gpu, ...]:
    return tuple(Gpu(index=index, uuid=f"GPU-{index}a5b0c9e-0000", driver="550.54") for index in range(count))


def start(texts: Mapping[str, str] | None = None, release: str = "2.5", count: int = 0) -> FastDeployStart:
    """A start on a machine with so many GPUs; with none they are not known, as where only values are looked at."""
    texts = {"MODEL": "org/name", "FASTDEPLOY_RELEASE": release, "FD_LOG_DIR": LOGS, **(texts or {})}
    return FastDeployStart(read_settings(texts), lambda: gpus(count))


def weights(config: Mapping[str, Any], model: str = "/model") -> Weights:
    """Weights whose folder holds this config.json."""
    text = json.dumps(config)
    folder = Path(_CONFIGS.name, hashlib.sha256(text.encode()).hexdigest())
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(text)
    return Weights(model=model, directory=folder, origin="directory")


def engine(
    texts: Mapping[str, str] | None = None, config: Mapping[str, Any] | None = None, release: str = "2.5", count: int = 0
) -> FastDeployEngine:
    return start(texts, release, count).prepare(weights(ERNIE if config is None else config))


def flags(prepared: FastDeployEngine, port: int = 40999) -> dict[str, Any]:
    return accepted(prepared.command(port)[2:], prepared.release)


def problems(texts: Mapping[str, str], config: Mapping[str, Any] | None = None, release: str = "2.5", count: int = 0) -> list[str]:
    with pytest.raises(InvalidSettings) as caught:
        engine(texts, config, release, count)
    return caught.value.problems
