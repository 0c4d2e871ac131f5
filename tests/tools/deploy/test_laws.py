"""Laws of what is sent, of what is read from workers, and of what is printed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from images.arguments import parse
from images.build_errors import UnknownChoice
from tests import ROOT
from tests.strategies import SETTINGS
from tests.tools.deploy.schema import CREATE, UPDATE
from tests.twins.rest_api import Twin, patched
from tools.deploy.__main__ import COMMAND
from tools.deploy.acceptance import read_tests
from tools.deploy.api_answers import ActiveWorker
from tools.deploy.deploy_errors import DeployRefused
from tools.deploy.deploy_options import DeployOptions, read_deploy_options
from tools.deploy.endpoint_changes import create_body, differences, makes_release, merge, patch_for, undo
from tools.deploy.masking import Mask
from tools.deploy.rollout_watch import Snapshot, judge, snapshot_of
from tools.deploy.runpod_api import problem

pytestmark = pytest.mark.timeout(180)

TAKES_BODY, TAKES_PATCH = Draft202012Validator(CREATE), Draft202012Validator(UPDATE)

TEXTS = st.sampled_from(["8001", "two words", "{{ RUNPOD_SECRET_hf }}"])
NAMED = {"MODEL": TEXTS, "MAX_NUM_SEQS": TEXTS, "OTHER": TEXTS, "HF_TOKEN": TEXTS, "PORT_HEALTH": st.just("8001")}
ENVS = st.fixed_dictionaries({}, optional=NAMED)
ASKED = st.fixed_dictionaries({}, optional={name: texts | st.just("") for name, texts in NAMED.items()})
POOLS = st.lists(st.sampled_from(["ADA_24", "AMPERE_48", "ADA_80_PRO"]), min_size=1, unique=True).map(tuple)
EXCLUDED = st.lists(st.sampled_from(["NVIDIA L4", "NVIDIA A40"]), unique=True).map(tuple)
WORKERS = st.tuples(st.integers(0, 3), st.integers(3, 9))
VERSIONS = st.sampled_from(["12.6", "12.9", "12.11", "13.0"])


@st.composite
def all_options(draw: st.DrawFn) -> DeployOptions:
    gpu = draw(POOLS | st.just(()))
    kind = draw(st.sampled_from([None, "queue", "lb"]))
    requests = draw(st.none() | st.integers(1, 50))
    return DeployOptions(
        image="x",
        type=kind,
        gpu=gpu,
        exclude=draw(EXCLUDED) if gpu else (),
        count=draw(st.none() | st.integers(1, 8)),
        workers=draw(st.none() | WORKERS),
        idle=draw(st.none() | st.integers(1, 3600)) if requests is None or kind != "queue" else None,
        delay=draw(st.none() | st.floats(0.5, 60)) if requests is None and kind != "lb" else None,
        requests=requests,
        disk=draw(st.none() | st.integers(1, 500)),
        cuda=draw(st.none() | VERSIONS),
        flashboot=draw(st.none() | st.booleans()),
        timeout=draw(st.none() | st.integers(1, 1000)),
        volume=draw(st.none() | st.just(("vol",))),
        env=draw(ASKED),
    )


@st.composite
def endpoints(draw: st.DrawFn) -> Any:
    floor = draw(st.none() | VERSIONS)
    balanced = draw(st.booleans())
    return Twin().describe(
        {
            "name": "mine",
            "type": "LOAD_BALANCER" if balanced else "QUEUE",
            "image": draw(st.sampled_from(["old", "new"])),
            "env": draw(ENVS),
            "gpu": {
                "pools": list(draw(POOLS)),
                "excludedTypes": list(draw(EXCLUDED)),
                "count": draw(st.integers(1, 8)),
                "minCudaVersion": floor,
                "allowedCudaVersions": [] if floor else draw(st.lists(VERSIONS, unique=True)),
            },
            "scaling": {"type": "REQUEST_COUNT", "requestCount": 3} if balanced else {"type": "QUEUE_DELAY", "queueDelay": 4},
            "ports": draw(st.sampled_from([[], ["80/http"], ["22/tcp"]])),
        }
    )


def patch_of(options: DeployOptions, endpoint: Any, cuda: str | None = "12.6") -> dict[str, Any]:
    try:
        return patch_for(options, image="new", cuda=cuda, endpoint=endpoint)
    except DeployRefused:
        assume(False)
        raise


@SETTINGS
@given(options=all_options(), endpoint=endpoints())
def test_what_was_sent_once_needs_no_second_time(options: DeployOptions, endpoint: Any) -> None:
    patch = patch_of(options, endpoint)
    after = patched(endpoint, patch)
    assert patch_of(options, after) == {}
    assert differences(patch, after) == []
    assert bool(patch) == bool(differences(patch, endpoint))


@SETTINGS
@given(options=all_options(), endpoint=endpoints())
def test_no_change_gives_a_queue_that_grows_by_requests_an_idle_time(options: DeployOptions, endpoint: Any) -> None:
    patch = patch_of(options, endpoint)
    if patch.get("scaling", endpoint["scaling"])["type"] == "REQUEST_COUNT" and endpoint["type"] == "QUEUE":
        assert "idleTimeout" not in patch.get("workers", {})


@SETTINGS
@given(options=all_options(), endpoint=endpoints())
def test_going_back_gives_every_field_its_old_value(options: DeployOptions, endpoint: Any) -> None:
    patch = patch_of(options, endpoint)
    back = undo(patch, endpoint)
    assert patched(patched(endpoint, patch), back) == endpoint
    TAKES_PATCH.validate(back)


@SETTINGS
@given(options=all_options(), endpoint=endpoints())
def test_a_patch_is_one_that_the_api_takes_and_holds_only_what_changes(options: DeployOptions, endpoint: Any) -> None:
    patch = patch_of(options, endpoint)
    TAKES_PATCH.validate(patch)
    assert not set(patch) & {"type", "name", "id"}
    assert all(patch[field] != endpoint[field] for field in patch)
    after = patched(endpoint, patch)
    assert not (after["gpu"]["allowedCudaVersions"] and after["gpu"]["minCudaVersion"])
    assert makes_release(patch) >= (endpoint["image"] != "new")


def test_variables_that_are_not_known_are_not_replaced() -> None:
    endpoint: Any = {"id": "e", "name": "mine", "type": "QUEUE", "image": "old", "workers": {"max": 3}}
    assert patch_for(DeployOptions(image="x"), image="new", cuda=None, endpoint=endpoint) == {"image": "new"}
    with pytest.raises(DeployRefused, match="does not tell the variables of endpoint mine"):
        patch_for(DeployOptions(image="x", env={"MODEL": "a/b"}), image="new", cuda=None, endpoint=endpoint)


@SETTINGS
@given(options=all_options(), pools=POOLS, cuda=st.none() | VERSIONS)
def test_a_new_endpoint_is_one_that_the_api_takes(options: DeployOptions, pools: tuple[str, ...], cuda: str | None) -> None:
    if not options.gpu:
        options = DeployOptions(**{**{name: getattr(options, name) for name in DeployOptions.__slots__}, "gpu": pools})
    try:
        body = create_body(options, name="mine", image="new", cuda=cuda, requests=8, startup=1200)
    except DeployRefused:
        assert options.type is None, "what a typed order cannot have was refused when it was read"
        assert options.idle is not None
        assert options.requests is not None
        return
    TAKES_BODY.validate(body)
    assert body["gpu"].get("minCudaVersion") == (options.cuda or cuda)


@SETTINGS
@given(current=ENVS, asked=ASKED)
def test_variables_that_are_not_named_stay_and_empty_ones_go(current: dict[str, str], asked: dict[str, str]) -> None:
    after = merge(current, asked)
    assert {name: text for name, text in after.items() if name not in asked} == {
        name: t for name, t in current.items() if name not in asked
    }
    assert {name: text for name, text in after.items() if name in asked} == {name: text for name, text in asked.items() if text}


STATES = st.sampled_from(["RUNNING", "IDLE", "INITIALIZING", "THROTTLED", "UNHEALTHY"])


@SETTINGS
@given(fresh=st.lists(STATES), stale=st.integers(0, 3), least=st.integers(0, 2))
def test_a_release_counts_as_there_only_with_a_ready_worker_or_with_none_wanted(fresh: list[str], stale: int, least: int) -> None:
    verdict = judge(Snapshot(version=2, fresh=Counter(fresh), stale=stale), least)
    ready = bool({"RUNNING", "IDLE"} & set(fresh))
    assert (verdict in {"ready", "old workers left"}) == ready
    assert (verdict == "ready") <= (stale == 0)
    assert (verdict == "none wanted") == (not fresh and not stale and least == 0)


def test_a_worker_with_another_image_is_stale_whatever_its_flag_says() -> None:
    worker: ActiveWorker = {"id": "w", "status": "IDLE", "isStale": False, "image": "old"}
    assert snapshot_of({"workers": [worker]}, "new").ready == 0
    unknown: ActiveWorker = {"id": "w", "status": "IDLE", "isStale": False}
    assert snapshot_of({"workers": [unknown]}, "new").ready == 1


@SETTINGS
@given(secrets=st.lists(st.text(alphabet='abcdefgh"\\é', min_size=6, max_size=12), min_size=1, max_size=3), before=st.text(max_size=5))
def test_no_secret_is_printed_plainly_or_as_json(secrets: list[str], before: str) -> None:
    mask = Mask(secrets)
    text = mask("".join(before + secret + json.dumps({"k": secret}) for secret in secrets))
    # A masked place may not join its neighbours into a secret: *** stands in none of them.
    assert not [secret for secret in secrets if secret in text]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token hf_abcdefghijk", "token ***"),
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer ***"),
        ("rpa_ABCDEFGH123 and sk-abcdefgh12", "*** and ***"),
        ("a plain line, half_done", "a plain line, half_done"),
    ],
)
def test_keys_are_known_by_their_shape(text: str, shown: str) -> None:
    assert Mask([])(text) == shown


def test_a_problem_is_a_sentence_whatever_was_sent() -> None:
    said = json.dumps({"title": "Not Found", "status": 404, "detail": "pod not found"})
    assert problem(404, "Not Found", said) == "404 Not Found: pod not found"
    assert problem(502, "Bad Gateway", "<html>\n <b>oops</b>") == "502 Bad Gateway: <html> <b>oops</b>"
    assert problem(503, "Service Unavailable", "") == "503 Service Unavailable"
    assert problem(500, "Error", "[1]") == "500 Error: [1]"


@SETTINGS
@given(words=st.lists(st.text(max_size=12) | st.sampled_from(["image=x", "gpu=A,B", "workers=1", "env.A=1", "secret.A=b", "poll=nan"])))
def test_any_words_are_an_order_or_are_refused(words: list[str]) -> None:
    try:
        options = read_deploy_options(parse(COMMAND, words), default_tests=Path("here"), environment={})
    except UnknownChoice as refused:
        assert str(refused)
    else:
        assert options.image or options.delete
        assert options.poll > 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"tests": 1}',
        '{"tests": [{"name": "x"}]}',
        '{"tests": [{"name": "x", "input": 1}]}',
        '{"tests": [{"name": "x", "input": {}, "timeout": "soon"}]}',
    ],
)
def test_a_file_of_tests_of_another_form_is_refused_with_the_right_one(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tests.json"
    file.write_text(text)
    with pytest.raises(DeployRefused, match=r"expected .\"tests\": \[\{\"name\""):
        read_tests(file)


def test_the_projects_own_tests_can_be_sent() -> None:
    tests = read_tests(ROOT / ".runpod" / "tests.json")
    assert any(test.input.get("openai_route") for test in tests)
    assert all(test.timeout >= 1 for test in tests)
