"""Bind the port, start the worker, say how to reach it, and wait: `ci/just serve [port=8000] [model=NAME_OR_DIR] [engine=cpu] ...`.

Exit codes: 0 after Ctrl-C, SIGTERM or SIGHUP; 1 when the port cannot be bound or the worker ends by itself; 2 for wrong arguments.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from tools.serve.gateway import gateway
from tools.serve.job_server import JobServer
from tools.serve.job_table import Book, Rules
from tools.serve.options import Options, UsageError, read_arguments
from tools.serve.worker_process import Worker, job_key

_STOP_S = 10.0
"""What the worker gets to end, beyond what it grants its engine (ENGINE_STOP_TIMEOUT)."""
_USAGE = "usage: ci/just serve [port=8000] [model=NAME_OR_DIRECTORY] [engine=cpu|fastdeploy|auto] [endpoint=local] [api_key=KEY]"


class CannotListen(Exception):
    """The port is not to be had; the message says what to do."""


async def serve(options: Options) -> int:
    """Serve until a signal asks to stop or the worker ends; return the exit code."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    jobs = JobServer(endpoint=options.endpoint, api_key=job_key(Path.home(), secrets.token_hex(16)))
    async with Book(jobs, Rules()) as book:
        application = gateway(book, api_key=options.api_key, model=options.model)
        # Without handler_cancellation a client that leaves would not cancel its job.
        runner = web.AppRunner(application, handle_signals=False, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            jobs.port = await _listen(runner, options.port)
            return await _with_worker(options, book, asked)
        finally:
            await runner.cleanup()


async def _listen(runner: web.AppRunner, port: int) -> int:
    """Return the port that is bound, on loopback only."""
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(f"port {port} is in use; stop what listens there, or take another: ci/just serve port={port + 1}") from None
        if error.errno == errno.EACCES:
            raise CannotListen(f"port {port} needs rights that you do not have; take one from 1024: ci/just serve port=8000") from None
        raise CannotListen(f"port {port}: {error.strerror or error}") from None
    bound: int = runner.addresses[0][1]
    return bound


async def _with_worker(options: Options, book: Book, asked: asyncio.Event) -> int:
    quiet = {"RUNPOD_LOG_LEVEL": "WARN", "RUNPOD_PING_INTERVAL": "10000", "LOG_LEVEL": options.variables.get("LOG_LEVEL", "WARNING")}
    variables = {**options.variables, **book.jobs.environment("local-worker"), **quiet}
    started = time.monotonic()
    print(_how_to(options, book.jobs.url), flush=True)
    async with Worker(variables, stop_s=_STOP_S + _engine_stop_s(variables)) as worker:
        ended = asyncio.create_task(worker.process.wait())
        told = asyncio.create_task(_tell_when_ready(book.jobs, started))
        stop = asyncio.create_task(asked.wait())
        try:
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not stop.done():
                when = "while it was serving" if told.done() else "before it could take a job"
                print(f"serve: the worker ended by itself {when}, with exit code {ended.result()}; what it said is above", file=sys.stderr)
                return 1
            print("serve: stopping", file=sys.stderr)
            book.stop_all()  # so that the worker does not wait for answers that nobody reads any more
            return 0
        finally:
            for task in (ended, told, stop):
                task.cancel()


def _engine_stop_s(variables: Mapping[str, str]) -> float:
    try:
        return max(0.0, float(variables["ENGINE_STOP_TIMEOUT"]))
    except (KeyError, ValueError):  # a wrong value is the worker's to refuse
        return 10.0


async def _tell_when_ready(jobs: JobServer, started: float) -> None:
    await jobs.wait_worker(86400)
    print(f"ready after {time.monotonic() - started:.1f} s", flush=True)


def _how_to(options: Options, url: str) -> str:
    key = options.api_key or "none"
    base = f"{url}/v2/{options.endpoint}"
    header = f' -H "Authorization: Bearer {key}"' if options.api_key else ""
    body = f'{{"model": "{options.model}", "messages": [{{"role": "user", "content": "What is FastDeploy?"}}], "stream": true}}'
    return f"""{options.model} behind RunPod's API at {base}
The worker is loading; requests wait for it in the queue. Ctrl-C ends everything.

In a browser: {url}/

In a shell:
curl -N {base}/openai/v1/chat/completions{header} -H "Content-Type: application/json" -d '{body}'

In Python:
from openai import OpenAI
client = OpenAI(base_url="{base}/openai/v1", api_key="{key}")
for chunk in client.chat.completions.create(
    model="{options.model}", messages=[{{"role": "user", "content": "What is FastDeploy?"}}], stream=True
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
"""


def main(arguments: list[str], environment: dict[str, str]) -> int:
    """Return the exit code."""
    try:
        return asyncio.run(serve(read_arguments(arguments, environment)))
    except UsageError as error:
        print(f"serve: {error}\n{_USAGE}", file=sys.stderr)
        return 2
    except CannotListen as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], dict(os.environ)))
