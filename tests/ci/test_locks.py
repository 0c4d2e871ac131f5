"""What is installed is what was locked."""

from __future__ import annotations

import re

import pytest

from tests import ROOT

LOCKS = ["handler/requirements.lock", "cpu_engine/requirements.lock", "images/requirements.lock", "ci/requirements.lock", "ci/just.lock"]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_dependency_is_one_version_with_its_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[\w.\[\],-]+==[\w.+!-]+( ;|  )", line), line
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", line), line


def test_the_sdk_is_locked_past_the_versions_that_funnel_jobs_to_one_worker() -> None:
    """1.7.11 to 1.10.0 do on network volumes (runpod-python issue 517)."""
    locked = re.search(r"^runpod==(\d+)\.(\d+)", (ROOT / "handler" / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    assert locked
    assert (int(locked[1]), int(locked[2])) >= (1, 11)
