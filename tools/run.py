"""Answer one prompt on this machine, through the worker: `ci/just run [prompt=TEXT | input=FILE] [model=NAME_OR_DIRECTORY]`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tools.serve.worker_variables import worker_variables

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("prompt", "input", "model")


def main(arguments: list[str], environment: dict[str, str]) -> None:
    """Become the worker, with the demo checkpoint unless a model is named."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    for key in given:
        if key not in KEYS:
            sys.exit(f"run: {key}: unknown, expected one of {', '.join(f'{known}=...' for known in KEYS)}")
    if "prompt" in given and "input" in given:
        sys.exit("run: got both prompt= and input=, expected one of them")
    if given.get("model") == "":
        sys.exit("run: model: got nothing, expected a Hugging Face repository (org/name) or a directory")
    called_from = Path(environment.get("CALLED_FROM", "."))
    variables = {"LOG_LEVEL": "WARNING"} | worker_variables(environment, model=given.get("model", ""))
    job = ["--input", str(called_from / given["input"] if "input" in given else ROOT / "test_input.json")]
    if "prompt" in given:
        body = {"messages": [{"role": "user", "content": given["prompt"]}], "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        job = ["--test_input", json.dumps({"input": {"openai_route": "/v1/chat/completions", "openai_input": body}})]
    os.chdir(ROOT)
    os.execve(sys.executable, [sys.executable, "-m", "handler", *job], variables)  # noqa: S606  # no shell wanted


if __name__ == "__main__":
    main(sys.argv[1:], dict(os.environ))
