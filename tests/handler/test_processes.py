from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

import psutil

from handler.prestart import MARK
from handler.processes import Family

# Starts a grandchild in a session of its own that outlives its parent, and one that stays; both print nothing.
TREE = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={})
print("ready", flush=True)
time.sleep(60)
"""


def start(code: str) -> tuple[Family, subprocess.Popen[bytes]]:
    mark = uuid.uuid4().hex
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {MARK: mark}, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return Family(pid=process.pid, mark=mark), process


def test_every_process_of_an_engine_is_found_and_ended_even_without_its_parent() -> None:
    family, process = start(TREE)
    members = family.members()
    assert len(members) == 3
    process.kill()
    process.wait()
    left = family.members()
    assert len(left) == 2, "one left the session, the other has no mark"
    family.kill()
    assert not any(psutil.pid_exists(member.pid) and member.status() != psutil.STATUS_ZOMBIE for member in left)
    assert not [member for member in family.members() if member.status() != psutil.STATUS_ZOMBIE]


def test_a_family_without_processes_is_ended_at_once() -> None:
    started = time.monotonic()
    Family(pid=2**22 - 1, mark="of nobody").kill()
    assert time.monotonic() - started < 1


def test_work_grows_with_what_a_process_does() -> None:
    family, process = start('print("ready", flush=True)\nwhile True: pass')
    try:
        first = family.work()
        time.sleep(0.5)
        assert sum(family.work().cpu.values()) > sum(first.cpu.values())
    finally:
        family.kill()
        process.wait()
