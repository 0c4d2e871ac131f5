"""The environment of a worker on this machine, which `tools.run` and `tools.serve` start the same way."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from images.arguments import Key, some

__all__ = ["API_KEY", "DEMO", "MODEL_KEY", "loopback_problem", "worker_variables"]

API_KEY = "SERVE_API_KEY"
"""The variable with the key that clients of `serve` must send; the worker does not see it."""

MODEL_KEY = Key(
    "model",
    "The model to serve, whatever MODEL says; the demo checkpoint where neither names one.",
    check=some("a Hugging Face repository (org/name) or a directory"),
)

DEMO = Path(__file__).resolve().parents[2] / "ci" / "demo_model" / "checkpoint"

_MODEL = ("MODEL", "MODEL_NAME", "MODEL_REPO")
_NAME = ("SERVED_MODEL_NAME", "OPENAI_SERVED_MODEL_NAME_OVERRIDE")
_DROPPED = ("RUNPOD_", "PORT", API_KEY)
"""Beginnings of names. The first two would make the worker serve a platform's jobs, or HTTP on a port."""


def worker_variables(environment: Mapping[str, str], *, model: str = "") -> dict[str, str]:
    """Return the worker's variables: the environment's, with MODEL as `model`, as the environment names it, or as the demo checkpoint.

    A directory is meant from CALLED_FROM, since the worker itself runs in the tree's root. It is served under its last name unless another
    is set, so that clients need not send a path.
    """
    variables = {name: value for name, value in environment.items() if not name.startswith(_DROPPED)}
    variables["ENGINE"] = variables.get("ENGINE") or "cpu"
    named = model or _first_set(variables, _MODEL)
    for alias in _MODEL:
        variables.pop(alias, None)
    served = _first_set(variables, _NAME)
    directory = Path(environment.get("CALLED_FROM", "."), named).resolve()
    if not named:
        named, served = str(DEMO), served or "demo"
    elif directory.is_dir():
        named, served = str(directory), served or directory.name
    return variables | {"MODEL": named, "SERVED_MODEL_NAME": served or named}


def _first_set(variables: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := variables.get(name, "").strip())), "")


def loopback_problem() -> str:
    """Return why a server on 127.0.0.1 cannot be reached on this machine, in one sentence; "" where it can.

    Where the loopback interface is down a server starts and no client reaches it, so that a worker would wait for its engine in vain.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=10):
            return ""
    except OSError as error:
        return (
            f"127.0.0.1 cannot be reached ({error.strerror or error}), and the worker speaks with its engine there: "
            "bring the loopback interface up (ip link set lo up)"
        )
