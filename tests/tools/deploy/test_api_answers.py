"""Answers of RunPod's API become typed values, or are refused with the place that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import SETTINGS
from tests.twins.rest_api import Twin
from tools.deploy.api_answers import BadAnswer, Endpoint, EndpointList, EndpointReleases, GpuCatalog, WorkerList, read_answer
from tools.deploy.deploy_errors import DeployRefused
from tools.deploy.runpod_api import check_url

KINDS: list[Any] = [Endpoint, EndpointList, WorkerList, EndpointReleases, GpuCatalog]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
NAMES = st.sampled_from(["id", "name", "endpoints", "workers", "env", "gpu", "pools", "status", "gpus", "image", "x"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=12)
MADE: Any = Twin().describe(
    {"name": "mine", "type": "QUEUE", "image": "x", "gpu": {"pools": ["ADA_24"]}, "scaling": {"type": "QUEUE_DELAY"}}
)


@SETTINGS
@given(value=VALUES, kind=st.sampled_from(KINDS))
def test_any_value_is_read_into_what_the_description_has_or_refused_with_a_place(value: Any, kind: Any) -> None:
    try:
        found = read_answer(kind, value)
    except BadAnswer as refused:
        assert "expected" in str(refused) or "missing" in str(refused)
    else:
        assert read_answer(kind, json.loads(json.dumps(found))) == found
        assert set(found) <= set(value)


def test_an_endpoint_as_it_is_described_is_read_whole() -> None:
    found = read_answer(Endpoint, MADE)
    assert {name: value for name, value in MADE.items() if name in found and value is not None and name != "gpu"} == {
        name: value for name, value in found.items() if name not in {"gpu", "requestUrls"}
    } | {"requestUrls": MADE["requestUrls"]}
    assert found["gpu"] == {"pools": ["ADA_24"], "count": 1, "allowedCudaVersions": []}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "id: missing"),
        ({"id": "../../billing"}, "id: got '../../billing', expected a text like"),
        ({"id": 7}, "id: got 7, expected a text like"),
        ({"env": {"MODEL": 1}}, "env.MODEL: got 1, expected a text"),
        ({"env": []}, "env: got a list, expected a table"),
        ({"gpu": {"pools": "ADA_24"}}, "gpu.pools: got 'ADA_24', expected a list"),
        ({"gpu": {"count": True}}, "gpu.count: got True, expected a whole number"),
        ({"gpu": {"minCudaVersion": "new"}}, "gpu.minCudaVersion: got 'new', expected a text like"),
        ({"workers": {"max": 1.5}}, "workers.max: got 1.5, expected a whole number"),
        ({"cpu": [{"id": "cpu5c"}]}, r"cpu\[0\].vcpuCount: missing"),
    ],
)
def test_what_is_wrong_with_an_answer_is_named_by_its_place(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadAnswer, match=reason):
        read_answer(Endpoint, {**MADE, **change})


@pytest.mark.parametrize(
    "url", ["https://api.example.com/", "http://127.0.0.1:8080", "http://localhost", "http://[::1]:1/", "https://api.example.com:8443/v"]
)
def test_a_key_travels_over_tls_or_to_this_machine(url: str) -> None:
    assert check_url("X", url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com",
        "http://localhost:x@evil.example",
        "http://127.0.0.1:80@evil.example/",
        "https://name:password@api.example.com",
        "http://127.evil.example",
        "http://localhost.evil.example",
        "https://",
        "https://api.example.com:port",
        "http://127.0.0.1:0",
        "ftp://127.0.0.1",
        "api.example.com",
        "",
        "http://[::1",
    ],
)
def test_a_key_travels_nowhere_else(url: str) -> None:
    with pytest.raises(DeployRefused, match=r"X: got .*expected https://HOST"):
        check_url("X", url)
