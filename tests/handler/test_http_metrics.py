"""What /metrics says, read by Prometheus's own parsers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from handler.job import ROUTES
from tests.handler.test_http import MESSAGES, free_port, ready, serving
from tests.handler.test_http_limits import CHAT, SLOW, STREAM, serving_ready
from tests.handler.worker_process import Worker, aborted_at, replayed_engine
from tools.serve.job_server import JobServer

pytestmark = pytest.mark.anyio

Figures = dict[str, float]


async def figures(session: aiohttp.ClientSession, url: str) -> Figures:
    """Each sample by its name with its labels, such as `worker_requests_total{route="/v1/models",status="200"}`."""
    async with session.get(url + "/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = await answer.text()
    found = {}
    for family in prometheus_text(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def until(session: aiohttp.ClientSession, url: str, wanted: Callable[[Figures], bool]) -> Figures:
    found: Figures = {}
    for _ in range(200):
        found = await figures(session, url)
        if wanted(found):
            return found
        await asyncio.sleep(0.05)
    pytest.fail(f"not within 10 s: {found}")


async def test_requests_tokens_and_times_are_counted_for_streams_and_whole_answers() -> None:
    engine = replayed_engine("--synthetic", "--tokens-per-second", "50", "--tokens", "1000")
    async with serving_ready(engine) as (_, url, session):
        body = {"messages": MESSAGES, "max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
        for more in ({}, {"stream": False, "stream_options": None}):
            async with session.post(url + CHAT, json=body | more) as answer:
                assert answer.status == 200
                await answer.read()
        async with session.get(url + "/openai/v1/models/demo") as answer:
            assert answer.status == 501, "never recorded"
        async with session.post(url + CHAT, data=b"{", headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 400
        found = await figures(session, url)
        assert found[f'worker_requests_total{{route="{CHAT}",status="200"}}'] == 2
        assert found[f'worker_requests_total{{route="{CHAT}",status="400"}}'] == 1
        assert found['worker_requests_total{route="/v1/models",status="501"}'] == 1
        assert found[f'worker_e2e_request_latency_seconds_count{{route="{CHAT}"}}'] == 2
        assert 0.7 < found[f'worker_e2e_request_latency_seconds_sum{{route="{CHAT}"}}'] < 20, "20 tokens, 50 a second, twice"
        assert found["worker_prompt_tokens_total"] == 32 * found["worker_time_to_first_token_seconds_count"]
        assert 40 <= found["worker_generation_tokens_total"] <= 42, "the last frame has no token, only the reason of the end"
        assert found["worker_time_to_first_token_seconds_count"] == 2
        assert found["worker_time_per_output_token_seconds_count"] == 2
        assert 0.01 < found["worker_time_per_output_token_seconds_sum"] / 2 < 0.1, "50 a second are 0.02 s each"
        assert (found["worker_num_requests_running"], found["worker_num_requests_waiting"], found["worker_queue_depth"]) == (0, 0, 0)
        assert found["process_resident_memory_bytes"] > 10_000_000
        assert found["process_open_fds"] > 3
        assert found["worker_engine_restarts_total"] == 0
        assert 0 < found['worker_cold_start_seconds{phase="engine started"}'] < found['worker_cold_start_seconds{phase="engine answered"}']


async def test_what_runs_waits_and_queues_is_seen_while_it_does() -> None:
    async with serving_ready(SLOW | {"MAX_NUM_SEQS": "2", "MAX_CONCURRENCY": "9"}) as (worker, url, session):
        answers = [asyncio.create_task(session.post(url + CHAT, json=STREAM)) for _ in range(3)]
        running = [await answer for answer in answers]
        for answer in running:
            await answer.content.readuntil(b'"content":" engine"')
        found = await figures(session, url)
        assert (found["worker_num_requests_running"], found["worker_num_requests_waiting"], found["worker_queue_depth"]) == (3, 0, 1)
        for answer in running:
            answer.close()
        await aborted_at(worker.engine_url)
        found = await until(session, url, lambda now: now.get(f'worker_requests_total{{route="{CHAT}",status="499"}}') == 3)
        assert (found["worker_num_requests_running"], found["worker_num_requests_waiting"], found["worker_queue_depth"]) == (0, 0, 0)
        assert found["worker_generation_tokens_total"] > 5, "also of answers that nobody wanted to the end"
        assert found["worker_time_per_output_token_seconds_count"] == 0


async def test_a_request_without_an_answer_yet_is_seen_to_wait() -> None:
    engine = replayed_engine("--synthetic", "--tokens-per-second", "0.2", "--tokens", "9", "--spare", "1")
    async with serving_ready(engine | {"ENGINE_STARTUP_TIMEOUT": "55"}) as (_, url, session):
        for stream in (True, False):
            asked = asyncio.create_task(session.post(url + CHAT, json=STREAM | {"stream": stream}))
            await until(session, url, lambda now: now["worker_num_requests_waiting"] == 1)
            asked.cancel()
            [begun] = await asyncio.gather(asked, return_exceptions=True)
            if isinstance(begun, aiohttp.ClientResponse):  # its head came before the cancellation
                begun.close()
            await until(session, url, lambda now: now["worker_num_requests_waiting"] == 0)


async def test_the_state_of_the_worker_is_one_of_all() -> None:
    async with serving(replayed_engine("--start-delay", "1")) as (worker, url), aiohttp.ClientSession() as session:

        async def states() -> dict[str, float]:
            found = await figures(session, url)
            return {name.split('"')[1]: value for name, value in found.items() if name.startswith("worker_state{")}

        assert await states() == {"starting": 1, "ready": 0, "draining": 0, "stopped": 0, "dead": 0}
        await ready(session, url)
        assert (await states())["ready"] == 1
        assert sum((await states()).values()) == 1
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0


async def test_clients_cannot_make_the_figures_grow() -> None:
    async with serving_ready(replayed_engine()) as (_, url, session):

        async def ask_oddly(number: int) -> None:
            odd = (f"/v1/{number}", f"/{number}", f"/v1/models/{number}", f"/openai/v1/x{number}?q={number}")
            for path in odd:
                for method in ("GET", "POST", "PATCH"):
                    async with session.request(method, url + path, json={"model": f"m{number}"}):
                        pass

        await ask_oddly(0)
        before = await figures(session, url)
        for number in range(1, 20):
            await ask_oddly(number)
        found = await figures(session, url)
        assert set(found) == set(before)
        routes = {name.split('route="')[1].split('"')[0] for name in found if "route=" in name}
        assert routes <= {*ROUTES, "other"}
        assert len(json.dumps(found)) < 20_000


async def test_who_asks_for_openmetrics_gets_it() -> None:
    async with serving_ready(replayed_engine()) as (_, url, session):
        async with session.get(url + "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            names = {family.name for family in open_metrics(await answer.text())}  # type: ignore[no-untyped-call]
        assert {"worker_requests", "worker_time_to_first_token_seconds", "worker_state", "process_cpu_seconds"} <= names


async def test_a_worker_that_takes_jobs_offers_its_figures_where_a_port_is_named(jobs: JobServer) -> None:
    port = free_port()
    async with Worker(replayed_engine(), jobs.environment(), {"PORT": str(port)}) as worker, aiohttp.ClientSession() as session:
        assert (await jobs.submit({"openai_route": CHAT, "openai_input": {"messages": MESSAGES, "stream": True}}).wait_done(30))["output"]
        assert (await jobs.submit({"openai_route": CHAT, "openai_input": {}}).wait_done(30))["error"]
        found = await figures(session, f"http://127.0.0.1:{port}")
        assert found[f'worker_requests_total{{route="{CHAT}",status="200"}}'] == 1
        assert found['worker_requests_total{route="other",status="400"}'] == 1
        assert found["worker_generation_tokens_total"] > 3
        assert found["worker_time_to_first_token_seconds_count"] == 1
        assert found['worker_state{state="ready"}'] == 1
        assert found['worker_cold_start_seconds{phase="taking jobs"}'] > 0
        async with session.get(f"http://127.0.0.1:{port}/ping") as ping:
            assert ping.status == 200
        async with session.get(f"http://127.0.0.1:{port}/v1/models") as answer:
            assert answer.status == 404, "jobs come by the queue"
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
        assert not worker.left_behind()


async def test_a_worker_whose_port_is_taken_takes_jobs_all_the_same(jobs: JobServer) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104
        taken.listen()
        port = {"PORT_HEALTH": str(taken.getsockname()[1])}
        async with Worker(replayed_engine(), jobs.environment(), port) as worker:
            assert (await jobs.submit({"openai_route": "/v1/models"}).wait_done(30))["output"]
            await worker.wait_line("PORT_HEALTH: got .*, which is taken .*; /metrics is not offered")


async def test_an_engine_that_was_started_again_is_counted(tmp_path: Path) -> None:
    python = tmp_path / "python"
    never_waits = 'case "$*" in *--wait) exit 1;; esac'
    fails_once = f"[ -e {tmp_path}/tried ] || {{ touch {tmp_path}/tried; exit 1; }}"
    python.write_text(f'#!/bin/sh\n{never_waits}\n{fails_once}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    async with serving_ready(replayed_engine() | {"ENGINE_PYTHON": str(python)}) as (_, url, session):
        assert (await figures(session, url))["worker_engine_restarts_total"] == 1
