"""The command line; the start, load, service and exit of FastDeploy's server; and `show RELEASE [CASE]`, which prints recordings."""

import argparse
import asyncio
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from .recordings import SETUPS, BadTranscripts, Library, load, show
from .script import REQUEST_FAULTS, Fault, Pacing
from .server import Behaviour, Server
from .twin import TwinLibrary

LOADING_FAULTS: Final = ("exit-0-while-loading", "exit-1-while-loading", "hang-while-loading")
PROCESS_FAULTS: Final = ("ignore-term", "orphan", "freeze")
FAULTS: Final = (*LOADING_FAULTS, *REQUEST_FAULTS, *PROCESS_FAULTS)
ORPHANS_LIFE_S: Final = 120
"""After so long an orphan ends by itself, should a test leave it."""
HEALTHY: Final = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: 0\r\nConnection: close\r\n\r\n"


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit code is FastDeploy's, which is 0 for most failures too."""
    try:
        if sys.argv[1:2] == ["show"]:
            return _show(sys.argv[2:])
        return _serve(*_parse(sys.argv[1:]))
    except BadTranscripts as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2


def _show(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.twins.replay show", description="Print the recordings of a release.")
    parser.add_argument("release", help="such as 2.3")
    parser.add_argument("case", nargs="?", help="without it: the names of all cases")
    given = parser.parse_args(words)
    sys.stdout.buffer.write(show(given.release, given.case))
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the options, and return what is left: FastDeploy's flags, which a worker passes without knowing who answers.

    A wrong command line ends the process with code 2 and a message on stderr, as argparse and FastDeploy do.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.twins.replay", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--release", required=True, help="whose recordings, such as 2.3")
    add("--setup", choices=SETUPS, default="base", help="the server set-up that was recorded")
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True, help="0 takes a free one; the start-up lines say which")
    add("--fallback", action="append", default=[], metavar="CASE", help="answers unrecorded requests of its route and `stream`; repeatable")
    add("--twins", action="store_true", help="answer other forms of a recorded question: stream, usage, model name")
    add("--start-delay", type=float, default=0.0, metavar="S", help="port closed until then")
    add("--event-delay", type=float, default=0.0, metavar="S", help="pause before every SSE event but the first")
    add("--rechunk", type=int, default=0, metavar="N", help="write payloads in pieces of N bytes")
    add("--term-delay", type=float, default=0.0, metavar="S", help="how long the end takes after SIGTERM")
    add("--worker-log", type=Path, metavar="FILE", help="text to find in $FD_LOG_DIR/workerlog.0 once loading has begun")
    add("--fault", type=_fault, action="append", default=[], metavar="KIND[:ARG]", help=f"repeatable; one of {', '.join(FAULTS)}")
    add("--heartbeat", type=float, default=30.0, metavar="S", help="how long a frozen server is still healthy")
    add("--spare", type=int, default=0, metavar="N", help="the first N requests for an answer meet no fault")
    add("--synthetic", action="store_true", help="answer chat and text completions with made-up tokens")
    add("--tokens-per-second", type=float, default=50.0, metavar="R", help="of each synthetic answer")
    add("--tokens", type=int, default=128, metavar="N", help="of each synthetic answer, unless the request asks for fewer")
    given, flags = parser.parse_known_args(argv)
    if given.synthetic and (given.tokens_per_second <= 0 or given.tokens < 1):
        parser.error("--synthetic: --tokens-per-second must be above 0 and --tokens at least 1")
    return given, flags


def _fault(text: str) -> Fault:
    kind, _, argument = text.partition(":")
    if kind not in FAULTS:
        raise argparse.ArgumentTypeError(f"{kind!r} is no fault; there are: {', '.join(FAULTS)}")
    try:
        return Fault(kind=kind, argument=float(argument) if argument else None)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number after the colon") from None


def _engine_flags(flags: list[str]) -> argparse.Namespace:
    """The few of FastDeploy's flags that change what is seen from outside."""
    parser = argparse.ArgumentParser(prog="api_server.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--api-key", action="append", default=[])
    parser.add_argument("--timeout-graceful-shutdown", type=int, default=0)
    parser.add_argument("--served-model-name")
    return parser.parse_known_args(flags)[0]


