"""The arguments of `ci/just deploy`, and the frozen `DeployOptions` that they become."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from images.arguments import Key, Kind, file_named, number, one_of, some, whole, yes_or_no

__all__ = ["KEYS", "NO_IDLE_TIME", "DeployOptions", "conflicts", "read_deploy_options"]

NO_IDLE_TIME = "idle: RunPod takes no idle time where requests= decides over the workers of a queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOptions:
    """What the command line sets; None and empty keep the endpoint's own value, or RunPod's default. Times in seconds, sizes in GB."""

    image: str = ""
    endpoint: str = ""
    type: str | None = None
    gpu: tuple[str, ...] = ()
    """Pools, and names of GPUs as people write them until they are looked up."""
    cpu: tuple[tuple[str, int], ...] = ()
    """CPU flavors, each with a number of vCPUs."""
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
    """None means that nothing is tested."""
    patience: float = 1800.0
    poll: float = 5.0
    dry_run: bool = False
    anyway: bool = False
    delete: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables, secrets among them as the reference that RunPod replaces; an empty text removes one."""


def _workers(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})(?:\.\.(\d{1,6}))?", text)
    low, high = (int(found.group(1)), int(found.group(2) or found.group(1))) if found else (1, 0)
    if not low <= high or high == 0:
        raise ValueError(text)
    return low, high


def _cuda(text: str) -> str:
    if not re.fullmatch(r"\d{1,3}\.\d{1,3}", text):
        raise ValueError(text)
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise ValueError(text)
    return names


def _flavors(text: str) -> tuple[tuple[str, int], ...]:
    found = [re.fullmatch(r"([a-z0-9]{1,20}):(2|4|8|16|32|64)", name) for name in _names(text)]
    if not all(found):
        raise ValueError(text)
    return tuple((one[1], int(one[2])) for one in found if one)


def _secret(text: str) -> str:
    if not re.fullmatch(r"\w+", text):
        raise ValueError(text)
    return text


_LIST = Kind("one or more, with commas between them", _names)
_SECONDS = number(0.001, 1e6)
KEYS = (
    Key("image", "What to run, REPOSITORY[:TAG|@DIGEST]; needed unless delete=yes.", check=some("an image")),
    Key(
        "endpoint", "Its name or id: rolled out to if it exists, created if not; default: the image's name.", check=some("a name or an id")
    ),
    Key("type", "How requests reach the workers; default for a new endpoint: queue.", check=one_of("queue", "lb")),
    Key("gpu", "GPU pools such as ADA_24, or GPUs such as RTX4090; a new endpoint needs gpu= or cpu=.", check=_LIST),
    Key("exclude", "GPU types of these pools that are not wanted.", check=_LIST),
    Key("cpu", "CPU flavors with their vCPUs, for an image of arch=cpu.", check=Kind("FLAVOR:VCPUS such as cpu5c:4", _flavors)),
    Key("count", "GPUs of one worker.", check=whole(1)),
    Key("workers", "How few and how many there may be; default for a new endpoint: 0..3.", check=Kind("MIN..MAX such as 0..3", _workers)),
    Key("idle", "Seconds that a worker waits for the next request before it is stopped.", check=whole(1, 3600)),
    Key("delay", "Seconds in the queue after which it gets more workers.", check=number(0.5, 1e6)),
    Key("requests", "Requests for each worker, above which there are more workers.", check=whole(1)),
    Key("disk", "Container disk in GB.", check=whole(1)),
    Key("cuda", "Oldest CUDA version of a host's driver; default: the image's own.", check=Kind("a version such as 12.6", _cuda)),
    Key("flashboot", "Whether stopped workers keep their state for a faster start.", check=yes_or_no),
    Key("timeout", "Seconds that one request may take.", check=whole(1)),
    Key("volume", "Ids of network volumes.", check=_LIST),
    Key("datacenter", "Ids of data centers where workers may run.", check=_LIST),
    Key("registry", "Id of RunPod's credential for a private image.", check=some("an id")),
    Key("env.NAME", "A variable; an empty value removes it; the endpoint's other variables stay.", secret=True),
    Key(
        "secret.NAME", "A variable that holds one of RunPod's secrets.", check=Kind("a secret's name, not its value", _secret), secret=True
    ),
    Key("tests", "A file of requests to test it with, or no; default: .runpod/tests.json.", check=some("a file, or no")),
    Key("patience", "Seconds that a release, or an answer, may take.", default="1800", check=_SECONDS),
    Key("poll", "Seconds between two looks at the workers.", default="5", check=_SECONDS),
    Key("dry-run", "Show what would be sent, and change nothing.", default="no", check=yes_or_no),
    Key("anyway", "Go on although the model does not fit the GPUs.", default="no", check=yes_or_no),
    Key("delete", "Remove the endpoint instead.", default="no", check=yes_or_no),
)


def read_deploy_options(values: Mapping[str, str], *, default_tests: Path, environment: Mapping[str, str]) -> DeployOptions:
    """Return the options for the values of KEYS."""
    fields: dict[str, Any] = {
        key.name.replace("-", "_"): key.check(values[key.name]) for key in KEYS if not key.is_family and key.check and values[key.name]
    }
    fields["tests"] = {"": default_tests, "no": None}.get(values["tests"], file_named(values["tests"], environment))
    secrets = {name: f"{{{{ RUNPOD_SECRET_{text} }}}}" for name, text in _family("secret", values)}
    return DeployOptions(**fields, env=dict(_family("env", values)) | secrets)


def conflicts(values: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each combination of values that is not possible, and for each variable whose name is none."""
    names = [name for kind in ("env", "secret") for name, _ in _family(kind, values)]
    for name in dict.fromkeys(names):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"env.{name}: got the name {name!r}, expected letters, digits and _"
        if names.count(name) > 1:
            yield f"{name}: given as env. and as secret., expected one of them"
    if values["delete"] == "yes":
        if not values["endpoint"]:
            yield "delete: expected endpoint=NAME_OR_ID beside it"
    elif not values["image"]:
        yield "image: missing, expected image=REPOSITORY[:TAG|@DIGEST]"
    if values["exclude"] and not values["gpu"]:
        yield "exclude: expected gpu= beside it: pools and what is taken from them are one choice"
    if values["cpu"] and any(values[key] for key in ("gpu", "exclude", "count", "cuda")):
        yield "cpu: got it beside gpu=, exclude=, count= or cuda=, expected one kind of hardware"
    if values["delay"] and values["requests"]:
        yield "delay, requests: got both, expected one of them"
    if values["delay"] and values["type"] == "lb":
        yield "delay: a load balancer has no queue, expected requests=N"
    # Without type= the kind of the endpoint is not known yet: `endpoint_changes` refuses it then.
    if values["type"] == "queue" and values["idle"] and values["requests"]:
        yield NO_IDLE_TIME


def _family(kind: str, values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name behind `kind.` and the value of each key of a family."""
    for key, text in values.items():
        before, dot, name = key.partition(".")
        if dot and before == kind:
            yield name, text
