"""Command line -> a running server; sets the BLAS threads before numpy is imported, owns the exit code.

    python -m cpu_engine --model DIR [--port 8000] ...

Exit codes: 0 after SIGTERM or SIGINT, 1 when it cannot start or the model fails, 2 for bad usage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cpu_engine.cores import available_memory, free_cores
from cpu_engine.refusals import StartupError

if TYPE_CHECKING:
    from cpu_engine.forward import Transformer
    from cpu_engine.request import RequestReader

_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
_STARTED_BY_WORKER = "WORKER_ENGINE"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# FastDeploy's own cap on --max-num-seqs.
_SLOTS_LIMIT = 256


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal ends it; return the exit code."""
    started = time.perf_counter()
    options = _parser().parse_args(argv)
    _end_with_parent()
    threads = _set_threads()

    def announce(what: str) -> None:
        seconds = time.perf_counter() - started
        sys.stderr.write(f"ready: {what}, {threads} BLAS thread(s), {seconds:.2f} s to start\n")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        listener = _bind(options.host, options.port)
        model, reader = _load(options, threads)
        asyncio.run(_serve(options, model, reader, listener, announce))
    except StartupError as refusal:
        sys.stderr.write(f"error: {refusal}\n")
        return 1
    except Exception as error:  # noqa: BLE001 - the last frame of the process: say it, then leave with a code
        traceback.print_exc()
        sys.stderr.write(f"error: the engine failed: {type(error).__name__}: {error}; the traceback is above\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cpu_engine", description="FastDeploy's HTTP surface on a CPU")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_number(0, 65535), default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--served-model-name", help="the one name requests may use (default: any)")
    parser.add_argument("--max-model-len", type=_number(2), help="tokens of prompt and answer (default: 2048)")
    parser.add_argument("--max-num-seqs", type=_number(1, _SLOTS_LIMIT), default=8, help="sequences computed at once")
    parser.add_argument("--max-concurrency", type=_number(1), default=512, help="requests held at once")
    parser.add_argument("--timeout-graceful-shutdown", type=_number(0), default=0, help="seconds, 0 cuts at once")
    return parser


def _number(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return an argparse type: a whole number within bounds."""

    def number(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is not within {low}..{high if high is not None else ''}")
        return value

    return number


def _set_threads() -> int:
    """Set the number of threads of every BLAS that numpy may use, unless the environment sets it; return it."""
    environment = os.environ  # noqa: TID251 - a BLAS takes its threads from nowhere else
    chosen = next((environment[name] for name in _THREAD_VARIABLES if environment.get(name, "").isdigit()), None)
    threads = max(1, int(chosen)) if chosen else free_cores()
    for name in _THREAD_VARIABLES:
        environment.setdefault(name, str(threads))
    return threads


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before the weights are read, without listening: nothing answers until the model can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise StartupError(
            f"--host {host}", got=str(error.strerror), expected="an address of this machine", remedy="pass 127.0.0.1"
        ) from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        raise _port_refusal(port, error) from error
    return listener


def _port_refusal(port: int, error: OSError) -> StartupError:
    in_use = error.errno == errno.EADDRINUSE
    return StartupError(
        f"--port {port}",
        problem="address already in use" if in_use else f"cannot be bound ({error.strerror})",
        remedy="stop the process that listens there, or pass another port" if in_use else "pass another port",
    )


def _load(options: argparse.Namespace, threads: int) -> tuple[Transformer, RequestReader]:
    """Read the checkpoint; the heavy imports happen here, after the threads are set."""
    from cpu_engine.checkpoint import load

    return load(
        options.model,
        served_name=options.served_model_name,
        max_model_len=options.max_model_len,
        threads=threads,
        memory=available_memory(),
    )


async def _serve(
    options: argparse.Namespace, model: Transformer, reader: RequestReader, listener: socket.socket, announce: Callable[[str], None]
) -> None:
    from cpu_engine.routes import Server, ServerLimits

    limits = ServerLimits(
        slots=options.max_num_seqs,
        concurrency=options.max_concurrency,
        grace=float(options.timeout_graceful_shutdown),
    )
    name = options.served_model_name or str(options.model)
    server = Server(model, reader, name=name, root=str(options.model), limits=limits)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    host, port = listener.getsockname()[:2]
    try:
        await server.serve(listener, lambda: announce(f"{name} on http://{host}:{port}"))
    except OSError as error:
        raise _port_refusal(port, error) from error


def _end_with_parent() -> None:
    """Have the kernel end this process with the worker that started it, even if that was killed; Linux only, and never for a shell."""
    if _STARTED_BY_WORKER in os.environ:  # noqa: TID251 - see _set_threads
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _leave(_number: int, _frame: object) -> None:
    """Answer a signal that comes before the server runs."""
    raise SystemExit(0)


if __name__ == "__main__":
    raise SystemExit(main())
