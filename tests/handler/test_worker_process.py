"""What the tests start workers with must not fail by itself."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from tests.handler.worker_process import Worker

pytestmark = pytest.mark.anyio


async def test_a_worker_that_ended_while_the_loop_was_busy_is_left_without_an_error() -> None:
    """On some Pythons a thread of asyncio's reaps it: its pid is gone before the loop knows."""
    async with Worker({"MODEL": "/nowhere"}) as worker:
        os.kill(worker.process.pid, signal.SIGKILL)
        until = time.monotonic() + 1
        while psutil.pid_exists(worker.process.pid) and time.monotonic() < until:
            time.sleep(0.01)  # noqa: ASYNC251  # the loop is to be busy
