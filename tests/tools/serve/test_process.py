"""`python -m tools.serve` as a person meets it: what it prints, how it ends, and that nothing of it lives on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from images.arguments import parse
from images.build_errors import UnknownChoice
from tests import ROOT
from tests.handler.worker_process import replayed_engine
from tests.tools.serve.running import Twin
from tools.serve.__main__ import COMMAND
from tools.serve.options import Options, read_options
from tools.serve.worker_variables import DEMO


def read(words: list[str], environment: dict[str, str]) -> Options:
    return read_options(parse(COMMAND, words), environment)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which is near."""
    return subprocess.run(
        [sys.executable, "-m", "tools.serve", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)], ids=["INT", "TERM", "HUP"])
def test_a_signal_ends_everything_in_good_order(number: signal.Signals, code: int) -> None:
    with Twin() as twin:
        twin.ready()
        asked = time.monotonic()
        assert twin.end(number) == code
        assert time.monotonic() - asked < 15
        assert len(twin.family) >= 3, "gateway, worker, engine"
        assert not twin.left_behind()
        assert "Traceback" not in twin.output


def test_a_gateway_that_is_killed_leaves_nothing_behind() -> None:
    with Twin() as twin:
        twin.ready()
        assert twin.end(signal.SIGKILL) == -9
        psutil.wait_procs(twin.family, timeout=20)
        assert not twin.left_behind()


def test_a_signal_while_the_worker_loads_ends_everything_too() -> None:
    with Twin(variables=replayed_engine("--start-delay", "30") | {"LOG_LEVEL": "INFO"}) as twin:
        twin.wait_line(r"--port \d+")  # the engine's command line
        assert twin.end(signal.SIGINT) == 130
        assert not twin.left_behind()
        assert "Traceback" not in twin.output


def test_a_signal_in_the_middle_of_an_answer_does_not_wait_for_its_end() -> None:
    slow = replayed_engine("--synthetic", "--tokens-per-second", "5", "--tokens", "1000", "--spare", "1")
    with Twin(variables=slow) as twin:
        twin.ready()
        body: Any = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 1000}
        with requests.post(f"{twin.base}/openai/v1/chat/completions", json=body, stream=True, timeout=20) as response:
            lines = response.iter_lines()
            assert next(lines).startswith(b"data: ")
            asked = time.monotonic()
            assert twin.end(signal.SIGINT) == 130
            assert time.monotonic() - asked < 15
            assert b"job_cancelled" in b"".join(lines), "whoever still reads is told"
        assert not twin.left_behind()


def test_a_port_that_is_taken_is_said_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(f"port={port}")
    assert done.returncode == 1
    assert done.stderr == f"serve: port {port} is in use; stop what listens there, or take another: ci/just serve port={port + 1}\n"
    assert not done.stdout


def test_a_worker_that_cannot_start_ends_the_gateway_with_its_reason(tmp_path: Path) -> None:
    with Twin(f"model={tmp_path}") as twin:
        assert twin.wait() == 1
        twin.wait_line("config.json")
        twin.wait_line("serve: the worker ended by itself before it could take a job, with exit code 1")
        assert not twin.left_behind()


def test_a_worker_that_dies_ends_the_gateway() -> None:
    with Twin() as twin:
        twin.ready()
        [worker] = psutil.Process(twin.process.pid).children()
        worker.kill()
        assert twin.wait() == 1
        twin.wait_line("serve: the worker ended by itself while it was serving, with exit code -9")
        psutil.wait_procs(twin.family, timeout=10)
        assert not twin.left_behind()


@pytest.mark.parametrize("name", ["MODEL", "MODEL_NAME", "MODEL_REPO"])
def test_a_directory_in_the_environment_is_meant_from_where_the_person_stands_like_the_argument(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    said = read([], {"CALLED_FROM": str(tmp_path), name: "mine"})
    typed = read(["model=mine"], {"CALLED_FROM": str(tmp_path)})
    assert said.variables["MODEL"] == typed.variables["MODEL"] == str(tmp_path / "mine")
    assert said.model == typed.model == "mine"


def test_a_repository_in_the_environment_stays_one(tmp_path: Path) -> None:
    said = read([], {"CALLED_FROM": str(tmp_path), "MODEL_NAME": "org/name"})
    assert said.variables["MODEL"] == said.model == "org/name"
    assert read([], {"MODEL": "org/name", "SERVED_MODEL_NAME": ""}).model == "org/name", "an empty text means not set"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prot=8000"], "prot: unknown key; did you mean port?; expected one of port, model, engine, endpoint, api-key-file"),
        (["8000"], "got '8000', expected key=value"),
        (["port=no"], "port: got 'no', expected a whole number from 0 to 65535"),
        (["port=70000"], "port: got '70000'"),
        (["port=1", "port=2"], "port: given twice, as '1' and '2'"),
        (["engine=gpu"], "engine: got 'gpu', expected one of cpu, fastdeploy, auto"),
        (["endpoint=a/b"], "endpoint: got 'a/b', expected letters, digits, - or _"),
        (["model="], "model: got '', expected a Hugging Face repository (org/name) or a directory"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert f"serve: {says}" in done.stderr
    assert "`ci/just serve help` lists what it takes" in done.stderr


def test_a_key_on_the_command_line_is_refused_and_not_repeated() -> None:
    done = run("api_key=sesame")
    assert done.returncode == 2
    assert "api_key: unknown key; did you mean api-key-file?" in done.stderr
    assert "sesame" not in done.stderr + done.stdout


def test_an_empty_file_is_no_key_and_neither_is_none(tmp_path: Path) -> None:
    with pytest.raises(UnknownChoice, match="key: cannot be read"):
        read(["api-key-file=key"], {"CALLED_FROM": str(tmp_path)})
    (tmp_path / "key").write_text("\n")
    with pytest.raises(UnknownChoice, match="key: got an empty file, expected a key"):
        read(["api-key-file=key"], {"CALLED_FROM": str(tmp_path)})


@pytest.mark.parametrize("source", ["nothing", "variable", "file"])
def test_what_it_prints_can_be_pasted_into_a_shell_and_into_python(source: str, tmp_path: Path) -> None:
    file = tmp_path / "the key"
    file.write_text("sesame\n")
    words = [f"model={DEMO}", "endpoint=my-endpoint", *([f"api-key-file={file}"] if source == "file" else [])]
    variables = {"SERVE_API_KEY": "sesame"} if source == "variable" else {}
    with Twin(*words, variables=variables) as twin:
        twin.ready()
        keyless = requests.post(f"{twin.base}/run", json={"input": {}}, timeout=20)
        assert keyless.status_code == (200 if source == "nothing" else 401)
        curl = twin.wait_line("^curl .*").group()
        assert "/v2/my-endpoint/openai/v1/chat/completions" in curl
        python = re.search(r"In Python:\n(.*?)\n\n", twin.output, re.DOTALL)
        assert python
        for command in (["sh", "-c", curl], [sys.executable, "-c", python.group(1)]):
            pasted = subprocess.run(
                command, env=os.environ | variables, capture_output=True, text=True, timeout=30, check=True, cwd=tmp_path
            )
            assert "FastDeploy" in pasted.stdout, "a directory is served under its own name"
        assert "sesame" not in twin.output
        [worker] = psutil.Process(twin.process.pid).children()
        assert "SERVE_API_KEY" not in worker.environ()


def test_it_listens_on_loopback_only() -> None:
    with Twin() as twin:
        twin.ready()
        listening = [connection for process in twin.family for connection in process.net_connections() if connection.status == "LISTEN"]
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
