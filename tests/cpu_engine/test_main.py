"""The process: start, refusals, signals and exit codes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import stat
import threading
import time
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from cpu_engine.__main__ import _parser
from handler.cpu import CpuEngine
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.settings import read_settings
from tests import DEMO
from tests.cpu_engine.checkpoints import write_checkpoint, write_overflowing
from tests.cpu_engine.child import PATIENCE, Engine, refused, running, start


def stream_of(engine: Engine, tokens: int) -> tuple[bytes, list[bytes], threading.Thread]:
    """Start a stream of `tokens` tokens; return its first line once it is there, and the rest as it comes."""
    body = json.dumps({"prompt": "hi", "stream": True, "max_tokens": tokens, "min_tokens": tokens}).encode()
    connection, response = engine.open("POST", "/v1/completions", body)
    first = response.readline()
    rest: list[bytes] = []

    def drain() -> None:
        try:
            while piece := response.read1(1 << 16):
                rest.append(piece)
        except (OSError, HTTPException):
            rest.append(b"<cut>")
        finally:
            connection.close()

    thread = threading.Thread(target=drain)
    thread.start()
    return first, rest, thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_engine_with_exit_code_0(number: signal.Signals) -> None:
    with running() as engine:
        assert engine.get("/health").status == 200
        assert engine.stop(number) == 0


def test_without_grace_a_signal_cuts_running_requests() -> None:
    with running("--max-model-len", "4096") as engine:
        first, rest, thread = stream_of(engine, 4000)
        began = time.monotonic()
        assert engine.stop() == 0
        assert time.monotonic() - began < PATIENCE / 2
        thread.join()
    assert first.startswith(b"data: ")
    assert b"[DONE]" not in b"".join(rest)


def test_with_grace_a_signal_lets_running_requests_finish_and_takes_no_new_ones() -> None:
    with running("--timeout-graceful-shutdown", "50", "--max-model-len", "4096") as engine:
        kept, response = engine.open("GET", "/health")
        response.read()
        _, rest, thread = stream_of(engine, 2500)
        engine.process.send_signal(signal.SIGTERM)
        while accepts(engine.port):
            assert engine.process.poll() is None
        kept.request("POST", "/v1/completions", b'{"prompt": "hi"}')
        late = kept.getresponse()
        assert (late.status, json.loads(late.read())["error"]["code"]) == (503, "service_unavailable")
        kept.close()
        thread.join()
        assert engine.process.wait(PATIENCE) == 0
    assert b"".join(rest).endswith(b"data: [DONE]\n\n")


def accepts(port: int) -> bool:
    """Say whether a connection to `port` is taken."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionError:
        return False
    return True


def test_grace_that_runs_out_cuts_what_is_left() -> None:
    with running("--timeout-graceful-shutdown", "1", "--max-model-len", "4096", "--max-num-seqs", "1") as engine:
        streams = [stream_of(engine, 4000)]
        body = json.dumps({"prompt": "hi", "stream": True, "max_tokens": 4000, "min_tokens": 4000}).encode()
        others = [engine.open("POST", "/v1/completions", body)[0] for _ in range(3)]
        assert engine.stop() == 0
        for connection in others:
            connection.close()
        streams[0][2].join()


def test_a_second_signal_cuts_the_grace_short() -> None:
    with running("--timeout-graceful-shutdown", "600", "--max-model-len", "4096", "--max-num-seqs", "1") as engine:
        body = json.dumps({"prompt": "hi", "stream": True, "max_tokens": 4000, "min_tokens": 4000}).encode()
        others = [engine.open("POST", "/v1/completions", body)[0] for _ in range(8)]
        engine.process.send_signal(signal.SIGTERM)
        while accepts(engine.port):
            assert engine.process.poll() is None
        assert engine.stop() == 0
        for connection in others:
            connection.close()