def _behaviour(given: argparse.Namespace, engine: argparse.Namespace, environ: Mapping[str, str]) -> Behaviour:
    """How to behave, by the command line and FastDeploy's `FD_API_KEY`."""
    return Behaviour(
        pacing=Pacing(event_delay=given.event_delay, rechunk=given.rechunk),
        faults=tuple(given.fault),
        spared=given.spare,
        api_keys=tuple(filter(None, [*engine.api_key, environ.get("FD_API_KEY")])),
        synthetic_rate=given.tokens_per_second if given.synthetic else 0.0,
        synthetic_tokens=given.tokens,
        graceful_s=engine.timeout_graceful_shutdown,
        term_delay_s=given.term_delay,
        heartbeat_s=given.heartbeat,
    )


def _serve(given: argparse.Namespace, flags: list[str]) -> int:
    engine = _engine_flags(flags)
    behaviour = _behaviour(given, engine, os.environ)
    recordings = load(given.release)
    library = (
        TwinLibrary(recordings, setup=given.setup, fallbacks=given.fallback, served=engine.served_model_name)
        if given.twins
        else Library(recordings, setup=given.setup, fallbacks=given.fallback)
    )
    if behaviour.fault("ignore-term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(f"args: {' '.join(flags)}")
    code = _load_model(given, behaviour, os.environ.get("FD_LOG_DIR"))
    if code is not None:
        return code
    try:
        listener = socket.create_server((given.host, given.port), backlog=1024)
    except OSError as error:
        print(f"replay: cannot listen on {given.host}:{given.port}: {error.strerror}", file=sys.stderr)
        return 1
    with listener:
        parent_pipe = _leave_orphan(listener) if behaviour.fault("orphan") else None
        threading.Thread(target=_poll, daemon=True).start()
        _announce(given.host, listener.getsockname()[1])
        asyncio.run(Server(library, behaviour).run(listener))
        if parent_pipe is not None:
            os.close(parent_pipe)
    return 0


def _poll() -> None:
    """Use about 1 % of a core for ever, as the loops of FastDeploy's main process do when it has nothing to do."""
    while True:
        time.sleep(0.1)
        until = time.thread_time() + 0.001
        while time.thread_time() < until:
            pass


def _load_model(given: argparse.Namespace, behaviour: Behaviour, log_folder: str | None) -> int | None:
    """Take the time of a start; an exit code ends the process. SIGTERM ends it at once here, with code -15, as it does FastDeploy."""
    say("Waiting for worker processes to be ready...")
    if given.worker_log and log_folder:
        Path(log_folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given.worker_log, Path(log_folder) / "workerlog.0")
    time.sleep(given.start_delay)
    say("Loading Weights: 100%|##########| 100/100")
    fault = next((one for one in behaviour.faults if one.kind in LOADING_FAULTS), None)
    if fault is None:
        return None
    if fault.kind == "hang-while-loading":
        while True:
            signal.pause()
    time.sleep(fault.number(0.0))
    say("Failed to launch worker processes, check log/workerlog.* for more details.")
    return 0 if fault.kind == "exit-0-while-loading" else 1


def _announce(host: str, port: int) -> None:
    """The lines by which people recognise that FastDeploy is up; the port opens just after them."""
    say(f"Launching chat completion service at http://{host}:{port}/v1/chat/completions")
    say(f"Launching completion service at http://{host}:{port}/v1/completions")
    say("Application startup complete.")


def _leave_orphan(listener: socket.socket) -> int:
    """Start the process that outlives this one; returns the write end of a pipe whose closing, by whatever end, it waits for.

    FastDeploy's gunicorn worker does so after SIGKILL of the main process: in a session of its own it goes on answering /health with 200
    on the same port, and everything else waits for an engine that is gone.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(read_end)
        say(f"orphan pid {pid}")
        return write_end
    os.setsid()
    signal.alarm(ORPHANS_LIFE_S)
    os.close(write_end)
    os.read(read_end, 1)
    listener.setblocking(True)  # the server's event loop had made it non-blocking for both
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer_as_orphan, args=(connection,), daemon=True).start()


def _answer_as_orphan(connection: socket.socket) -> None:
    with connection:
        head = b""
        while b"\r\n\r\n" not in head:
            received = connection.recv(65536)
            if not received:
                return
            head += received
        if head.startswith((b"GET /health ", b"GET /ping ")):
            connection.sendall(HEALTHY)
            return
        while connection.recv(65536):
            pass


def say(text: str) -> None:
    """One line on stdout, at once."""
    print(f"INFO     {time.strftime('%Y-%m-%d %H:%M:%S')}  {os.getpid()}  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
