"""The end of a worker with its HTTP face: what runs is finished within the grace, nothing new is taken, the exit code is true."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import aiohttp
import pytest

from tests.handler.test_http import free_port, ready, serving
from tests.handler.test_http_limits import CHAT, SLOW, STREAM, Raw, request, serving_ready
from tests.handler.worker_process import Worker, replayed_engine

pytestmark = pytest.mark.anyio


async def test_after_term_streams_are_finished_and_nothing_new_is_taken() -> None:
    async with serving_ready(SLOW) as (worker, url, session), Raw.open(url) as idle, Raw.open(url) as second:
        async with session.post(url + CHAT, json=STREAM | {"max_tokens": 60}) as answer:
            await answer.content.readuntil(b"\n\n")
            worker.signal(signal.SIGTERM)
            await until_503(idle)
            status, headers, body = await second.ask(request("POST", CHAT, json.dumps(STREAM).encode()))
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert json.loads(body)["error"]["code"] == "shutting_down"
            rest = await answer.content.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await worker.wait() == 0
        assert not worker.left_behind()
        assert "Traceback" not in worker.output


async def until_503(connection: Raw) -> None:
    for _ in range(200):
        status, _, _ = await connection.ask(request("GET", "/ping"))
        if status == 503:
            return
        await asyncio.sleep(0.02)
    pytest.fail("/ping said that all is well 4 s after the worker was asked to leave")


@pytest.mark.parametrize("again", [False, True], ids=["when the grace is over", "when asked twice"])
async def test_streams_that_are_not_finished_end_with_an_error_frame_and_the_worker_with_0(again: bool) -> None:
    async with serving_ready(SLOW | {"HTTP_DRAIN_TIMEOUT": "300" if again else "0.5"}) as (worker, url, session):
        async with session.post(url + CHAT, json=STREAM) as answer, Raw.open(url) as check:
            await answer.content.readuntil(b"\n\n")
            worker.signal(signal.SIGTERM)
            if again:
                await until_503(check)
                worker.signal(signal.SIGTERM)
            rest = await answer.content.read()
        assert json.loads(rest.rpartition(b"data: ")[2])["error"]["code"] == "shutting_down"
        worker.signal(signal.SIGTERM)  # while the engine is being stopped: changes nothing
        assert await worker.wait() == 0
        assert not worker.left_behind()


async def test_connections_without_a_request_do_not_delay_the_end() -> None:
    async with serving_ready(SLOW) as (worker, url, _), Raw.open(url) as idle, Raw.open(url):
        await idle.ask(request("GET", "/v1/models"))
        started = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        assert time.monotonic() - started < 5


async def test_a_worker_that_is_asked_to_leave_while_it_loads_ends_with_0() -> None:
    async with serving(replayed_engine("--start-delay", "60")) as (worker, url), aiohttp.ClientSession() as session:
        async with session.get(url + "/ping") as ping:
            assert ping.status == 204
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        assert not worker.left_behind()


async def test_the_health_check_has_its_own_port_and_path_where_the_platform_says_so() -> None:
    main, health = free_port(), free_port()
    ports = {"PORT": str(main), "PORT_HEALTH": str(health), "HEALTH_CHECK_PATH": "/up/now"}
    async with Worker(replayed_engine(), ports, {"RUNPOD_ENDPOINT_TYPE": "LB"}) as worker, aiohttp.ClientSession() as session:
        await worker.wait_line("answering on port")
        await ready(session, f"http://127.0.0.1:{health}")
        for port in (main, health):
            for path in ("/ping", "/up/now", "/metrics"):
                async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                    assert answer.status == 200
            async with session.get(f"http://127.0.0.1:{port}/v1/models") as answer:
                assert answer.status == (200 if port == main else 404)
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0


@pytest.mark.parametrize("path", ["ping", "/v1/ping", "/openai", "/metrics", "/a b", "/{x}"])
async def test_a_path_for_the_check_that_cannot_be_one_stops_the_start(path: str) -> None:
    async with Worker(replayed_engine(), {"PORT": "1", "HEALTH_CHECK_PATH": path}) as worker:
        await worker.wait_line("HEALTH_CHECK_PATH: got .*, expected a plain path such as /ping")
        assert await worker.wait() == 1


async def test_an_endpoint_of_the_load_balancing_kind_takes_no_jobs_whatever_else_the_platform_sets() -> None:
    queue = {"RUNPOD_ENDPOINT_TYPE": "LB", "RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/v2/x/job-take/$ID?gpu=x"}
    async with serving(replayed_engine() | queue) as (worker, url), aiohttp.ClientSession() as session:
        await ready(session, url)
        assert "job-take" not in worker.output