def test_the_engine_listens_well_within_two_seconds_of_processor_time() -> None:
    with running() as engine:
        fields = Path(f"/proc/{engine.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        assert seconds < 2.0
        assert engine.ready_line.startswith(f"ready: {DEMO} on http://127.0.0.1:")
        assert "1 BLAS thread(s)" in engine.ready_line


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("--port", str(port))
    assert line == f"error: --port {port}: address already in use; stop the process that listens there, or pass another port"


def test_a_port_taken_while_the_model_loads_is_refused(tmp_path: Path) -> None:
    fifo, config = fifo_instead_of_config(tmp_path)
    with socket.socket() as early:
        early.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        early.bind(("127.0.0.1", 0))
        port = early.getsockname()[1]
        with start("--port", str(port), model=tmp_path) as process:
            # Two may bind with SO_REUSEADDR as long as neither listens; the engine has bound when it reads config.json.
            with fifo.open("wb") as writer:
                early.listen()
                writer.write(config)
            _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith(f"error: --port {port}: address already in use; ")


def fifo_instead_of_config(folder: Path) -> tuple[Path, bytes]:
    """Write a checkpoint whose config.json waits for a writer; return it and what it should give."""
    fifo = write_checkpoint(folder) / "config.json"
    config = fifo.read_bytes()
    fifo.unlink()
    os.mkfifo(fifo)
    return fifo, config


def test_a_host_that_is_not_here_is_refused() -> None:
    assert "--host" in refused("--host", "nowhere.invalid")
    assert refused("--host", "203.0.113.1").startswith("error: --port 8000: cannot be bound (")


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    line = refused(model=tmp_path / "nowhere")
    assert line.startswith(f"error: --model {tmp_path / 'nowhere'}: got no such directory, expected a checkpoint directory; ")


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    line = refused("--port", "0", model=write_checkpoint(tmp_path, architectures=["MambaForCausalLM"]))
    assert "architectures: got 'MambaForCausalLM', expected a dense model of one of the families" in line


def test_a_context_longer_than_the_models_is_refused() -> None:
    assert refused("--port", "0", "--max-model-len", "99999").startswith("error: --max-model-len: got 99999, expected at most")


@pytest.mark.parametrize("flags", [["--max-num-seqs", "0"], ["--max-num-seqs", "257"], ["--port", "x"], ["--frobnicate"]])
def test_bad_usage_exits_with_2(flags: list[str]) -> None:
    with start(*flags) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert flags[0] in errors.splitlines()[-1]


def test_a_signal_while_loading_ends_the_process_with_0(tmp_path: Path) -> None:
    fifo, _ = fifo_instead_of_config(tmp_path)
    # Opening the other end returns when the engine has opened its own: it reads, and waits for content.
    with start("--port", "0", model=tmp_path) as process, fifo.open("wb"):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_nothing_is_written_into_the_checkpoint_directory(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(DEMO, directory)
    for path in [*directory.iterdir(), directory]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    before = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in [*directory.iterdir(), directory]}
    with running(model=directory) as engine:
        assert engine.chat().status == 200
        assert engine.stop() == 0
    assert {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in [*directory.iterdir(), directory]} == before
    directory.chmod(0o755)


def test_a_model_that_fails_ends_the_process_with_1_after_telling_its_callers() -> None:
    with running("--max-model-len", "4096") as engine:
        assert engine.complete(max_tokens=2).status == 200
        # No room for the scores of a long prompt: the model raises MemoryError, as it would on a full machine.
        status = Path(f"/proc/{engine.process.pid}/status").read_text()
        size = int(status.split("VmData:")[1].split()[0]) * 1024
        unlimited = resource.prlimit(engine.process.pid, resource.RLIMIT_DATA)
        resource.prlimit(engine.process.pid, resource.RLIMIT_DATA, (size + (1 << 21), unlimited[1]))
        reply = engine.complete([30] * 4000)
        resource.prlimit(engine.process.pid, resource.RLIMIT_DATA, unlimited)
        assert (reply.status, reply.error["type"], reply.error["code"]) == (500, "internal_error", "engine_error")
        assert b"Traceback" not in reply.body
        assert engine.process.wait(PATIENCE) == 1
        assert engine.process.stderr is not None
        assert "error: the engine failed: " in engine.process.stderr.read()


def test_logits_that_are_no_numbers_end_their_request_and_not_the_engine(tmp_path: Path) -> None:
    with running(model=write_overflowing(tmp_path)) as engine:
        whole = engine.complete([7, 7], max_tokens=3)
        assert (whole.status, whole.error["message"]) == (500, "the model produced a logit that is no number")
        stream = engine.complete([7, 7], max_tokens=3, stream=True)
        assert stream.status == 200
        assert stream.events[-1]["error"] == whole.error
        assert stream.frames[-1] == b"data: [DONE]"
        assert engine.complete([5, 5], max_tokens=3).status == 200


def test_the_worker_starts_an_engine_that_holds_every_request_the_worker_may_send() -> None:
    settings = read_settings({"MODEL": "org/name", "MAX_CONCURRENCY": "4096"})
    engine = CpuEngine(model=DEMO, settings=settings.engine, rules=Rules(engine=CAPABILITIES["cpu"], served_name="demo"), raw=False)
    options = _parser().parse_args(engine.command(8000)[3:])
    assert options.max_concurrency >= settings.limits.max_concurrency


def with_template(folder: Path, source: str) -> Path:
    """Copy the demo checkpoint, with another chat template."""
    directory = folder / "checkpoint"
    shutil.copytree(DEMO, directory)
    (directory / "chat_template.jinja").write_text(source)
    return directory


def test_a_costly_template_is_a_400_while_the_engine_answers_others(tmp_path: Path) -> None:
    """Rule: a checkpoint's template cannot block the engine, however much it would do."""
    model = with_template(tmp_path, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    replies = []
    with running(model=model) as engine:
        chat = threading.Thread(target=lambda: replies.append(engine.chat()))
        chat.start()
        answered = 0
        while chat.is_alive():
            assert engine.get("/health").status == 200
            assert engine.complete(max_tokens=2).status == 200
            answered += 1
        chat.join()
        assert answered > 3
        (reply,) = replies
        assert (reply.status, reply.error["param"]) == (400, "messages")
        assert "chat template takes more than 2 s of processor time" in reply.error["message"]


def test_a_template_that_does_not_parse_is_refused_at_the_start(tmp_path: Path) -> None:
    line = refused("--port", "0", model=with_template(tmp_path, "{% if"))
    assert "chat template: got TemplateSyntaxError" in line
    assert "expected a Jinja template; correct the template" in line


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_of_the_template_ends_with_the_engine_however_that_ends(number: signal.Signals) -> None:
    with running() as engine:
        (child,) = psutil.Process(engine.process.pid).children()
        assert child.cmdline()[-1] == "cpu_engine.template_process"
        engine.stop(number)
        assert psutil.wait_procs([child], PATIENCE)[1] == []
