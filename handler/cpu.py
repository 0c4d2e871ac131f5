"""The embedded CPU engine, as the worker starts it: a program of its own (`cpu_engine`), run by the worker's own interpreter."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from handler.exchange import Exchange
from handler.fastdeploy.rules import Rules
from handler.job import Request
from handler.settings import EngineSettings

__all__ = ["CpuEngine"]

_MOST_REQUESTS = 4096
"""Requests that it holds at once: as many as MAX_CONCURRENCY may allow, so that only the worker's own limit turns one away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuEngine:
    """How the CPU engine is started."""

    model: Path
    settings: EngineSettings
    rules: Rules
    raw: bool
    name: str = "cpu"
    polls: bool = False

    def command(self, port: int) -> list[str]:
        """Return the argv of `cpu_engine`, which takes FastDeploy's own flags."""
        argv = [sys.executable, "-m", "cpu_engine", "--model", str(self.model), "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--served-model-name", self.rules.served_name, "--max-num-seqs", str(self.settings.max_num_seqs)]
        argv += ["--max-concurrency", str(_MOST_REQUESTS)]
        if self.settings.max_model_len:
            argv += ["--max-model-len", str(self.settings.max_model_len)]
        return [*argv, "--timeout-graceful-shutdown", str(int(self.settings.stop_timeout))]

    def variables(self) -> dict[str, str]:
        """Return the path on which the interpreter finds the package."""
        return {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}

    def exchange(self, request: Request) -> Exchange:
        """Return how to put a request to it; raises InvalidJob for one that it must not see."""
        from handler.fastdeploy import dialect  # what requests need is imported once the engine runs

        return dialect.exchange(request, self.rules, raw=self.raw)

    def log_files(self) -> None:
        """Return None: it writes none."""

    def bound_logs(self) -> None:
        """Do nothing: it writes none."""

    def examine(self) -> None:
        """Leave it to the engine, which looks at the machine's memory before it loads."""

    def gpu_memory(self) -> None:
        """Return None: it uses none."""

    def fatal(self, line: str) -> bool:  # noqa: ARG002
        """Return False: it ends when it cannot go on."""
        return False

    def explain(self, lines: Iterable[str]) -> str | None:
        """Return its own last word: it ends every refusal with a line that says what is wrong."""
        return next((line.removeprefix("error: ") for line in reversed(list(lines)) if line.startswith("error: ")), None)

    def clear(self) -> None:
        """Do nothing: it leaves no files."""
