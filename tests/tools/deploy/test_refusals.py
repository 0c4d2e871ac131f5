"""Orders that cannot be carried out: `python -m tools.deploy` says why, sends nothing, and ends with code 2."""

from __future__ import annotations

import json
import re

import pytest

from tests.tools.deploy.child import deploy, order
from tests.twins.rest_api import Twin

pytestmark = pytest.mark.anyio


async def test_a_key_that_is_not_taken_is_said_so(twin: Twin) -> None:
    said = await deploy(twin, *order(twin), RUNPOD_API_KEY="rpa_WRONG_WRONG")
    assert said.code == 1
    assert "401 Unauthorized: missing bearer token; check RUNPOD_API_KEY" in said.err


async def test_a_key_may_not_travel_unencrypted(twin: Twin) -> None:
    said = await deploy(twin, *order(twin), RUNPOD_API_BASE_URL="http://example.org")
    assert said.code == 2
    assert "expected https://" in said.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["image=ADDRESS/me/worker:none", "gpu=ADA_24"], "cannot be read, so nothing was sent"),
        (["image=ADDRESS/me/arm:1", "gpu=ADA_24"], "got an image for linux/arm64, expected linux/amd64"),
        (["image=ADDRESS/me/foreign:1", "gpu=ADA_24"], "expected an image of this worker"),
        (
            ["image=ADDRESS/me/worker:1"],
            "or cpu=FLAVOR:VCPUS; the image runs on: ADA_24, ADA_80_PRO, AMPERE_16, AMPERE_48",
        ),
        (["image=ADDRESS/me/worker:1", "gpu=ADA24"], "did you mean ADA_24?"),
        (["image=ADDRESS/me/hopper:1", "gpu=ADA_24"], "NVIDIA GeForce RTX 4090 (SM89)"),
        (["image=ADDRESS/me/hopper:1", "gpu=ADA_24"], "choose the sm89 image, or choose of ADA_80_PRO"),
        (["image=ADDRESS/me/ada:1", "gpu=AMPERE_16"], 'leave them out by exclude="NVIDIA RTX A4000"'),
        (["image=ADDRESS/me/cpu:1", "gpu=ADA_24"], "holds kernels for no GPU"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "env.MAX_NUM_SEQ=4"], "MAX_NUM_SEQ: unknown; did you mean MAX_NUM_SEQS?"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "env.MAX_NUM_SEQS=many"], "MAX_NUM_SEQS: got 'many', expected a whole number"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "env.QUANTIZATION=wint4", "env.MODEL="], "worker"),
        (["image=ADDRESS/me/unset:1", "gpu=ADA_24"], "MODEL: not set"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "env.TENSOR_PARALLEL_SIZE=2"], "the GPUs of one worker; give count=2"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "env.FASTDEPLOY_EXTRA_ARGS=--no-such"], "FASTDEPLOY_EXTRA_ARGS: --no-such"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "env.HF_TOKEN=hf_abcdefghij"], "secret.HF_TOKEN=NAME"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "gpus=2"], "gpus: unknown key; did you mean gpu?"),
        (["image=ADDRESS/me/worker:1", "delete"], "delete: expected endpoint=NAME_OR_ID beside it"),
        (["image=ADDRESS/me/worker:1", "workers=3..1", "disk=-1", "type=http"], "workers: got '3..1'"),
        (["gpu=ADA_24"], "image: missing"),
        (["image=ADDRESS/me/worker:1", "endpoint=twice"], "2 endpoints are named 'twice', expected one; say which by its id"),
        (["image=ADDRESS/me/worker:1", "endpoint=balanced", "type=queue"], "an endpoint cannot change it"),
        (["image=ADDRESS/me/worker:1", "endpoint=balanced", "delay=4"], "delay: a load balancer has no queue, expected requests=N"),
        (["image=ADDRESS/me/worker:1", "endpoint=counting", "idle=30"], "where requests decide over the workers of a queue; give delay="),
        (["image=ADDRESS/me/worker:1", "endpoint=queue", "idle=30", "requests=8"], "idle: RunPod takes no idle time where requests="),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "idle=30", "requests=8"], "idle: RunPod takes no idle time where requests="),
        (["image=ADDRESS/me/worker:1", "type=queue", "idle=30", "requests=8"], "idle: RunPod takes no idle time where requests="),
        (["image=ADDRESS/me/worker:1", "endpoint=stopped"], "may have none (0..0)"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "tests=none.json"], "none.json is not there"),
        (["image=ADDRESS/me/worker:1", "gpu=RTX A4000 Ti"], "gpu: RTX A4000 Ti: no GPU and no pool whose GPUs are known"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "exclude=RTX 4090,L4,NVIDIA Next"], "exclude: got every type of these pools"),
        (["image=ADDRESS/me/worker:1", "gpu=ADA_24", "exclude=A40"], "exclude: A40: not in these pools"),
        (["image=ADDRESS/me/worker:1", "cpu=cpu5c:3"], "cpu: got 'cpu5c:3', expected FLAVOR:VCPUS such as cpu5c:4"),
        (["image=ADDRESS/me/worker:1", "cpu=cpu5c:4", "gpu=ADA_24"], "expected one kind of hardware"),
        (["image=ADDRESS/me/worker:1", "cpu=cpu5c:4"], "holds FastDeploy, which needs a GPU; expected an image of arch=cpu"),
        (
            ["image=ADDRESS/me/cpu:1", "endpoint=queue", "cpu=cpu5c:4"],
            "cpu: endpoint queue runs on GPUs, and",
        ),
    ],
)
async def test_what_cannot_work_is_refused_before_anything_is_sent(twin: Twin, words: list[str], reason: str) -> None:
    twin.push("arm", "1", architecture="arm64", IMAGE_ARCHITECTURES="89")
    twin.push("foreign", "1")
    twin.push("hopper", "1", IMAGE_ARCHITECTURES="80,90")
    twin.push("ada", "1", IMAGE_ARCHITECTURES="89")
    twin.push("cpu", "1", ENGINE="cpu")
    twin.push("unset", "1", IMAGE_ARCHITECTURES="89", MODEL="")
    twin.add("twice")
    twin.add("twice")
    twin.add("balanced", type="LOAD_BALANCER")
    twin.add("queue")
    twin.add("counting", scaling={"type": "REQUEST_COUNT", "requestCount": 4})
    twin.add("stopped", workers={"min": 0, "max": 0})
    there = json.dumps(twin.endpoints)
    said = await deploy(twin, *(word.replace("ADDRESS", twin.address) for word in words), "dry-run=no")
    if reason == "worker":  # the image brings its own MODEL
        assert said.code == 0, said
        return
    assert said.code == 2, said
    assert reason in said.err
    assert not twin.changes
    assert json.dumps(twin.endpoints) == there
    assert "hf_abcdefghij" not in repr(said)


