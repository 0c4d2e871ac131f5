"""Read the words after `deploy` into one frozen order; every mistake is found before the first one is reported."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.deploy.outcomes import Refused

__all__ = ["NO_IDLE_TIME", "USAGE", "Order", "hint", "read_order"]

USAGE = """\
usage: ci/just deploy image=REPOSITORY[:TAG|@DIGEST] [KEY=VALUE ...]

  image=REPOSITORY[:TAG|@DIGEST]  what to run; a tag is resolved to its digest first
  endpoint=NAME_OR_ID             rolled out to if it exists, made under this name if not; default: the repository's last word
  type=queue|lb                   how requests reach the workers; default for a new endpoint: queue
  gpu=POOL[,POOL...]              such as ADA_24; needed for a new endpoint
  exclude=TYPE[,TYPE...]          GPU types of these pools that are not wanted
  count=N                         GPUs of one worker
  workers=MIN..MAX                default for a new endpoint: 0..3
  idle=SECONDS                    how long a worker waits for the next request before it is stopped
  delay=SECONDS | requests=N      what makes the queue grow workers: time in it, or requests per worker
  disk=GB                         the container's disk
  cuda=VERSION                    oldest CUDA of a host's driver; default: the image's own
  flashboot=yes|no                whether stopped workers keep their state for a faster start
  timeout=SECONDS                 how long one request may take
  volume=ID[,ID...]               network volumes
  datacenter=ID[,ID...]           where workers may run
  registry=ID                     RunPod's credential for a private image
  env.NAME=VALUE                  a variable; an empty value removes it; the endpoint's others stay
  secret.NAME=SECRET              a variable that holds one of RunPod's secrets, by its name
  tests=FILE|no                   requests to prove it with; default: .runpod/tests.json
  patience=SECONDS                how long a release, or an answer, may take; default: 1800
  poll=SECONDS                    between two looks at the workers; default: 5
  dry-run=yes (or --dry-run)      say what would be sent, and send nothing that changes anything
  delete=yes                      remove endpoint=NAME_OR_ID instead; nothing to remove is fine too

RUNPOD_API_KEY holds the key, and is never printed. RUNPOD_API_BASE_URL and RUNPOD_ENDPOINT_BASE_URL name other servers.
"""

NO_IDLE_TIME = "idle: RunPod takes no idle time where requests= decides over the workers of a queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for; None and empty mean that the endpoint's own, or RunPod's default, stays. Times in seconds, sizes in GB."""

    image: str = ""
    endpoint: str = ""
    type: str | None = None
    gpu: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    count: int | None = None
    workers: tuple[int, int] | None = None
    idle: int | None = None
    delay: float | None = None
    requests: int | None = None
    disk: int | None = None
    cuda: str | None = None
    flashboot: bool | None = None
    timeout: int | None = None
    volume: tuple[str, ...] | None = None
    datacenter: tuple[str, ...] | None = None
    registry: str | None = None
    tests: Path | None = None
    """None means that nothing is proved."""
    patience: float = 1800.0
    poll: float = 5.0
    dry_run: bool = False
    delete: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables, secrets among them as the reference that RunPod replaces; an empty text removes one."""


def hint(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ValueError("a number of seconds over 0")
    return value


def _workers(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    low, high = (int(found.group(1)), int(found.group(2) or found.group(1))) if found else (1, 0)
    if not low <= high or high == 0:
        raise ValueError("MIN..MAX such as 0..3, with at least one worker")
    return low, high


def _delay(text: str) -> float:
    if _seconds(text) < 0.5:
        raise ValueError("at least 0.5 seconds")
    return float(text)


def _idle(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 3600:
        raise ValueError("a whole number of seconds from 1 to 3600")
    return int(text)


def _cuda(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d+", text):
        raise ValueError("a version such as 12.6")
    return text


def _switch(text: str) -> bool:
    if text not in {"yes", "no"}:
        raise ValueError("yes or no")
    return text == "yes"


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _type(text: str) -> str:
    if text not in {"queue", "lb"}:
        raise ValueError("queue or lb")
    return text


def _word(text: str) -> str:
    if not text or text != text.strip():
        raise ValueError("a name")
    return text


_PARSERS: dict[str, Callable[[str], Any]] = {
    "image": _word,
    "endpoint": _word,
    "type": _type,
    "gpu": _list,
    "exclude": _list,
    "count": _positive,
    "workers": _workers,
    "idle": _idle,
    "delay": _delay,
    "requests": _positive,
    "disk": _positive,
    "cuda": _cuda,
    "flashboot": _switch,
    "timeout": _positive,
    "volume": _list,
    "datacenter": _list,
    "registry": _word,
    "tests": _word,
    "patience": _seconds,
    "poll": _seconds,
    "dry-run": _switch,
    "delete": _switch,
}


def read_order(words: Sequence[str], *, called_from: Path, default_tests: Path) -> Order:
    """Return the order that `words` (KEY=VALUE) make; files are meant from `called_from`.

    Raises:
        Refused: naming every word that is wrong, what it holds and what was expected.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    env: dict[str, str] = {}
    seen: set[str] = set()
    for word in words:
        key, equals, text = ("dry-run", "=", "yes") if word == "--dry-run" else word.partition("=")
        if not equals:
            problems.append(f"{word!r}: expected KEY=VALUE{hint(word.lstrip('-'), _PARSERS)}")
        elif key in seen:
            problems.append(f"{key}: given twice")
        elif "." in key and key.partition(".")[0] in {"env", "secret"}:
            _read_variable(key, text, env, problems)
        elif key not in _PARSERS:
            problems.append(f"{key}: unknown{hint(key, [*_PARSERS, 'env.NAME', 'secret.NAME'])}; expected one of {', '.join(_PARSERS)}")
        else:
            try:
                values[key.replace("-", "_")] = _PARSERS[key](text)
            except ValueError as error:
                problems.append(f"{key}: got {text!r}, expected {error}")
        seen.add(key)
    tests = values.pop("tests", None)
    order = Order(**values, tests=None if tests == "no" else called_from / tests if tests else default_tests, env=env)
    _check_together(order, problems)
    if problems:
        raise Refused(*problems)
    return order


def _read_variable(key: str, text: str, env: dict[str, str], problems: list[str]) -> None:
    kind, _, name = key.partition(".")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        problems.append(f"{key}: got the name {name!r}, expected letters, digits and _")
    elif name in env:
        problems.append(f"{name}: given as env. and as secret., expected one of them")
    elif kind == "secret" and not re.fullmatch(r"\w+", text):
        problems.append(f"{key}: expected the name of one of RunPod's secrets (letters, digits and _), not its value")
    else:
        env[name] = f"{{{{ RUNPOD_SECRET_{text} }}}}" if kind == "secret" else text


def _check_together(order: Order, problems: list[str]) -> None:
    if order.delete and not order.endpoint:
        problems.append("delete: expected endpoint=NAME_OR_ID beside it")
    if not order.delete and not order.image:
        problems.append("image: missing, expected image=REPOSITORY[:TAG|@DIGEST]")
    if order.exclude and not order.gpu:
        problems.append("exclude: expected gpu= beside it: pools and what is taken from them are one choice")
    if order.delay is not None and order.requests is not None:
        problems.append("delay, requests: got both, expected one of them")
    if order.type == "lb" and order.delay is not None:
        problems.append("delay: a load balancer has no queue, expected requests=N")
    # Without type= only the endpoint itself tells: `changes` refuses it there.
    if order.type == "queue" and order.idle is not None and order.requests is not None:
        problems.append(NO_IDLE_TIME)
