"""The operations of the gateway, with the worker's part of the job API spoken by hand: every state, limit and refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.tools.serve.by_hand import JSON, KEY, Gateway, serving
from tools.serve.job_table import PlatformLimits

pytestmark = pytest.mark.anyio
CHAT = "openai/v1/chat/completions"


@pytest.fixture
async def api() -> AsyncIterator[Gateway]:
    async with serving() as gateway:
        yield gateway


async def test_a_job_goes_from_queue_to_result(api: Gateway) -> None:
    job = await api.run({"prompt": "Hello"})
    assert await api.status(job) == {"id": job, "status": "IN_QUEUE"}
    assert await api.take() == {"id": job, "input": {"prompt": "Hello"}}
    running = await api.status(job)
    assert (running["status"], running["workerId"], "output" in running) == ("IN_PROGRESS", "w", False)
    await api.end(job, output=[{"text": "Hi"}])
    done = await api.status(job)
    assert (done["status"], done["output"]) == ("COMPLETED", [{"text": "Hi"}])
    assert done["delayTime"] >= 0
    assert done["executionTime"] >= 0
    assert (await api.call("POST", f"status/{job}"))[1] == done


async def test_runsync_waits_for_the_end_and_gives_the_id_when_that_takes_too_long(api: Gateway) -> None:
    asked = asyncio.create_task(api.call("POST", "runsync", {"input": 1}))
    job = (await api.take())["id"]
    assert job.startswith("sync-")
    await api.end(job, error="no")
    status, answer = await asked
    assert (status, answer["status"], answer["error"]) == (200, "FAILED", "no")

    _, answer = await api.call("POST", "runsync?wait=1000", {"input": 2})
    assert answer["status"] == "IN_QUEUE"
    await api.take()
    await api.end(answer["id"], output=[2])
    assert (await api.status(answer["id"]))["output"] == [2]


async def test_stream_gives_each_value_once_and_then_an_empty_list(api: Gateway) -> None:
    job = await api.run("x")
    await api.take()
    assert (await api.call("GET", f"stream/{job}"))[1]["stream"] == []
    await api.say(job, "a")
    await api.say(job, {"b": 1})
    _, first = await api.call("GET", f"stream/{job}")
    assert (first["status"], first["stream"]) == ("IN_PROGRESS", [{"output": "a"}, {"output": {"b": 1}}])
    await api.say(job, None)
    await api.end(job, output=["a", {"b": 1}, None])
    _, second = await api.call("POST", f"stream/{job}")
    assert (second["status"], second["stream"], "output" in second) == ("COMPLETED", [{"output": None}], False)
    assert (await api.call("GET", f"stream/{job}"))[1]["stream"] == []


async def test_cancel_takes_a_job_from_the_queue_or_from_its_worker(api: Gateway) -> None:
    first, second = await api.run(1), await api.run(2)
    assert (await api.call("POST", f"cancel/{first}"))[1] == {"id": first, "status": "CANCELLED"}
    assert (await api.take())["id"] == second
    assert (await api.call("POST", f"cancel/{second}"))[1]["status"] == "CANCELLED"
    assert await api.told_to_stop() == [second]
    assert (await api.status(second))["status"] == "CANCELLED"
    third = await api.run(3)
    await api.take()
    await api.end(third, output=[])
    assert (await api.call("POST", f"cancel/{third}"))[1]["status"] == "COMPLETED"


async def test_purge_leaves_what_runs_and_health_counts_everything(api: Gateway) -> None:
    _, before = await api.call("GET", "health")
    assert before["workers"] == {"idle": 0, "initializing": 1, "ready": 0, "running": 0, "throttled": 0, "unhealthy": 0}
    ended, failed, running = await api.run(1), await api.run(2), await api.run(3)
    for _ in range(3):
        await api.take()
    await api.end(ended, output=[])
    await api.end(failed, error="x")
    await api.run(4)
    await api.run(5)
    _, health = await api.call("GET", "health")
    assert health["jobs"] == {"completed": 1, "failed": 1, "inProgress": 1, "inQueue": 2, "retried": 0}
    assert health["workers"] == {"idle": 0, "initializing": 0, "ready": 1, "running": 1, "throttled": 0, "unhealthy": 0}
    assert (await api.call("POST", "purge-queue"))[1] == {"removed": 2, "status": "completed"}
    assert (await api.status(running))["status"] == "IN_PROGRESS"
    assert (await api.call("GET", "health"))[1]["jobs"]["inQueue"] == 0


async def test_a_failed_job_can_be_tried_again_under_its_id(api: Gateway) -> None:
    job = await api.run({"prompt": "x"})
    status, answer = await api.call("POST", f"retry/{job}")
    assert (status, "IN_QUEUE" in answer["error"]) == (400, True)
    await api.take()
    await api.end(job, error="x")
    assert (await api.call("POST", f"retry/{job}"))[1] == {"id": job, "status": "IN_QUEUE"}
    assert await api.status(job) == {"id": job, "status": "IN_QUEUE"}
    assert (await api.take())["input"] == {"prompt": "x"}
    await api.end(job, output=[1])
    assert (await api.status(job))["output"] == [1]
    assert (await api.call("GET", "health"))[1]["jobs"]["retried"] == 1


async def test_results_are_dropped_when_their_time_is_over_and_nothing_of_them_stays() -> None:
    async with serving(run_kept_s=0.3, runsync_kept_s=0.1) as api:
        job = await api.run("x")
        await api.take()
        await api.end(job, output=["y"])
        assert (await api.status(job))["output"] == ["y"]
        await api.gone(job)
        assert not api.table.entries
        assert not api.table.jobs.jobs

        kept = await api.run("x")
        await api.take()
        assert (await api.call("GET", f"status/{kept}?ttl=100"))[0] == 200
        await api.gone(kept)
        assert await api.told_to_stop() == [kept]


async def test_a_job_that_runs_too_long_times_out_and_its_worker_is_told() -> None:
    async with serving(execution_s=0.2) as api:
        job = await api.run("x")
        await asyncio.sleep(0.3)  # the queue does not count
        assert (await api.status(job))["status"] == "IN_QUEUE"
        await api.take()
        assert await api.told_to_stop() == [job]
        shown = await api.state(job, "TIMED_OUT")
        assert "0.2 s" in shown["error"]
        assert (await api.call("POST", f"retry/{job}"))[0] == 200


async def test_a_job_past_its_time_to_live_is_gone_even_while_it_runs() -> None:
    async with serving(least_ttl_s=0.1, least_execution_s=0.1) as api:
        job = await api.run("x", policy={"ttl": 200, "executionTimeout": 60_000, "lowPriority": True})
        await api.take()
        assert await api.told_to_stop() == [job]
        await api.gone(job)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "run", {}, 400, "input: missing"),
        ("POST", "run", [1], 400, "expected a JSON object"),
        ("POST", "run", {"input": 1, "policy": 5}, 400, "policy: expected an object"),
        ("POST", "run", {"input": 1, "policy": {"ttl": 9999}}, 400, "policy.ttl: got 9999"),
        ("POST", "run", {"input": 1, "policy": {"ttl": 604_800_001}}, 400, "policy.ttl"),
        ("POST", "run", {"input": 1, "policy": {"executionTimeout": True}}, 400, "policy.executionTimeout: got True"),
        ("POST", "runsync?wait=999", {"input": 1}, 400, "wait: got '999'"),
        ("POST", "runsync?wait=soon", {"input": 1}, 400, "wait: got 'soon'"),
        ("GET", "status/nope", None, 404, "job nope: not found"),
        ("GET", "stream/nope", None, 404, "job nope"),
        ("POST", "cancel/nope", None, 404, "job nope"),
        ("POST", "retry/nope", None, 404, "job nope"),
        ("GET", "run", None, 405, "wrong method"),
        ("GET", "nothing", None, 404, "no such route"),
    ],
)
async def test_what_is_wrong_is_named(api: Gateway, method: str, path: str, body: Any, status: int, says: str) -> None:
    got, answer = await api.call(method, path, body)
    assert got == status
    assert says in answer["error"]


async def test_only_the_owner_of_the_key_gets_in(api: Gateway) -> None:
    for given in ("", "Bearer wrong", "wrong", "Bearer"):
        status, answer = await api.call("POST", "run", {"input": 1}, Authorization=given)
        assert (status, "`Bearer KEY`" in answer["error"]) == (401, True)
    assert (await api.call("POST", "run", {"input": 1}, Authorization=KEY))[0] == 200, "RunPod's own examples send it bare"
    status, answer = await api.call("POST", CHAT, {"model": "demo"}, Authorization="x")
    assert (status, answer["error"]["type"]) == (401, "authentication_error")
    elsewhere = api.base.removesuffix("ep") + "other"
    async with api.client.post(f"{elsewhere}/run", json={"input": 1}) as response:
        assert response.status == 404
        assert "other: not found" in (await response.json())["error"]


@pytest.mark.parametrize(("path", "limit"), [("run", "run_bytes"), ("runsync", "runsync_bytes"), (CHAT, "runsync_bytes")])
async def test_a_body_above_the_limit_is_refused_whether_or_not_it_says_how_long_it_is(path: str, limit: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b" " * 500

    async with serving(**{limit: 1000}) as api:
        for data in (b" " * 2000, pieces()):
            async with api.client.post(f"{api.base}/{path}", data=data, headers=JSON) as response:
                assert response.status == 413
                assert "1000" in await response.text()
        assert not api.table.entries


async def test_the_documented_limits_are_the_defaults() -> None:
    limits = PlatformLimits()
    assert (limits.run_bytes, limits.runsync_bytes) == (10_000_000, 20_000_000)
    assert (limits.run_kept_s, limits.runsync_kept_s, limits.wait_s) == (30 * 60, 60, 90)
    assert (limits.execution_s, limits.ttl_s) == (600, 24 * 3600)


async def test_a_full_queue_answers_429() -> None:
    async with serving(queue=2) as api:
        await api.run(1)
        job = await api.run(2)
        status, answer = await api.call("POST", "run", {"input": 3})
        assert (status, "2 jobs" in answer["error"]) == (429, True)
        await api.call("POST", f"cancel/{job}")
        await api.run(3)