async def test_every_mistake_of_a_command_line_is_named_at_once(twin: Twin) -> None:
    said = await deploy(twin, "image=x", "workers=3..1", "disk=-1", "type=http", "secret.HF_TOKEN=a value", "delay=1", "requests=2")
    assert said.code == 2
    for start in ("workers: got", "disk: got", "type: got", "secret.HF_TOKEN: got", "delay, requests: got both"):
        assert re.search(rf"(^|\s){re.escape(start)}", said.err), start
    assert not twin.seen


async def test_every_mistake_that_can_be_found_on_this_machine_is_named_before_anything_is_asked(twin: Twin) -> None:
    words = ("image=Bad/Name", "gpu=ADA_42", "env.MODLE=x", "env.HF_TOKEN=hf_abcdefghij", "env.MAX_NUM_SEQS=many", "tests=none.json")
    said = await deploy(twin, *words, RUNPOD_API_KEY="", RUNPOD_API_BASE_URL="http://example.org")
    assert said.code == 2
    for start in (
        "RUNPOD_API_KEY: not set",
        "RUNPOD_API_BASE_URL: got 'http://example.org'",
        "tests: ",
        "image: got 'Bad/Name'",
        "gpu: ADA_42: no GPU and no pool whose GPUs are known; did you mean ADA_24?",
        "env.HF_TOKEN: a secret does not belong on a command line",
        "env.MODLE: unknown to the worker; did you mean MODEL?",
        "MAX_NUM_SEQS: got 'many'",
    ):
        assert f"deploy: {start}" in said.err, start
    assert "hf_abcdefghij" not in repr(said)
    assert not twin.seen


async def test_an_image_in_a_registry_of_this_machine_is_none_that_runpod_can_pull(twin: Twin) -> None:
    said = await deploy(twin, *order(twin), RUNPOD_API_BASE_URL="https://api.example.com")
    assert said.code == 2
    assert "RunPod's hosts cannot reach a registry on this machine; push it to one that they can" in said.err


async def test_without_a_key_nothing_is_asked(twin: Twin) -> None:
    said = await deploy(twin, *order(twin), RUNPOD_API_KEY="")
    assert said.code == 2
    assert "RUNPOD_API_KEY: not set" in said.err
    assert not twin.seen
