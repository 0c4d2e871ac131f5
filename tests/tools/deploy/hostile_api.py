"""RunPod's API behind a proxy that lies, and deployments that must survive it; a trial is drawn from its seed.

The proxy stands before `tests.twins.rest_api`. Each answer of the API may be replaced or bent: a limit without end, an error, no answer, an
empty or endless or broken body, JSON of another form, a redirect, the key sent back. What must hold, whatever happens:

1. `deploy` ends, within `LONGEST` seconds and with 0, 1 or 2.
2. It prints no traceback, no key, and no value of a secret variable.
3. There are never two endpoints of the name, and no other endpoint is touched.
4. An endpoint that it created is there no more, or is named with what is left; one that it was to change keeps its other variables.
5. The key goes nowhere but to the API.

Not among the lies: a well-formed answer that is not true, such as a list without an endpoint that is there; nothing could show it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from tests import ROOT
from tests.twins.rest_api import KEY, SICK, Twin

__all__ = ["LIES", "Tally", "Trial", "draw", "run_trials"]

LONGEST = 40.0
TESTS = {
    "tests": [
        {"name": "stream", "input": {"openai_route": "/v1/chat/completions", "openai_input": {"stream": True}}, "timeout": 1500},
        {"name": "job", "input": {"prompt": "Hello"}, "timeout": 1500},
    ]
}
"""What the endpoint is tested with: the proxy lies about these answers too."""
PASSWORD = "correct-horse-battery"
SCENARIOS = ("create", "create, sick", "change", "change, sick", "remove")
LIES = (
    "limit",
    "error",
    "dropped before",
    "dropped after",
    "empty",
    "not json",
    "deep",
    "endless",
    "cut short",
    "bent",
    "other id",
    "redirect",
    "key sent back",
    "odd headers",
)
FOREVER = frozenset({"limit", "error", "empty", "bent"})
"""Lies that may befall every request of a trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one seed stands for."""

    seed: int
    scenario: str
    lies: tuple[str, ...]
    share: float
    """Of the API's answers that are lies."""


def draw(seed: int) -> Trial:
    """Return the trial of a seed."""
    rng = random.Random(seed)
    scenario, share = rng.choice(SCENARIOS), rng.choice((0.1, 0.3, 0.6, 1.0))
    lies = tuple(sorted(FOREVER)) if share == 1.0 else tuple(rng.sample(LIES, rng.randint(1, 4)))
    return Trial(seed=seed, scenario=scenario, lies=(rng.choice(lies),) if share == 1.0 else lies, share=share)


