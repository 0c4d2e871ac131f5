from __future__ import annotations

import pytest

from tests.handler.worker_process import cpu_engine, replayed_engine

ENGINES = {"cpu": cpu_engine(), "replay": replayed_engine()}


@pytest.fixture(params=ENGINES)
def engine_variables(request: pytest.FixtureRequest) -> dict[str, str]:
    """Variables for each engine in turn: the same tests hold for all."""
    return ENGINES[request.param]
