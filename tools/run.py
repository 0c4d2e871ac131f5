"""Answer one prompt on this machine, through the worker: `ci/just run [PROMPT | input=FILE] [model=NAME_OR_DIRECTORY]`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from images.arguments import Command, Key, call, file_named, some
from tools.serve.worker_variables import MODEL_KEY, loopback_problem, worker_variables

__all__ = ["COMMAND"]

ROOT = Path(__file__).resolve().parent.parent


def run(values: Mapping[str, str]) -> int:
    """Become the worker, with the demo checkpoint unless a model is named."""
    if problem := loopback_problem():
        print(f"run: {problem}", file=sys.stderr)
        return 1
    variables = {"LOG_LEVEL": "WARNING"} | worker_variables(os.environ, model=values["model"])
    job = ["--input", str(file_named(values["input"]) if values["input"] else ROOT / "test_input.json")]
    if values["prompt"]:
        body = {"messages": [{"role": "user", "content": values["prompt"]}], "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        job = ["--test_input", json.dumps({"input": {"openai_route": "/v1/chat/completions", "openai_input": body}})]
    return _become_worker(job, variables)


def _become_worker(arguments: list[str], variables: Mapping[str, str]) -> NoReturn:
    os.chdir(ROOT)
    os.execve(sys.executable, [sys.executable, "-m", "handler", *arguments], variables)  # noqa: S606  # no shell wanted


def _conflicts(values: Mapping[str, str]) -> Iterator[str]:
    if values["prompt"] and values["input"]:
        yield "prompt, input: got both, expected one of them"


COMMAND = Command(
    name="run",
    help="Answer one prompt on this machine, without a GPU.",
    keys=(
        Key("prompt", "The question; without one, the job in test_input.json is run.", bare=True, check=some("a question")),
        Key("input", "A file that holds a job as RunPod delivers it.", check=some("a file")),
        MODEL_KEY,
    ),
    run=run,
    conflicts=_conflicts,
)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
