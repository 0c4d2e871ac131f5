"""The worker's own loop beside the loop of RunPod's SDK: the same jobs, the same server, the same traffic but for the rows of a table.

When a new SDK sends something else, the test says what: then job_api.py follows, or the row is changed with its reason.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

from tests.handler.test_queue import chat
from tests.handler.worker_process import Worker, replayed_engine
from tools.serve.job_server import JobServer, Traffic

pytestmark = pytest.mark.anyio

DIFFERENCES = {
    "every: header accept-encoding: sdk 'gzip, deflate', worker none": "an answer is a few bytes, and unpacking needs a bound",
    "every: header user-agent: sdk 'RunPod-Python-SDK', worker 'worker-fastdeploy'": "it says what it is",
    "GET: header content-type: sdk 'application/json', worker none": "a GET has no content",
    "ping: header accept-encoding: sdk 'gzip, deflate, br, zstd', worker 'identity'": "the standard library's own, which unpacks nothing",
    "ping: header connection: sdk 'keep-alive', worker 'close'": "one request in ten seconds, from a thread of its own",
    "ping: header user-agent: sdk 'python-requests', worker 'worker-fastdeploy'": "it says what it is",
    "ping: query runpod_version": "the worker has no SDK whose version it could send",
    "job-stream: of an answer that is not a stream: sdk 1, worker 0": "the result follows at once, with the same",
    "job-take: header x-request-id": "the SDK sets it on its whole session, so that polls and other jobs' posts carry it as well",
}
"""Each difference and its reason."""

JOBS: dict[str, Any] = {
    "whole": chat(),
    "stream": chat(stream=True),
    "wrong": chat(temperature="hot"),
    "models": {"openai_route": "/v1/models", "openai_input": {}},
    "native": {"prompt": "Hello", "stream": True},
}


async def traffic_of(loop: str) -> dict[str, list[Traffic]]:
    """What a worker sends while it answers `JOBS` one after the other and is asked to stop, by kind of request."""
    async with JobServer(poll_s=2) as server:
        server.traffic = []
        engine = replayed_engine("--synthetic", "--tokens-per-second", "200", "--tokens", "5")
        async with Worker(engine, server.environment("w"), {"JOB_LOOP": loop, "MAX_CONCURRENCY": "4"}) as worker:
            await server.wait_worker(40)
            for name, job_input in JOBS.items():
                await server.submit(job_input, id=f"job-{name}").wait_done(30)
            await server.wait_ping(lambda ping: not ping.jobs, 20)
            worker.signal(signal.SIGTERM)
            assert await worker.wait(60) == 0, worker.output
        assert not server.problems
        found = defaultdict(list)
        for one in server.traffic:
            found[kind_of(one)].append(one)
        return found


def kind_of(one: Traffic) -> str:
    return one.path.split("/")[3].removesuffix("-batch")


def shapes(kind: str, found: Iterable[Traffic]) -> dict[str, set[str]]:
    """Every fact of the requests of a kind: method, path, queries, headers and the keys of bodies, with what changes left out."""
    facts: dict[str, set[str]] = defaultdict(set)
    for one in found:
        facts["method"].add(one.method)
        facts["path"].add(re.sub(r"/job-[a-z]+$", "/JOB", one.path).replace("-batch", ""))
        for name, value in one.query.items():
            facts[f"query {name}"].add("*" if name in {"batch_size", "job_id", "job_in_progress", "runpod_version"} else value)
        for name, value in one.headers.items():
            changes = name.lower() in {"host", "content-length", "x-request-id"}
            facts[f"header {name.lower()}"].add("*" if changes else value.partition("/")[0] if name.lower() == "user-agent" else value)
        if one.body:
            facts["body"].add(",".join(sorted(json.loads(one.body))))
    return facts


def differences(sdk: dict[str, list[Traffic]], ours: dict[str, list[Traffic]]) -> set[str]:
    """One line for each fact in which the two differ; what differs in every kind is said once."""
    found: dict[str, set[str]] = defaultdict(set)
    for kind in sorted({*sdk, *ours}):
        theirs, own = shapes(kind, sdk.get(kind, [])), shapes(kind, ours.get(kind, []))
        for fact in sorted({*theirs, *own}):
            if theirs[fact] != own[fact]:
                shown = [" or ".join(sorted(map(repr, values))) or "none" for values in (theirs[fact], own[fact])]
                said = fact if "'*'" in shown else f"{fact}: sdk {shown[0]}, worker {shown[1]}"
                found[said].add(kind)
    kinds = set(sdk)
    gets = {"job-take", "job-stop", "ping"}
    lines = set()
    for said, where in found.items():
        if where == kinds or where == kinds - {"ping"}:
            lines.add(f"every: {said}")
        elif where in (gets, gets - {"ping"}):
            lines.add(f"GET: {said}")
        else:
            lines |= {f"{kind}: {said}" for kind in where}
    return lines


async def test_both_loops_send_the_same_but_for_what_the_table_explains() -> None:
    sdk, ours = await asyncio.gather(traffic_of("sdk"), traffic_of("worker"))
    found = differences(sdk, ours)
    streams = [sum(one.path.endswith("/job-whole") for one in traffic["job-stream"]) for traffic in (sdk, ours)]
    if streams[0] != streams[1]:
        found.add(f"job-stream: of an answer that is not a stream: sdk {streams[0]}, worker {streams[1]}")
    print("\n".join(sorted(found)))
    assert found == set(DIFFERENCES)
