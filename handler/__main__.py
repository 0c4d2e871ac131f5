"""Read the environment, compose, run, and end with the right exit code: 0 after an orderly stop, 1 otherwise.

python -m handler                       takes RunPod jobs when the platform's variables are there, else answers test_input.json
python -m handler --test_input JSON     answers this job, as the RunPod SDK's own option does
python -m handler --input FILE          answers the job in a file
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, NoReturn

from handler import local, serverless, web
from handler.engine import EngineProcess, supervised
from handler.engines import choose_engine
from handler.errors import WorkerError
from handler.fastdeploy.flags import variable_names
from handler.lifecycle import Lifecycle, State
from handler.models import Places, find_weights
from handler.settings import Settings, read_settings
from handler.weights.readahead import ReadAhead

log = logging.getLogger("handler")


def main(argv: list[str], environment: MutableMapping[str, str]) -> int:
    """Run the worker and return the process's exit code."""
    # A TERM while the engine loads unwinds the stack, and that ends the engine; later the faces own the signal.
    signal.signal(signal.SIGTERM, _interrupt)
    lifecycle = Lifecycle()
    try:
        settings = read_settings(environment, engine_names=variable_names())
        logging.basicConfig(level=settings.log_level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        return 0 if _run(settings, lifecycle, environment, argv) and lifecycle.state is not State.DEAD else 1
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(settings: Settings, lifecycle: Lifecycle, environment: MutableMapping[str, str], argv: list[str]) -> bool:
    """Serve with the face that fits the environment, and return whether it ended well."""
    queue = "RUNPOD_WEBHOOK_GET_JOB" in environment and environment.get("RUNPOD_ENDPOINT_TYPE") != "LB"
    job = None if queue or settings.port else _local_job(argv)
    model = settings.model
    places = Places(baked=Path(model.baked), home=Path(model.home) if model.home else None)
    weights = find_weights(model, places=places, source=model.origin, endpoint=model.endpoint)
    engine = choose_engine(settings, weights)
    process = EngineProcess(engine, settings.engine, lifecycle, environment)
    with ReadAhead(weights.directory or Path(os.devnull)) as ahead, supervised(process, ahead.stop) as running:
        if job is not None:
            return local.answer_once(running, settings, job)
        if queue:
            for name, value in serverless.SDK_VARIABLES.items():
                environment.setdefault(name, value)
            serverless.serve(running, settings, lifecycle)
        else:
            web.serve(running, settings, lifecycle)
    return True


def _local_job(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m handler", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--test_input", metavar="JSON", help='a job, such as {"input": {"prompt": "Hello"}}')
    given.add_argument("--input", metavar="FILE", type=Path, default=Path("test_input.json"), help="a file that holds a job")
    arguments = parser.parse_args(argv)
    if arguments.test_input is None:
        return local.read_test_job(arguments.input)
    return local.parse_test_job(arguments.test_input, "--test_input")


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))  # noqa: TID251
