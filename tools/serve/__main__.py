"""Bind the port, start the worker, print how to reach it, and wait: `ci/just serve [port=8000] [model=NAME_OR_DIRECTORY] ...`.

Exit codes: 0 after SIGTERM or SIGHUP; 130 after Ctrl-C; 1 when the port cannot be bound or the worker ends; 2 for wrong arguments.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from images.arguments import Command, call, complain
from tools.serve.gateway import gateway
from tools.serve.job_server import JobServer
from tools.serve.job_table import JobTable, PlatformLimits
from tools.serve.options import KEYS, Options, read_options
from tools.serve.worker_process import LocalWorker, job_key
from tools.serve.worker_variables import API_KEY, loopback_problem

_STOP_S = 10.0
"""What the worker gets to end, beyond what it grants its engine (ENGINE_STOP_TIMEOUT)."""


class CannotListen(Exception):
    """The port cannot be bound; the message says what to do."""


async def serve(options: Options) -> int:
    """Serve until a signal asks to stop or the worker ends; return the exit code."""
    asked: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

    def stop(number: signal.Signals) -> None:
        if not asked.done():
            asked.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    jobs = JobServer(endpoint=options.endpoint, api_key=job_key(Path.home(), secrets.token_hex(16)))
    async with JobTable(jobs, PlatformLimits()) as table:
        application = gateway(table, api_key=options.api_key, model=options.model)
        # Without handler_cancellation a client that leaves would not cancel its job.
        runner = web.AppRunner(application, handle_signals=False, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            jobs.port = await _listen(runner, options.port)
            return await _with_worker(options, table, asked)
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


async def _with_worker(options: Options, table: JobTable, asked: asyncio.Future[signal.Signals]) -> int:
    quiet = {"RUNPOD_LOG_LEVEL": "WARN", "RUNPOD_PING_INTERVAL": "10000", "LOG_LEVEL": options.variables.get("LOG_LEVEL", "WARNING")}
    variables = {**options.variables, **table.jobs.environment("local-worker"), **quiet}
    started = time.monotonic()
    print(_how_to(options, table.jobs.url), flush=True)
    async with LocalWorker(variables, stop_s=_STOP_S + _engine_stop_s(variables)) as worker:
        ended = asyncio.create_task(worker.process.wait())
        ready = asyncio.create_task(_print_when_ready(table.jobs, started))
        try:
            either: set[asyncio.Future[Any]] = {ended, asked}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                when = "while it was serving" if ready.done() else "before it could take a job"
                print(f"serve: the worker ended by itself {when}, with exit code {ended.result()}; its output is above", file=sys.stderr)
                return 1
            print("serve: stopping", file=sys.stderr)
            table.stop_all()  # so that the worker does not wait for answers that no client reads any more
            return 130 if asked.result() == signal.SIGINT else 0
        finally:
            for task in (ended, ready):
                task.cancel()


def _engine_stop_s(variables: Mapping[str, str]) -> float:
    try:
        return max(0.0, float(variables["ENGINE_STOP_TIMEOUT"]))
    except (KeyError, ValueError):  # a wrong value is the worker's to refuse
        return 10.0


async def _print_when_ready(jobs: JobServer, started: float) -> None:
    await jobs.wait_worker(86400)
    print(f"ready after {time.monotonic() - started:.1f} s", flush=True)


def _how_to(options: Options, url: str) -> str:
    base = f"{url}/v2/{options.endpoint}"
    # The key itself is not printed: terminals keep what they show.
    shell, python = f"${API_KEY}", f'os.environ["{API_KEY}"]'
    if options.key_file:
        shell, python = f"$(cat {shlex.quote(str(options.key_file))})", f"open({str(options.key_file)!r}).read().strip()"
    header = f' -H "Authorization: Bearer {shell}"' if options.api_key else ""
    imports = "import os\n" * bool(options.api_key and not options.key_file)
    body = f'{{"model": "{options.model}", "messages": [{{"role": "user", "content": "What is FastDeploy?"}}], "stream": true}}'
    return f"""{options.model} behind RunPod's API at {base}
The worker is loading; requests wait for it in the queue. Ctrl-C ends everything.

In a browser: {url}/

In a shell:
curl -N {base}/openai/v1/chat/completions{header} -H "Content-Type: application/json" -d '{body}'

In Python:
{imports}from openai import OpenAI
client = OpenAI(base_url="{base}/openai/v1", api_key={python if options.api_key else '"none"'})
for chunk in client.chat.completions.create(
    model="{options.model}", messages=[{{"role": "user", "content": "What is FastDeploy?"}}], stream=True
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
"""


def run(values: Mapping[str, str]) -> int:
    """Serve, and return the exit code."""
    options = read_options(values, os.environ)
    if problem := loopback_problem():
        print(f"serve: {problem}", file=sys.stderr)
        return 1
    try:
        return asyncio.run(serve(options))
    except CannotListen as error:
        return complain("serve", error)


COMMAND = Command(
    name="serve",
    help="Serve on this machine what RunPod's gateway serves to clients, with a page to chat.",
    keys=KEYS,
    run=run,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
