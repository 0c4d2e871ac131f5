"""Deployments against an API that lies, some of them against one that does nothing else."""

from __future__ import annotations

import pytest

from tests.tools.deploy.hostile_api import LIES, SCENARIOS, draw, run_trials

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.timeout(900)]

SEEDS = range(60)
"""`ci/just bench api-trials n=300` runs more."""


def test_the_seeds_have_every_scenario_and_every_lie() -> None:
    trials = [draw(seed) for seed in SEEDS]
    assert {trial.scenario for trial in trials} == set(SCENARIOS)
    assert {lie for trial in trials for lie in trial.lies} == set(LIES)


async def test_deploy_survives_whatever_the_api_answers() -> None:
    tally = await run_trials(SEEDS)
    print(tally.table())
    assert not tally.failures, "\n".join(tally.failures)
