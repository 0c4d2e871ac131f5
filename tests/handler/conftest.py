from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.handler.worker_process import cpu_engine, replayed_engine
from tools.serve.job_server import JobServer

ENGINES = {"cpu": cpu_engine(), "replay": replayed_engine()}


@pytest.fixture(params=ENGINES)
def engine_variables(request: pytest.FixtureRequest) -> dict[str, str]:
    """Variables for each engine in turn: the same tests hold for all."""
    return ENGINES[request.param]


@pytest.fixture
async def jobs() -> AsyncIterator[JobServer]:
    async with JobServer() as server:
        yield server
    assert not server.problems, server.problems
