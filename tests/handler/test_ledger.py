from __future__ import annotations

import logging
import re
import time

import psutil
import pytest

from handler.ledger import Ledger


def test_phases_are_counted_from_the_start_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ledger = Ledger()
    ledger.note("first")
    ledger.note("second")
    ledger.close()
    found = re.fullmatch(r"cold start: first (\d+\.\d\d) s, second (\d+\.\d\d) s", caplog.messages[-1])
    assert found
    first, second = (float(seconds) for seconds in found.groups())
    age = time.time() - psutil.Process().create_time()
    assert first <= second
    assert abs(age - second) < 1.5
