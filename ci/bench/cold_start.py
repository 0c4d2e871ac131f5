"""What the worker adds to the engine's own cold start: `ci/just bench start`.

The engine is FastDeploy's server as it was recorded, which opens its port `delay` seconds after its start. In each round it is started
alone, then by the worker with its HTTP face, then by the worker under the RunPod SDK's loop; counted is from the start of the process to
the first answer, the first 200 of /ping, and the first job-take. Medians, with the difference to the engine alone.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Mapping

import aiohttp

from handler.engine import free_ports
from images.arguments import Command, Key, number, whole
from tests import ROOT
from tests.handler.worker_process import Worker, environment, replayed_engine
from tools.serve.job_server import JobServer


async def _until(url: str, status: int, deadline: float) -> None:
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            try:
                async with session.get(url) as response:
                    if response.status == status:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.005)
    raise TimeoutError(url)


async def engine_alone(delay: float) -> float:
    """Return the seconds from the engine's start to its first answer."""
    [port] = free_ports(1)
    variables = environment(replayed_engine("--start-delay", str(delay)))
    argv = [sys.executable, str(ROOT / "handler/fastdeploy/serve_on_loopback.py"), "--port", str(port), "--host", "127.0.0.1"]
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(*argv, env=variables, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL)
    try:
        await _until(f"http://127.0.0.1:{port}/health", 200, started + delay + 30)
        return time.monotonic() - started
    finally:
        process.kill()
        await process.wait()


async def with_http_face(delay: float) -> float:
    """Return the seconds from the worker's start to its first 200 on /ping."""
    [port] = free_ports(1)
    async with Worker(replayed_engine("--start-delay", str(delay)), {"PORT": str(port)}) as worker:
        await _until(f"http://127.0.0.1:{port}/ping", 200, worker.started + delay + 30)
        return time.monotonic() - worker.started


async def with_queue(delay: float) -> float:
    """Return the seconds from the worker's start to the first job-take."""
    async with JobServer() as jobs, Worker(replayed_engine("--start-delay", str(delay)), jobs.environment()) as worker:
        await jobs.wait_worker(delay + 30)
        return time.monotonic() - worker.started


async def measure(rounds: int, delay: float) -> None:
    """Print the table."""
    ways = {"engine alone": engine_alone, "worker, HTTP": with_http_face, "worker, queue": with_queue}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(await way(delay))
    alone = statistics.median(seconds["engine alone"])
    print(f"{'':14}  median s  min s  added ms")
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"{name:14}  {median:8.3f}  {min(found):5.3f}  {1000 * (median - alone):8.0f}")


def run(values: Mapping[str, str]) -> int:
    """Measure."""
    asyncio.run(measure(int(values["rounds"]), float(values["delay"])))
    return 0


COMMAND = Command(
    name="bench start",
    help="Measure what the worker adds to the engine's own cold start.",
    keys=(
        Key("rounds", "How often each is started.", default="5", check=whole(1, 1000)),
        Key("delay", "Seconds from the engine's start to its open port.", default="3", check=number(0, 600)),
    ),
    run=run,
)
