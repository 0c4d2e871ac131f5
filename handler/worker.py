"""The worker: settings, weights, engine, and one of three faces, on one event loop, with one way out.

python -m handler                       takes RunPod jobs when the platform's variables are there, else answers test_input.json
python -m handler --test_input JSON     answers this job, as the RunPod SDK's own option does
python -m handler --input FILE          answers the job in a file
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from checkpoint.find import Places, Source, Weights, find_weights
from checkpoint.unavailable import ModelUnavailable
from handler.engine import Engine
from handler.engines import Start, choose_engine, further_problems
from handler.errors import InvalidSettings, WorkerError
from handler.fastdeploy.flags import RELEASES, variable_names
from handler.lifecycle import Lifecycle, State
from handler.logs import configure
from handler.prestart import ENGINE_PYTHON, Prestarted
from handler.settings import Settings, read_settings
from handler.shutdown import INTERRUPTED, Interrupted, Shutdown

if TYPE_CHECKING:
    from handler.metrics import Metrics

__all__ = ["run"]

T = TypeVar("T")

log = logging.getLogger(__name__)


def run(argv: list[str], environment: Mapping[str, str], prestarted: Prestarted | None) -> int:
    """Run the worker, with the interpreter that was started for the engine if there is one, and return the process's exit code."""
    if argv[:1] == ["flags"]:
        return _check_flags(argv[1:], environment)
    shutdown = Shutdown()
    try:
        settings = _read(environment)
        configure(settings.log_level, platform="RUNPOD_ENDPOINT_ID" in environment)
        for warning in settings.warnings:
            log.warning("%s", warning)
        return asyncio.run(_serve(settings, environment, argv, prestarted, shutdown))
    except Interrupted:
        return INTERRUPTED
    except (WorkerError, ModelUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the answer has left; Python would complain once more at its own end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _read(environment: Mapping[str, str]) -> Settings:
    """Return the settings, or name all that is wrong with them and with the engine's variables at once."""
    try:
        return read_settings(environment, engine_names=variable_names())
    except InvalidSettings as error:
        raise InvalidSettings(error.problems + further_problems(error)) from None


async def _serve(
    settings: Settings, environment: Mapping[str, str], argv: list[str], prestarted: Prestarted | None, shutdown: Shutdown
) -> int:
    """Serve with the face that fits the environment, and return the exit code."""
    shutdown.attach()
    balanced = environment.get("RUNPOD_ENDPOINT_TYPE") == "LB"
    queue = "RUNPOD_WEBHOOK_GET_JOB" in environment and not balanced
    job = None if queue or balanced or settings.port or settings.health_port else _local_job(argv)
    addresses = None
    if queue:
        from handler.job_api import Addresses

        addresses = Addresses.read(environment)
    lifecycle = Lifecycle()
    async with _started(settings, environment, prestarted, shutdown, lifecycle) as engine:
        # Whatever is not needed to start the engine is imported while it loads.
        if job is not None:
            from handler import local

            return 0 if await shutdown.unless_requested(local.answer_once(engine, settings, job)) else 1
        if queue and settings.job_loop == "sdk":
            from handler import sdk_loop

            await sdk_loop.serve(engine, settings, lifecycle, shutdown)
        elif addresses is not None:
            from handler import job_queue

            async with _watched_beside(settings, lifecycle, engine) as metrics:
                await job_queue.serve(engine, settings, addresses, lifecycle, shutdown, metrics)
        else:
            from handler import web

            metrics = _metrics(settings, lifecycle, engine)
            await web.serve(engine, settings, lifecycle, shutdown, metrics)
    return 1 if lifecycle.state is State.DEAD else 0


def _metrics(settings: Settings, lifecycle: Lifecycle, engine: Engine) -> Metrics:
    from handler.metrics import Metrics

    return Metrics(lifecycle, settings.engine.max_num_seqs, restarts=lambda: engine.starts - 1)


@contextlib.asynccontextmanager
async def _watched_beside(settings: Settings, lifecycle: Lifecycle, engine: Engine) -> AsyncIterator[Metrics | None]:
    """Answer health and metrics beside the queue where a port is named; without one the packages of an HTTP server are not imported."""
    if not settings.port and not settings.health_port:
        yield None
        return
    from handler import web

    metrics = _metrics(settings, lifecycle, engine)
    async with web.watched_beside(settings, lifecycle, metrics):
        yield metrics


@contextlib.asynccontextmanager
async def _started(
    settings: Settings,
    environment: Mapping[str, str],
    prestarted: Prestarted | None,
    shutdown: Shutdown,
    lifecycle: Lifecycle,
) -> AsyncIterator[Engine]:
    """Find the weights and start the engine; leaving ends it."""
    start = await shutdown.unless_requested(_in_thread(lambda: choose_engine(settings)))
    lifecycle.cold_start.note("machine checked")
    weights = await shutdown.unless_requested(_in_thread(lambda: _find(settings, start)))
    lifecycle.cold_start.note("weights found")
    kind = start.prepare(weights)
    async with Engine(kind, environment, settings.engine, lifecycle, prestarted) as engine:
        lifecycle.cold_start.note("engine started")
        await shutdown.unless_requested(_in_thread(kind.examine))
        from checkpoint.read_ahead import ReadAhead

        with ReadAhead(weights.directory or Path(os.devnull)) as ahead:

            def answered() -> None:
                lifecycle.cold_start.note("engine answered")
                ahead.stop()

            engine.when_ready = answered
            yield engine


def _find(settings: Settings, start: Start) -> Weights:
    model = settings.model
    source = Source(name=model.source, revision=model.revision, hub=model.origin, endpoint=model.endpoint, token=model.token.reveal())
    home, hub_cache = (Path(text) if text else None for text in (model.home, model.hub_cache))
    return find_weights(source, Places(baked=Path(model.baked), home=home, hub_cache=hub_cache), start.accept)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run what blocks in a daemon thread: unlike asyncio's own threads, the end of the loop does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001  # it is raised again where the result is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nothing waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True).start()
    return await done


def _check_flags(argv: list[str], environment: Mapping[str, str]) -> int:
    """Print every difference between the installed FastDeploy's parser and the table of its release; return 1 if there is one."""
    import argparse

    from handler.fastdeploy.installed import check_installed, installed_version

    parser = argparse.ArgumentParser(prog="python -m handler flags")
    parser.add_argument("--check", action="store_true", required=True, help="compare the table with the installed parser")
    parser.parse_args(argv)
    python = environment.get("ENGINE_PYTHON", ENGINE_PYTHON)
    release = environment.get("FASTDEPLOY_RELEASE") or ".".join(installed_version(python).split(".")[:2])
    if release not in RELEASES:
        print(f"error: {python} has FastDeploy {release or 'not installed'}, expected one of {', '.join(RELEASES)}", file=sys.stderr)
        return 1
    differences = check_installed(release, python)
    print("\n".join(differences) or f"the parser of FastDeploy {release} is the one of the table")
    return 1 if differences else 0


def _local_job(argv: list[str]) -> dict[str, Any]:
    """Read the job to answer, before anything is loaded."""
    import argparse

    from handler.job import parse_test_job, read_test_job

    parser = argparse.ArgumentParser(prog="python -m handler", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--test_input", metavar="JSON", help='a job, such as {"input": {"prompt": "Hello"}}')
    given.add_argument("--input", metavar="FILE", type=Path, default=Path("test_input.json"), help="a file that holds a job")
    arguments = parser.parse_args(argv)
    if arguments.test_input is None:
        return read_test_job(arguments.input)
    return parse_test_job(arguments.test_input, "--test_input")
