"""The engine's processes and logs, where they behave as awkwardly as they can."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from handler.logs import Tail
from handler.prestart import MARK
from handler.processes import Family

_PR_SET_CHILD_SUBREAPER = 36

COMING_AND_GOING = """
import os, time
print("ready", flush=True)
while True:
    if not os.fork():
        os.setsid()
        os._exit(0) if os.fork() else time.sleep(0.01)
        os._exit(0)
    os.wait()
"""
"""Starts processes that leave its session and end, all the time."""

ORPHANS = """
import os, time
for number in range(3):
    if not os.fork():
        os.setsid()
        time.sleep(60)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def _first_process() -> Iterator[None]:
    """Let this process get the orphans of its descendants, as the first process of a container does."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1) == 0
    yield
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def start(code: str) -> tuple[Family, subprocess.Popen[bytes]]:
    mark = uuid.uuid4().hex
    command, environment = [sys.executable, "-S", "-E", "-c", code], os.environ | {MARK: mark}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return Family(pid=process.pid, mark=mark), process


def test_processes_that_come_and_go_while_they_are_ended_are_all_ended() -> None:
    for _ in range(5):
        family, process = start(COMING_AND_GOING)
        family.kill()
        process.wait()
        assert not [member for member in family.members() if member.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.usefixtures("_first_process")
def test_the_first_process_of_a_container_reaps_what_an_engine_leaves() -> None:
    family, process = start(ORPHANS)
    orphans = [member.pid for member in family.members() if member.pid != process.pid]
    process.kill()
    process.wait()
    assert len(orphans) == 3
    family.kill()
    assert not [pid for pid in orphans if psutil.pid_exists(pid)], "no zombie is left"


def test_zombies_that_another_process_reaps_late_are_not_waited_for() -> None:
    """Rule: a zombie holds neither memory nor GPU, and only its parent can end it."""
    family, process = start("import os, time\nif not os.fork():\n    time.sleep(60)\nprint('ready', flush=True)\ntime.sleep(60)")
    other = next(member for member in family.members() if member.pid != process.pid)
    other.kill()
    began = time.monotonic()
    family.kill()
    assert time.monotonic() - began < 1
    process.wait()


def test_what_a_log_held_before_is_left_out_and_a_log_that_begins_anew_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "workerlog.0"
    log.write_text("out of memory, yesterday\n")
    tail = Tail(tmp_path, ["workerlog.*"])
    tail.skip()
    assert tail.lines() == []
    with log.open("a") as file:
        file.write("loading\nhal")
    assert tail.lines() == [("workerlog.0", "loading")]
    log.write_text("anew\n")
    assert tail.lines() == [("workerlog.0", "anew")]
