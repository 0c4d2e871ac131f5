"""The command line as a child process."""

from __future__ import annotations

import asyncio
import os
import sys

from tests import ROOT
from tests.twins.rest_api import KEY, Twin


class Said:
    """How a run ended, and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n---\n{self.err}"


async def start(twin: Twin, *words: str, **variables: str) -> asyncio.subprocess.Process:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("RUNPOD_", "HF_"))}
    # The discard port: no hub answers, unless the test has one.
    environment = {**inherited, **twin.environment, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9", **variables}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tools.deploy", "poll=0.02", *words, cwd=ROOT, env=environment, stdout=-1, stderr=-1
    )


async def ended(process: asyncio.subprocess.Process) -> Said:
    out, err = await asyncio.wait_for(process.communicate(), 45)
    assert process.returncode is not None
    said = Said(process.returncode, out.decode(), err.decode())
    assert KEY not in repr(said)
    assert "Traceback" not in repr(said)
    return said


async def deploy(twin: Twin, *words: str, **variables: str) -> Said:
    return await ended(await start(twin, *words, **variables))


def order(twin: Twin, tag: str = "1") -> tuple[str, ...]:
    return (f"image={twin.address}/me/worker:{tag}", "gpu=ADA_24")


def second(twin: Twin) -> str:
    """A later image of the same worker."""
    return twin.push("worker", "2", IMAGE_ARCHITECTURES="80,86,89,90", IMAGE_CUDA="12.6")
