"""What every test gets, and the kinds of proof, each of them a marker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test

from tools.serve.job_server import JobServer

KINDS = {
    "contract": (
        "checkpoint/test_worker_download.py",
        "handler/faults/test_random_trials.py",
        "handler/faults/test_serving.py",
        "handler/faults/test_starting.py",
        "handler/test_prestart.py",
        "handler/test_http*.py",
        "handler/test_local.py",
        "handler/test_queue*.py",
        "handler/test_sdk_traffic.py",
        "handler/test_start.py",
        "handler/test_templates.py",
        "handler/test_transcripts.py",
        "handler/test_translated_routes.py",
        "tools/generate/test_hub_defaults.py",
        "tools/serve/test_openai_client.py",
        "tools/serve/test_page.py",
        "tools/serve/test_process.py",
        "tools/serve/test_runpod_client.py",
        "tools/serve/test_tools.py",
    ),
    "fault": (
        "checkpoint/test_download.py",
        "checkpoint/test_receive.py",
        "cpu_engine/test_checkpoint.py",
        "handler/faults/*",
        "handler/test_http1.py",
        "handler/test_job_poll.py",
        "handler/test_job_posts.py",
        "handler/test_queue_*.py",
        "handler/test_relay.py",
        "handler/test_start.py",
        "images/test_download.py",
        "images/test_layout.py",
        "images/test_push.py",
        "images/test_verify.py",
        "tools/deploy/test_command.py",
        "tools/deploy/test_acceptance.py",
        "tools/deploy/test_hostile_api.py",
        "tools/serve/test_job_server.py",
        "twins/test_replay_faults.py",
    ),
    "smoke": ("smoke/*",),
}
"""Which files hold which kind; `law` is whatever Hypothesis runs, and `gpu` stands at its tests."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its kinds, before `-m` chooses by them."""
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).as_posix()
        for kind, places in KINDS.items():
            if any(fnmatch(place, one) for one in places):
                item.add_marker(kind)
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
            item.add_marker("law")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def jobs() -> AsyncIterator[JobServer]:
    """A job API that nothing wrong was sent to, by the end of the test."""
    async with JobServer() as server:
        yield server
    assert not server.problems, server.problems
