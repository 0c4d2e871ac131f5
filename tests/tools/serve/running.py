"""`python -m tools.serve` as a real process."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import IO

import psutil

from tests import ROOT
from tests.handler.worker_process import environment

KEY = "a-key-of-the-endpoint"
KEYED = {"SERVE_API_KEY": KEY}


class Twin:
    """A gateway with its worker, on a free port; leaving ends it and checks that nothing of it lives on."""

    def __init__(self, *arguments: str, variables: dict[str, str] | None = None, port: int = 0) -> None:
        self._arguments, self._variables = (f"port={port}", *arguments), variables or {}
        self.lines: list[str] = []
        self._grown = threading.Condition()

    def __enter__(self) -> Twin:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.serve", *self._arguments],
            cwd=ROOT,
            env=environment({"OPENBLAS_NUM_THREADS": "1", "ENGINE_STOP_TIMEOUT": "2"}, self._variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.family = {psutil.Process(self.process.pid)}
        assert self.process.stdout
        assert self.process.stderr
        self._readers = [threading.Thread(target=self._read, args=[stream]) for stream in (self.process.stdout, self.process.stderr)]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remember_family()
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            left = self.left_behind()
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            for reader in self._readers:
                reader.join(10)
        assert kind or not left, left

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.wait_line(r"(http://127\.0\.0\.1:\d+)/v2/").group(1)

    @property
    def base(self) -> str:
        """The endpoint's own address."""
        return self.wait_line(r"(http://127\.0\.0\.1:\d+/v2/[\w-]+)").group(1)

    def ready(self) -> Twin:
        """Return once the worker has asked for jobs."""
        self.wait_line("^ready after")
        self.remember_family()
        return self

    def wait_line(self, pattern: str, timeout: float = 40) -> re.Match[str]:
        """The first match in a line, now or later."""
        deadline = time.monotonic() + timeout
        with self._grown:
            while True:
                found = next(filter(None, (re.search(pattern, line) for line in self.lines)), None)
                if found:
                    return found
                ended = self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers)
                if ended or not self._grown.wait(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"no line like {pattern!r}:\n{self.output}")

    def remember_family(self) -> None:
        """Note every process it has now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family |= set(psutil.Process(self.process.pid).children(recursive=True))

    def left_behind(self) -> list[psutil.Process]:
        """Noted processes that live on."""
        left = []
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        return left

    def end(self, number: signal.Signals, timeout: float = 20) -> int:
        """Send a signal and return the exit code."""
        self.remember_family()
        self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = 40) -> int:
        """Return its exit code."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(10)
        return code

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._grown:
                    self.lines.append(line.rstrip("\n"))
                    self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()