class HostileProxy:
    """An HTTP server before the twin, as an async context manager; `stolen` has what the key was sent to beside the API."""

    def __init__(self, twin: Twin, trial: Trial) -> None:
        self._twin, self._trial, self._rng = twin, trial, random.Random(trial.seed)
        self._waits = [self._rng.choice(WAITS)] if trial.share == 1.0 else WAITS
        self.stolen: list[str] = []
        self.told: Counter[str] = Counter()

    async def __aenter__(self) -> HostileProxy:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        for _ in range(2):  # the second is somebody else's
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        ports = [address[1] for address in self._runner.addresses]
        self.url, self._elsewhere = f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.host == self._elsewhere:
            self.stolen += [f"{request.method} {request.path}"] * ("Authorization" in request.headers)
            return web.json_response({})
        lie = self._rng.choice(self._trial.lies) if self._rng.random() < self._trial.share else ""
        self.told[lie or "truth"] += 1
        if lie in {"limit", "error", "dropped before", "redirect", "key sent back"}:
            return self._instead(request, lie)
        status, body = await self._forward(request)
        if lie == "dropped after":
            return self._drop(request)
        if lie in {"endless", "cut short"}:
            return await self._streamed(request, lie, body)
        headers = {"Content-Type": "application/json"}
        if lie == "odd headers":
            headers = {"Content-Type": "application/json; charset=no-such-charset", "Content-Encoding": "gzip"}
        replaced = {
            "empty": self._rng.choice([b"", b"{}", b"null", b"[]", b" "]),
            "not json": self._rng.choice([b"<html>no</html>", b"\xff\xfe", b"{'id': 1}", b'{"id":']),
            "deep": b"[" * 60_000,
            "bent": self._bent(body),
            "other id": self._with_other_id(body),
        }
        return web.Response(status=status, body=replaced.get(lie, body), headers=headers)

    def _instead(self, request: web.Request, lie: str) -> web.StreamResponse:
        if lie == "dropped before":
            return self._drop(request)
        if lie == "limit":
            headers = {"Retry-After": self._rng.choice(self._waits)}
            return web.json_response({"detail": "slow down", "title": "Too Many Requests"}, status=429, headers=headers)
        if lie == "redirect":
            return web.Response(
                status=self._rng.choice([301, 302, 307, 308]), headers={"Location": f"http://{self._elsewhere}{request.path}"}
            )
        key = request.headers.get("Authorization", "")
        if lie == "key sent back":
            body = self._rng.choice(
                [{"title": key, "detail": f"wrong key {key}", "errors": [key]}, {"id": key, "name": key}, {"error": key}]
            )
            return web.json_response(body, status=self._rng.choice([200, 400, 401, 422, 500]))
        return web.Response(status=self._rng.choice([500, 502, 503, 504]), text=self._rng.choice(["", "<html>", "\x1b[2Jgone", "{}"]))

    async def _forward(self, request: web.Request) -> tuple[int, bytes]:
        headers = {name: value for name, value in request.headers.items() if name in {"Authorization", "Content-Type"}}
        url = f"http://{self._twin.address}{request.rel_url}"
        async with self._session.request(request.method, url, data=await request.read(), headers=headers) as answer:
            if request.path.endswith("/logs"):  # it has no end
                return answer.status, await answer.content.readany()
            return answer.status, await answer.read()

    def _drop(self, request: web.Request) -> web.StreamResponse:
        assert request.transport
        request.transport.abort()
        return web.Response()

    async def _streamed(self, request: web.Request, lie: str, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if lie == "cut short":
            response.content_length = len(body) + 1000
        await response.prepare(request)
        with contextlib.suppress(OSError):
            await response.write(body[: len(body) // 2])
            for _ in range(40 if lie == "endless" else 0):
                await response.write(b" " * (1 << 20))
        return self._drop(request)

    def _bent(self, body: bytes) -> bytes:
        """One place of the JSON value removed, or made another type."""
        with contextlib.suppress(ValueError):
            value = json.loads(body)
            places = list(_places(value))
            if places:
                holder, name = self._rng.choice(places)
                # Without one of its variables an endpoint would still be well-formed.
                if isinstance(holder, dict) and not name.isupper() and self._rng.random() < 0.3:
                    del holder[name]
                else:
                    holder[name] = self._rng.choice([odd for odd in ODD if type(odd) is not type(holder[name])])
            return json.dumps(value).encode()
        return body

    def _with_other_id(self, body: bytes) -> bytes:
        with contextlib.suppress(ValueError):
            value = json.loads(body)
            if isinstance(value, dict) and "id" in value:
                return json.dumps({**value, "id": self._rng.choice([OTHER, "../" + OTHER, "", "a b", "x" * 5000])}).encode()
        return body


WAITS = ["0", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "", "999999999999", "9" * 400]
OTHER = "ep000000"
"""The endpoint that is none of deploy's business: the first of the twin."""
ODD: list[Any] = [None, True, 7, -1.5, "text", ["x"], {"x": 1}]


def _places(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, (dict, list)):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield value, name
            yield from _places(value[name])


@dataclass(slots=True)
class Tally:
    """What was seen over all trials."""

    trials: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return the figures, for a person."""
        kinds = ("endless", "traceback", "secret", "second endpoint", "other endpoint", "left unnamed", "variable lost", "key elsewhere")
        rows = [f"{name:14} {number:6}" for name, number in sorted(self.trials.items())]
        rows += [f"exit code {code:4} {number:6}" for code, number in sorted(self.codes.items())]
        rows += [f"{kind:16} {sum(f' {kind}:' in failure for failure in self.failures):4}" for kind in kinds]
        told = ", ".join(f"{name} {number}" for name, number in sorted(self.told.items()))
        return "\n".join([*rows, f"slowest trial {self.slowest:.1f} s", f"answers: {told}"])


class Forks:
    """The process that runs deployments, as an async context manager."""

    async def __aenter__(self) -> Forks:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.tools.deploy.forked", cwd=ROOT, env=environment(), stdin=-1, stdout=-1, limit=1 << 26
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()

    async def deploy(self, words: list[str], variables: dict[str, str]) -> dict[str, Any]:
        """Run one, and return how it ended."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"words": words, "variables": variables, "longest": LONGEST}).encode() + b"\n")
        found: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return found


def environment() -> dict[str, str]:
    """The test's own environment without what would steer a deployment, and with a hub that is not there."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("RUNPOD_", "HF_", "MODEL"))}
    return inherited | {"HF_ENDPOINT": "http://127.0.0.1:9"}


async def run_trials(seeds: Iterable[int], say: Any = print) -> Tally:
    """Run the trials of these seeds, one after the other, and return what was seen."""
    tally = Tally()
    async with Forks() as forks:
        for seed in seeds:
            trial = draw(seed)
            async with Twin() as twin, HostileProxy(twin, trial) as proxy:
                failures, seconds, code = await _one(trial, twin, proxy, forks)
                tally.told += proxy.told
            tally.trials[trial.scenario] += 1
            tally.codes[-1 if code is None else code] += 1
            tally.slowest = max(tally.slowest, seconds)
            tally.failures += [f"seed={seed} ({trial.scenario}; {', '.join(trial.lies)}; {trial.share:g}) {one}" for one in failures]
            for one in failures:
                say(f"FAILED: {tally.failures[-1] if one is failures[-1] else one}")
    return tally


async def _one(trial: Trial, twin: Twin, proxy: HostileProxy, forks: Forks) -> tuple[list[str], float, int | None]:
    twin.add("other", env={"MODEL": "org/other"})
    new = twin.push("worker", "2", IMAGE_ARCHITECTURES="80,86,89,90", IMAGE_CUDA="12.6")
    if not trial.scenario.startswith("create"):
        twin.add("mine", env={"MODEL": "org/model", "KEPT": "1", "MY_PASSWORD": PASSWORD}, workers={"min": 1, "max": 3})
    if trial.scenario.endswith("sick"):
        twin.scripts[new] = SICK
    before = copy.deepcopy(twin.endpoints)
    words = ["endpoint=mine", "poll=0.02", "patience=1.5"]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as tests:
        tests.write(json.dumps(TESTS))
        tests.flush()
        if trial.scenario == "remove":
            words += ["delete=yes"]
        else:
            words += [f"image={twin.address}/me/worker:2", "gpu=ADA_24", "env.MAX_NUM_SEQS=4", f"tests={tests.name}"]
        variables = {"RUNPOD_API_BASE_URL": proxy.url, "RUNPOD_ENDPOINT_BASE_URL": f"{proxy.url}/queue", "RUNPOD_API_KEY": KEY}
        ended = await forks.deploy(words, variables)
    return list(complaints(trial, ended, before, twin, proxy)), ended["seconds"], ended["code"]


def complaints(trial: Trial, ended: dict[str, Any], before: dict[str, Any], twin: Twin, proxy: HostileProxy) -> Iterable[str]:
    """Yield what must not have happened."""
    printed, code = str(ended["printed"]), ended["code"]
    if code is None:
        yield f"endless: {printed[-300:]!r}"
        return
    if "Traceback" in printed or code not in (0, 1, 2):
        yield f"traceback: exit code {code}: {printed[-1500:]}"
    if KEY in printed or PASSWORD in printed:
        yield f"secret: {printed[-1500:]}"
    if "\x1b" in printed:
        yield f"traceback: a control character: {printed[-300:]!r}"
    mine = [one for one in twin.endpoints.values() if one["name"] == "mine"]
    if len(mine) > 1:
        yield f"second endpoint: {[one['id'] for one in mine]}"
    if twin.endpoints.get(OTHER) != before[OTHER]:
        yield f"other endpoint: {twin.endpoints.get(OTHER)}"
    new = [one for one in mine if one["id"] not in before]
    if new and code and not (new[0]["id"] in printed or "mine may have been created" in printed or "no endpoint mine" in printed):
        yield f"left unnamed: {new[0]['id']}: {printed[-1500:]}"
    old = [one for one in mine if one["id"] in before]
    if old and (old[0]["env"].get("KEPT"), old[0]["env"].get("MY_PASSWORD")) != ("1", PASSWORD):
        yield f"variable lost: {old[0]['env']}: {printed[-1500:]}"
    if trial.scenario.startswith("change") and not old:
        yield f"other endpoint: the one that was to be changed is gone: {printed[-1500:]}"
    changed = json.dumps(old) != json.dumps([one for one in before.values() if one["name"] == "mine"])
    if changed and code and "mine" not in printed:
        yield f"left unnamed: a change of mine: {printed[-1500:]}"
    if proxy.stolen:
        yield f"key elsewhere: {proxy.stolen}"
