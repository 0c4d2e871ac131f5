"""The engine as a real child process on a free port, and the little HTTP that tests need to talk to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from tests import DEMO, ROOT

PATIENCE = 30.0
"""Seconds; longer than anything here takes on a machine that others use too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back: `body` is the bytes, `json` reads them."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def frames(self) -> list[bytes]:
        """Return the SSE frames, without the blank line after each."""
        return [frame for frame in self.body.split(b"\n\n") if frame]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the JSON of every frame but the end mark."""
        return [json.loads(frame.removeprefix(b"data: ")) for frame in self.frames if frame != b"data: [DONE]"]

    @property
    def error(self) -> dict[str, Any]:
        """Return OpenAI's error object, checked for its four keys."""
        error = self.json["error"]
        assert isinstance(error, dict)
        assert list(error) == ["message", "type", "param", "code"]
        return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A running engine."""

    process: subprocess.Popen[str]
    port: int
    ready_line: str

    def get(self, path: str) -> Reply:
        return self.ask("GET", path)

    def post(self, path: str, body: object) -> Reply:
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())

    def chat(self, content: str = "What is FastDeploy?", **fields: Any) -> Reply:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "temperature": 0, **fields})

    def complete(self, prompt: object = "User: hi\nAssistant: ", **fields: Any) -> Reply:
        return self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})

    def ask(self, method: str, path: str, body: bytes | None = None) -> Reply:
        connection, response = self.open(method, path, body)
        try:
            return Reply(status=response.status, headers=dict(response.getheaders()), body=response.read())
        finally:
            connection.close()

    def open(self, method: str, path: str, body: bytes | None = None) -> tuple[HTTPConnection, HTTPResponse]:
        """Send a request and return when the head of the answer is there; the caller closes the connection."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, body)
        return connection, connection.getresponse()

    def metric(self, name: str) -> float:
        """Return one figure of /metrics."""
        text = self.get("/metrics").body.decode()
        found = re.search(rf"^fastdeploy:{name} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def wait_until_idle(self) -> None:
        """Poll until no sequence runs or waits."""
        while self.metric("num_requests_running") or self.metric("num_requests_waiting"):
            assert self.process.poll() is None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def running(*flags: str, model: Path = DEMO) -> Iterator[Engine]:
    """Start an engine and wait for its ready line; end it in the end."""
    with start(*flags, "--port", "0", model=model) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r" on http://[^ ]+:(\d+),", line)
            assert found, line + process.stderr.read()
            yield Engine(process=process, port=int(found[1]), ready_line=line)
        finally:
            process.terminate()
            assert process.stderr is not None
            errors = process.stderr.read()
        # Whatever clients do, nothing unforeseen happens inside.
        assert "Traceback" not in errors, errors


def start(*flags: str, model: Path = DEMO) -> subprocess.Popen[str]:
    """Start the engine's process without waiting for anything."""
    command = [sys.executable, "-m", "cpu_engine", "--model", str(model), *flags]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def refused(*flags: str, model: Path = DEMO) -> str:
    """Start the engine, expect exit code 1 and return the last line of its standard error."""
    with start(*flags, model=model) as process:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1, errors
        return errors.splitlines()[-1]
