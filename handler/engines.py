"""Choose the engine that ENGINE names, and check that it can start before anything is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from checkpoint.find import Weights
from checkpoint.unavailable import ModelUnavailable
from handler.cpu import CpuEngine
from handler.engine import EngineKind
from handler.errors import EngineFailedToStart, InvalidSettings
from handler.fastdeploy.flags import variable_names
from handler.fastdeploy.installed import installed_version
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.fastdeploy.start import FastDeployStart
from handler.fastdeploy.text_formats import own_parser
from handler.settings import Settings

__all__ = ["Start", "choose_engine", "further_problems", "has_fastdeploy"]

log = logging.getLogger(__name__)


class Start(Protocol):
    """A start of one kind of engine that can work, as far as variables and machine tell."""

    def accept(self, config: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that has this config.json and that the engine cannot run; raises InvalidSettings."""

    def prepare(self, weights: Weights) -> EngineKind:
        """Return the engine for these weights; raises InvalidSettings and ModelUnavailable."""


def has_fastdeploy(settings: Settings) -> bool:
    """Tell whether FastDeploy is the engine: ENGINE names it, or leaves the choice and its interpreter has it."""
    kind = settings.engine.kind
    return kind == "fastdeploy" or (kind == "auto" and bool(installed_version(settings.engine.python)))


def choose_engine(settings: Settings) -> Start:
    """Return the start of the engine, after a look at all that needs no checkpoint: variables, release, GPUs, driver.

    Raises:
        InvalidSettings: naming every variable that the engine or the machine does not allow for any checkpoint.
        EngineFailedToStart: when the GPUs cannot be listed, or cannot run what the image holds.
    """
    return FastDeployStart(settings) if has_fastdeploy(settings) else CpuStart(settings)


def further_problems(error: InvalidSettings) -> list[str]:
    """Return what the engine's own look finds beside the problems of an error of `read_settings`, which read the wrong ones as not set."""
    named = {problem.partition(":")[0] for problem in error.problems}
    settings = error.settings
    # The release tells which flags there are: without it nothing can be said of them.
    if not isinstance(settings, Settings) or "FASTDEPLOY_RELEASE" in named or not has_fastdeploy(settings):
        return []
    try:
        FastDeployStart(settings)
    except InvalidSettings as further:
        return [problem for problem in further.problems if problem.partition(":")[0] not in named]
    except EngineFailedToStart:  # told once the variables are right
        pass
    return []


class CpuStart:
    """A start of the embedded CPU engine, which looks at a checkpoint itself, within a second."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._own_parser, texts = own_parser(settings.texts)
        ignored = sorted(name for name in texts if name in variable_names())
        if ignored:
            log.warning("the CPU engine ignores %s", ", ".join(ignored))

    def accept(self, config: Mapping[str, Any]) -> None:
        """Leave it to the engine."""

    def prepare(self, weights: Weights) -> CpuEngine:
        """Return the engine for these weights; raises ModelUnavailable where it would have to download them."""
        settings = self._settings
        if weights.directory is None:
            raise ModelUnavailable(f"MODEL_SOURCE={settings.model.origin}: the CPU engine downloads nothing, expected huggingface")
        rules = Rules(
            engine=CAPABILITIES["cpu"],
            served_name=settings.model.served_name,
            aliases=frozenset({settings.model.source}),
            guided_decoding=True,
            own_parser=self._own_parser or "auto",
            directory=weights.directory,
            private_media=settings.requests.private_media,
            max_tokens_limit=settings.requests.max_tokens_limit or None,
            strict=settings.requests.strict,
        )
        return CpuEngine(model=weights.directory, settings=settings.engine, rules=rules, raw=settings.requests.raw)
