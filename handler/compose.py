"""Compose the worker from settings, weights, engine and face, run it, and say how it ended.

python -m handler                       takes RunPod jobs when the platform's variables are there, else answers test_input.json
python -m handler --test_input JSON     answers this job, as the RunPod SDK's own option does
python -m handler --input FILE          answers the job in a file
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from checkpoint.find import Places, Source, find_weights
from checkpoint.unavailable import ModelUnavailable
from handler.departure import Departure
from handler.early import ENGINE_PYTHON, Waiting
from handler.engines import choose_engine, further_problems
from handler.errors import InvalidSettings, WorkerError
from handler.fastdeploy.flags import RELEASES, variable_names
from handler.launch import Launcher
from handler.ledger import Ledger
from handler.lifecycle import Lifecycle, State
from handler.logs import configure
from handler.settings import Settings, read_settings

__all__ = ["run"]


def run(argv: list[str], environment: MutableMapping[str, str], waiting: Waiting | None) -> int:
    """Run the worker, with an interpreter that waits for the engine's flags if there is one, and return the process's exit code."""
    if argv[:1] == ["flags"]:
        return _check_flags(argv[1:], environment)
    lifecycle, ledger = Lifecycle(), Ledger()
    departure = Departure(lifecycle, waiting)
    try:
        settings = _read(environment)
        configure(settings.log_level, platform="RUNPOD_ENDPOINT_ID" in environment)
        return 0 if _serve(settings, lifecycle, ledger, environment, argv, departure) and lifecycle.state is not State.DEAD else 1
    except (WorkerError, ModelUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the answer has left; Python would complain once more at its own end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        departure.give_way()


def _read(environment: Mapping[str, str]) -> Settings:
    """Return the settings, or name all that is wrong with them and with the engine's variables at once."""
    try:
        return read_settings(environment, engine_names=variable_names())
    except InvalidSettings as error:
        raise InvalidSettings(error.problems + further_problems(error)) from None


def _serve(
    settings: Settings,
    lifecycle: Lifecycle,
    ledger: Ledger,
    environment: MutableMapping[str, str],
    argv: list[str],
    departure: Departure,
) -> bool:
    """Serve with the face that fits the environment, and return whether it ended well."""
    balanced = environment.get("RUNPOD_ENDPOINT_TYPE") == "LB"
    queue = "RUNPOD_WEBHOOK_GET_JOB" in environment and not balanced
    job = None if queue or balanced or settings.port or settings.health_port else _local_job(argv)
    start = choose_engine(settings)
    ledger.note("machine checked")
    model = settings.model
    places = Places(baked=Path(model.baked), home=Path(model.home) if model.home else None)
    source = Source(name=model.source, revision=model.revision, hub=model.origin, endpoint=model.endpoint, token=model.token.reveal())
    weights = find_weights(source, places, start.accept)
    ledger.note("weights found")
    engine = start.prepare(weights)
    launcher = departure.launcher = Launcher(engine, environment, departure.waiting)
    ledger.note("engine chosen")
    with launcher.start() as child:
        ledger.note("engine started")
        engine.examine()
        # Whatever is not needed to start the engine is imported while it loads: together that takes more than a second.
        from checkpoint.read_ahead import ReadAhead
        from handler.engine import EngineProcess, supervised

        def answered() -> None:
            ledger.note("engine answered")
            ahead.stop()

        process = EngineProcess(launcher, child, settings.engine, lifecycle)
        with ReadAhead(weights.directory or Path(os.devnull)) as ahead, supervised(process, answered) as running:
            from handler import health, local, serverless, web
            from handler.metrics import Metrics

            if job is not None:
                return local.answer_once(running, settings, job)
            metrics = Metrics(lifecycle, ledger, settings.engine.max_num_seqs, restarts=lambda: launcher.starts - 1)
            if queue:
                for name, value in serverless.SDK_VARIABLES.items():
                    environment[name] = environment.get(name) or value
                with health.watched_beside(settings, lifecycle, metrics):
                    watched = bool(settings.port or settings.health_port)
                    serverless.serve(running, settings, lifecycle, ledger, metrics if watched else None)
            else:
                web.serve(running, settings, lifecycle, ledger, metrics)
    return True


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
