"""What a worker on this machine is given of its caller's environment; `tools.run` and `tools.serve` start it with the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["DEMO", "worker_variables"]

DEMO = Path(__file__).resolve().parents[2] / "ci" / "demo_model" / "checkpoint"

_MODEL = ("MODEL", "MODEL_NAME", "MODEL_REPO")
_NAME = ("SERVED_MODEL_NAME", "OPENAI_SERVED_MODEL_NAME_OVERRIDE")
_ELSEWHERE = ("RUNPOD_", "PORT")
"""How the names begin of what would have the worker serve somebody else: a platform's jobs, or HTTP on a port."""


def worker_variables(environment: Mapping[str, str], *, model: str = "") -> dict[str, str]:
    """Return the worker's variables: the environment's, with MODEL as `model`, as the environment names it, or as the demo checkpoint.

    A directory is meant from CALLED_FROM, where the person stands, since the worker itself runs in the tree's root; it is served under
    its own name unless another is set: nobody wants to type a path as the name of a model.
    """
    variables = {name: value for name, value in environment.items() if not name.startswith(_ELSEWHERE)}
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
