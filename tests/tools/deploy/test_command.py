"""`python -m tools.deploy` as a process, against RunPod's API and a registry on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests import ROOT
from tests.tools.deploy.child import deploy, ended, order, second, start
from tests.twins.rest_api import KEY, LINGERS, NO_GPU, ON_REQUEST, SICK, SLOW, Fault, Twin, answer

pytestmark = pytest.mark.anyio


async def test_a_new_endpoint_runs_the_image_by_its_digest_and_has_answered(twin: Twin) -> None:
    said = await deploy(twin, *order(twin), "endpoint=mine", "env.MAX_NUM_SEQS=16", "secret.HF_TOKEN=hf", "workers=1..2", "cuda=12.8")
    assert said.code == 0, said
    [(method, path, body)] = twin.changes
    assert (method, path, body["image"]) == ("POST", "/v2/serverless", twin.image)
    assert body == {
        "name": "mine",
        "type": "QUEUE",
        "image": twin.image,
        "gpu": {"pools": ["ADA_24"], "count": 1, "minCudaVersion": "12.8"},
        "env": {"MAX_NUM_SEQS": "16", "HF_TOKEN": "{{ RUNPOD_SECRET_hf }}", "RUNPOD_INIT_TIMEOUT": "1200"},
        "workers": {"min": 1, "max": 2},
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    }
    assert twin.image in said.out
    assert f"http://{twin.address}/queue/ep000000/openai/v1" in said.out
    assert {path.removeprefix("/queue/ep000000/") for _, path, _ in twin.asked} == {
        "openai/v1/chat/completions",
        "openai/v1/models",
        "runsync",
    }


async def test_the_printed_snippet_is_a_working_client(twin: Twin, tmp_path: Path) -> None:
    said = await deploy(twin, *order(twin))
    code = said.out[said.out.index("from openai") :]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env={**os.environ, "RUNPOD_API_KEY": KEY}, cwd=tmp_path, stdout=-1, stderr=-1
    )
    out, err = await asyncio.wait_for(process.communicate(), 45)
    assert out.decode() == "Hello", err.decode()


async def test_the_same_command_twice_sends_nothing_the_second_time(twin: Twin) -> None:
    assert (await deploy(twin, *order(twin), "env.MAX_NUM_SEQS=16")).code == 0
    said = await deploy(twin, *order(twin), "env.MAX_NUM_SEQS=16")
    assert said.code == 0, said
    assert len(twin.changes) == 1
    assert "nothing to send" in said.out


async def test_a_roll_out_keeps_the_endpoints_other_variables_and_shows_what_changes(twin: Twin) -> None:
    twin.add("mine", env={"MODEL": "org/model", "OTHER": "kept", "GONE": "x", "MY_PASSWORD": "correct horse"})
    new = second(twin)
    said = await deploy(twin, *order(twin, "2"), "endpoint=mine", "env.MAX_NUM_SEQS=4", "env.GONE=", "count=2")
    assert said.code == 0, said
    [(method, _, patch)] = twin.changes
    assert method == "PATCH"
    assert patch["env"] == {"MODEL": "org/model", "OTHER": "kept", "MAX_NUM_SEQS": "4", "MY_PASSWORD": "correct horse"}
    assert patch == {"image": new, "env": patch["env"], "gpu": {"count": 2, "minCudaVersion": "12.6"}}
    for line in (f"image: {twin.image} -> {new}", "env.MAX_NUM_SEQS: (none) -> 4", "env.GONE: x -> (none)", "gpu.count: 1 -> 2"):
        assert line in said.out
    assert "OTHER" not in said.out
    assert "correct horse" not in repr(said)


async def test_a_slow_roll_out_is_followed_to_its_end_before_anything_is_asked(twin: Twin) -> None:
    twin.add("mine", workers={"min": 1, "max": 3})
    twin.scripts[second(twin)] = SLOW
    said = await deploy(twin, *order(twin, "2"), "endpoint=mine")
    assert said.code == 0, said
    seen = [line for line in said.out.splitlines() if line.startswith("workers:")]
    assert seen == [
        "workers: 1 still on an older version",
        "workers: 1 initializing, 1 still on an older version",
        "workers: 1 idle, 1 still on an older version",
        "workers: 1 idle",
    ]


async def test_workers_that_are_up_to_date_only_because_the_release_is_not_there_yet_do_not_count(twin: Twin) -> None:
    twin.add("mine", gpu={"pools": ["ADA_24"], "minCudaVersion": "12.6"})
    twin.lag = 3
    said = await deploy(twin, *order(twin), "endpoint=mine", "env.MAX_NUM_SEQS=4")
    assert said.code == 0, said
    seen = [line for line in said.out.splitlines() if line.startswith(("workers", "release"))]
    assert seen == ["workers: 1 idle", "workers: 1 initializing", "release 2 is there", "workers: 1 idle", "workers run it"]


async def test_a_worker_that_never_finishes_its_old_request_does_not_fail_a_roll_out_that_works(twin: Twin) -> None:
    twin.add("mine")
    twin.scripts[second(twin)] = LINGERS
    said = await deploy(twin, *order(twin, "2"), "endpoint=mine", "patience=1")
    assert said.code == 0, said
    assert "1 still finish requests on an older version" in said.out


@pytest.mark.parametrize(
    ("script", "reason"),
    [(SICK, "unhealthy workers of the new release: 1"), (NO_GPU, "no free GPU of these pools")],
    ids=["unhealthy", "no capacity"],
)
async def test_a_failed_roll_out_is_taken_back_and_the_log_is_shown_without_secrets(twin: Twin, script: Any, reason: str) -> None:
    secret = "sesame-open-now"
    before = dict(twin.add("mine", workers={"min": 1, "max": 3}, env={"MODEL": "org/model", "MY_PASSWORD": secret, "KEPT": "1"}))
    twin.scripts[second(twin)] = script
    twin.log.append(f"password is {secret}, token hf_abcdefghijkl, Authorization: Bearer {KEY}")
    said = await deploy(twin, *order(twin, "2"), "endpoint=mine", "patience=1.5", "env.KEPT=", "disk=50")
    assert said.code == 1, said
    assert reason in said.err
    assert f"was taken back to {twin.image}" in said.err
    assert "CUDA error: no kernel image" in said.out
    assert "password is ***, token ***" in said.out
    assert secret not in repr(said)
    assert twin.endpoints[before["id"]] == before
    assert not twin.asked


async def broken(request: web.Request, body: Any) -> web.StreamResponse:
    if request.path.endswith("/models") or not body.get("stream"):
        return await answer(request, body)
    return web.Response(
        text='data: {"choices": []}\n\ndata: {"error": {"message": "the engine has died"}}\n\n', content_type="text/event-stream"
    )


async def refusing(_request: web.Request, _body: Any) -> web.StreamResponse:
    return web.json_response({"error": {"message": "the model is not there", "type": "invalid_request_error"}}, status=500)


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (refusing, "test 'chat' failed: the model is not there"),
        (broken, "test 'chat_stream' failed: the engine has died"),
    ],
    ids=["refusing", "breaking off"],
)
async def test_a_release_that_answers_wrongly_is_taken_back(twin: Twin, worker: Any, reason: str) -> None:
    before = dict(twin.add("mine"))
    twin.answers[second(twin)] = worker
    said = await deploy(twin, *order(twin, "2"), "endpoint=mine")
    assert said.code == 1, said
    assert reason in said.err
    assert twin.endpoints[before["id"]] == {**before, "gpu": {**before["gpu"], "minCudaVersion": None}}


async def test_a_new_endpoint_that_does_not_work_is_removed_again(twin: Twin) -> None:
    twin.scripts[twin.image] = SICK
    said = await deploy(twin, *order(twin), "endpoint=mine")
    assert said.code == 1, said
    assert "was removed again" in said.err
    assert "CUDA error" in said.out
    assert not twin.endpoints


async def test_workers_that_fall_ill_while_a_test_waits_end_the_wait(twin: Twin) -> None:
    async def hanging(request: web.Request, _body: Any) -> web.StreamResponse:
        twin.scripts[twin.image] = SICK
        await asyncio.Event().wait()
        return await answer(request, None)

    twin.scripts[twin.image] = ON_REQUEST
    twin.answers[twin.image] = hanging
    said = await deploy(twin, *order(twin), "endpoint=mine")
    assert said.code == 1, said
    assert "unhealthy" in said.err


async def test_an_endpoint_without_workers_is_woken_by_the_first_test(twin: Twin) -> None:
    tries: list[int] = []

    async def waking(request: web.Request, body: Any) -> web.StreamResponse:
        tries.append(1)
        if len(tries) < 4:
            return web.Response(status=[502, 404, 503][len(tries) - 1], text="no workers available")
        twin.scripts[twin.image] = [[("RUNNING", True)]]
        return await answer(request, body)

    twin.scripts[twin.image] = ON_REQUEST
    twin.answers[twin.image] = waking
    said = await deploy(twin, *order(twin), "endpoint=mine")
    assert said.code == 0, said
    assert "no worker runs before the first request comes" in said.out


@pytest.mark.parametrize("status", [500, 502, None], ids=["500", "502", "dropped"])
async def test_a_creation_whose_answer_was_lost_is_found_by_name_and_never_sent_twice(twin: Twin, status: int | None) -> None:
    twin.faults = [Fault(method="POST", status=status, done=True)]
    said = await deploy(twin, *order(twin), "endpoint=mine")
    assert said.code == 0, said
    assert "it is, as ep000000" in said.out
    assert len(twin.changes) == 1
    assert len(twin.endpoints) == 1


async def test_a_creation_that_may_have_failed_is_left_to_the_person(twin: Twin) -> None:
    twin.faults = [Fault(method="POST", status=500)]
    said = await deploy(twin, *order(twin), "endpoint=mine")
    assert said.code == 1, said
    assert "no endpoint mine has appeared" in said.err
    assert len(twin.changes) == 1


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
async def test_a_change_whose_answer_was_lost_is_looked_at_before_it_is_sent_again(twin: Twin, done: bool) -> None:
    twin.add("mine")
    new = second(twin)
    twin.faults = [Fault(method="PATCH", status=500, done=done)]
    said = await deploy(twin, *order(twin, "2"), "endpoint=mine")
    assert said.code == 0, said
    assert len(twin.changes) == (1 if done else 2), said
    assert twin.endpoints["ep000000"]["image"] == new


async def test_a_429_is_waited_for_as_long_as_it_says(twin: Twin) -> None:
    limits = {"title": "Too Many Requests", "status": 429, "detail": "rate limit exceeded for the minute window"}
    twin.faults = [
        Fault(method="GET", path="/serverless", status=429, headers={"Retry-After": "1"}, body=limits),
        Fault(method="POST", status=429, headers={"Retry-After": "1"}, body=limits),
    ]
    began = time.monotonic()
    said = await deploy(twin, *order(twin), "endpoint=mine")
    assert said.code == 0, said
    assert time.monotonic() - began > 2
    assert said.out.count("RunPod asks to wait 1 s (429 Too Many Requests: rate limit exceeded for the minute window)") == 2
    assert len(twin.endpoints) == 1


async def test_a_look_that_fails_is_tried_again(twin: Twin) -> None:
    twin.faults = [Fault(method="GET", path="/workers", times=2), Fault(method="GET", path="/serverless", status=None, times=2)]
    said = await deploy(twin, *order(twin))
    assert said.code == 0, said


async def test_problems_of_the_api_are_sentences(twin: Twin) -> None:
    said = {
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "Request validation failed.",
        "errors": ["$.gpu: no such pool", "disk: too large"],
    }
    twin.faults = [Fault(method="POST", status=422, body=said)]
    answer = await deploy(twin, *order(twin), "endpoint=mine")
    assert answer.code == 1
    assert (
        "could not create endpoint mine: 422 Unprocessable Entity: Request validation failed.: $.gpu: no such pool; disk: too large"
        in answer.err
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [({"wrong": 1}, "5 times: an answer of another form: workers: missing"), ([1], "the answer: got a list, expected a table")],
    ids=["table", "list"],
)
async def test_an_answer_of_another_form_ends_the_watch_and_says_what_is_left(twin: Twin, body: Any, reason: str) -> None:
    twin.add("mine")
    second(twin)
    twin.faults = [Fault(method="GET", path="/workers", status=200, body=body, times=9)]
    said = await deploy(twin, *order(twin, "2"), "endpoint=mine")
    assert said.code == 1, said
    assert reason in said.err
    assert "what is left: endpoint mine (ep000000) was changed, and RunPod continues its release; " in said.err
    assert len(twin.changes) == 1


async def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(twin: Twin) -> None:
    fresh = await deploy(twin, *order(twin), "dry-run=yes", "endpoint=new")
    twin.add("mine")
    second(twin)
    change = await deploy(twin, *order(twin, "2"), "dry-run=yes", "endpoint=mine")
    keyless = await deploy(twin, *order(twin), "--dry-run", "endpoint=new", RUNPOD_API_KEY="")
    assert (fresh.code, change.code, keyless.code) == (0, 0, 0), (fresh, change, keyless)
    assert f'"image": "{twin.image}"' in fresh.out
    assert keyless.out.splitlines()[-20:] == [line for line in fresh.out.splitlines() if "NVIDIA" not in line][-20:]
    assert f"image: {twin.image} -> " in change.out
    assert not twin.changes
    assert not twin.asked


async def test_a_dry_run_shows_what_would_be_sent_before_the_image_is_pushed(twin: Twin) -> None:
    said = await deploy(twin, f"image={twin.address}/me/later:1", "gpu=ADA_24", "dry-run=yes")
    assert said.code == 0, said
    assert "later:1: cannot be read" in said.err
    assert "dry run: going on without it; whether it fits GPUs and variables is not checked" in said.err
    assert f'"image": "{twin.address}/me/later@sha256:????' in said.out
    assert not twin.changes


async def test_a_gpu_by_its_name_is_its_pool_without_the_others(twin: Twin) -> None:
    said = await deploy(twin, f"image={twin.address}/me/worker:1", "gpu=rtx4090", "dry-run=yes")
    assert said.code == 0, said
    body = json.loads(said.out[said.out.index("{") : said.out.rindex("}") + 1])
    assert body["gpu"]["pools"] == ["ADA_24"]
    assert body["gpu"]["excludedTypes"] == ["NVIDIA L4", "NVIDIA Next"]


async def test_a_cpu_image_runs_on_a_cpu_endpoint(twin: Twin) -> None:
    twin.push("cpu", "1", ENGINE="cpu")
    words = (f"image={twin.address}/me/cpu:1", "cpu=cpu5c:4", "endpoint=mine")
    said = await deploy(twin, *words)
    assert said.code == 0, said
    [(_, _, body)] = twin.changes
    assert body["cpu"] == [{"id": "cpu5c", "vcpuCount": 4}]
    assert "gpu" not in body
    again = await deploy(twin, *words)
    assert again.code == 0, again
    assert "nothing to send" in again.out
    larger = await deploy(twin, words[0], "cpu=cpu5c:8", "endpoint=mine")
    assert larger.code == 0, larger
    assert twin.changes[-1][2] == {"cpu": [{"id": "cpu5c", "vcpuCount": 8}]}


async def test_a_gpu_that_nobody_here_knows_is_said_to_be_unchecked(twin: Twin) -> None:
    said = await deploy(twin, *order(twin), "dry-run=yes")
    assert "NVIDIA Next, of pool ADA_24, is not in images/gpus.toml" in said.out


async def test_a_load_balancer_is_made_and_asked_at_its_own_address(twin: Twin) -> None:
    said = await deploy(twin, *order(twin), "type=lb", "endpoint=mine", "env.MAX_NUM_SEQS=32")
    assert said.code == 0, said
    [(_, _, body)] = twin.changes
    assert body["scaling"] == {"type": "REQUEST_COUNT", "requestCount": 32}
    assert (body["ports"], body["env"]["PORT"]) == (["80/http"], "80")
    assert {path.removeprefix("/balanced/ep000000/") for _, path, _ in twin.asked} == {"v1/chat/completions", "v1/models"}
    assert "test 'native': left out, a load balancer takes no jobs" in said.out
    assert f"http://{twin.address}/balanced/ep000000/v1" in said.out


@pytest.mark.parametrize("typed", [[], ["type=lb"]], ids=["its type is known", "its type is said"])
async def test_a_load_balancer_is_changed_by_what_fits_its_kind_whether_or_not_the_order_says_it(twin: Twin, typed: list[str]) -> None:
    twin.add("mine", type="LOAD_BALANCER", scaling={"type": "REQUEST_COUNT", "requestCount": 4})
    said = await deploy(twin, *order(twin), *typed, "endpoint=mine", "idle=30", "requests=8", "--dry-run")
    assert said.code == 0, said
    assert "scaling.requestCount: 4 -> 8" in said.out
    assert "workers.idleTimeout: 10 -> 30" in said.out
    assert not twin.changes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_stopped_roll_out_says_what_is_left(twin: Twin, number: signal.Signals, code: int) -> None:
    twin.add("mine", workers={"min": 1, "max": 1})
    twin.scripts[second(twin)] = NO_GPU
    process = await start(twin, *order(twin, "2"), "endpoint=mine")
    await twin.until(lambda: bool(twin.changes) and twin.seen[-1][1].endswith("/workers"))
    process.send_signal(number)
    said = await ended(process)
    assert said.code == code, said
    assert f"ci/just deploy endpoint=mine image={twin.image} goes back" in said.err
    assert len(twin.changes) == 1


async def test_a_deployment_goes_on_to_its_end_when_nobody_reads_what_it_says(twin: Twin) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tools.deploy",
        "poll=0.02",
        *order(twin),
        cwd=ROOT,
        env={**os.environ, **twin.environment},
        stdout=writer,
        stderr=-1,
    )
    os.close(writer)
    _, err = await asyncio.wait_for(process.communicate(), 45)
    assert process.returncode == 0, err
    assert twin.asked


async def test_a_release_from_elsewhere_is_left_alone(twin: Twin) -> None:
    endpoint = twin.add("mine", workers={"min": 1, "max": 1})
    twin.scripts[second(twin)] = NO_GPU
    process = await start(twin, *order(twin, "2"), "endpoint=mine")
    await twin.until(lambda: bool(twin.changes) and twin.seen[-1][1].endswith("/workers"))
    twin.endpoints[endpoint["id"]]["image"] = "theirs"
    twin.versions[endpoint["id"]] += 1
    said = await ended(process)
    assert said.code == 1, said
    assert "was replaced from elsewhere" in said.err
    assert len(twin.changes) == 1
    assert twin.endpoints[endpoint["id"]]["image"] == "theirs"


async def test_an_endpoint_is_removed_by_name_and_once_more_without_harm(twin: Twin) -> None:
    twin.add("mine")
    first, again = [await deploy(twin, "endpoint=mine", "delete=yes") for _ in range(2)]
    assert (first.code, again.code) == (0, 0), (first, again)
    assert "was removed" in first.out
    assert "nothing to remove" in again.out
    assert not twin.endpoints
