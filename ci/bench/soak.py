"""Whether the worker stays as it was: `ci/just bench soak`.

A worker under the RunPod SDK's own loop answers `jobs` short jobs of every kind (streams, whole answers, the native shape, mistakes, jobs
that are cancelled), `together` at a time, and then `minutes` of streams of 5 to 20 s, of which `together` run at a time. Samples of its
memory, open files, connections, threads and asyncio tasks are printed. Each must be flat in both parts, the first fifth of which is
warm-up: the line through the samples rises by no more than 5 % and a little. If one does, or if a job ends wrongly, the exit code is 1.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import psutil

from images.arguments import Command, Key, number, whole
from tests.handler.faults.balance import crossed
from tests.handler.worker_process import Worker, replayed_engine
from tools.serve.job_server import JobServer

STREAM_RATE = 25
STREAM_SECONDS = 20
"""Of the longest streams, unless the part is too short for them."""
SAMPLES = 20
"""In each part."""
PROBE = """
import asyncio, gc, os, signal
def tell(*_):
    os.write(2, b"soak: %d tasks %d objects\\n" % (len(asyncio.all_tasks()), len(gc.get_objects())))
if os.environ.pop("SOAK", ""):
    signal.signal(signal.SIGUSR2, tell)
"""
"""Runs in the worker before its own code: prints the number of its tasks on a signal."""
KEPT = 200
"""Ended jobs that the job server remembers, for what still comes about them."""
ROOM = {"megabytes": 6.0, "files": 6.0, "connections": 6.0, "threads": 1.0, "tasks": 12.0, "objects": 8000.0}
"""How far each may rise beside the 5 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How the worker was at one moment."""

    at: float
    """Seconds since the start of its part."""
    ended: int
    """Jobs so far."""
    megabytes: float
    files: int
    connections: int
    threads: int
    tasks: int
    objects: int


class Soak:
    """One worker and what was seen of it."""

    def __init__(self, jobs: JobServer, worker: Worker, together: int) -> None:
        self._jobs, self._worker, self._together = jobs, worker, together
        self._process = psutil.Process(worker.process.pid)
        self.ended = 0
        self.wrong: list[str] = []
        self._past: deque[str] = deque()

    async def part(self, inputs: Iterator[tuple[Any, str]], more: Callable[[int], bool], interval: Callable[[], float]) -> list[Sample]:
        """Let jobs run, `together` at a time, for as long as `more` says of the number begun; return the samples."""
        begun, started, samples, running = 0, time.monotonic(), list[Sample](), set[asyncio.Task[None]]()
        print(f"{'s':>6} {'jobs':>7} {'MB':>7} {'files':>6} {'conn.':>6} {'thr.':>5} {'tasks':>6} {'objects':>8}")
        while more(begun):
            while len(running) < self._together and more(begun):
                running.add(asyncio.create_task(self._one(*next(inputs))))
                begun += 1
            done, running = await asyncio.wait(running, timeout=1, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if interval() >= len(samples) + 1:
                samples.append(await self._sample(started))
                print("{:6.0f} {:7} {:7.1f} {:6} {:6} {:5} {:6} {:8}".format(*astuple(samples[-1])), flush=True)
        await asyncio.gather(*running)
        return samples

    async def _one(self, job_input: Any, expected: str) -> None:
        """Submit one job and see to its end; `expected` is `whole`, `error` or `cancel`."""
        job = self._jobs.submit(job_input)
        if expected == "cancel":
            await job.wait_stream(1, 60)
            self._jobs.stop(job.id)
        else:
            result = await job.wait_done(60 + STREAM_SECONDS)
            if ("error" in result) is not (expected == "error"):
                self.wrong.append(f"{job}: expected {expected}, got {str(result)[:300]}")
        self._past.append(job.id)
        if len(self._past) > KEPT:
            del self._jobs.jobs[self._past.popleft()]
        self._jobs.takes.clear()
        self._jobs.pings.clear()
        self.ended += 1

    async def _sample(self, started: float) -> Sample:
        self._worker.lines.clear()
        self._worker.signal(signal.SIGUSR2)
        _, tasks, _, objects, _ = (await self._worker.wait_line("^soak: ")).split()
        with self._process.oneshot():
            return Sample(
                at=time.monotonic() - started,
                ended=self.ended,
                megabytes=self._process.memory_info().rss / 1e6,
                files=self._process.num_fds(),
                connections=len(self._process.net_connections()),
                threads=self._process.num_threads(),
                tasks=int(tasks),
                objects=int(objects),
            )


def rises(samples: list[Sample]) -> Iterator[str]:
    """Say which figures rise by more than they may."""
    steady = samples[len(samples) // 5 :]
    times = [sample.at for sample in steady]
    for name, room in ROOM.items():
        values = [float(getattr(sample, name)) for sample in steady]
        slope, start = statistics.linear_regression(times, values)
        rise, allowed = slope * (times[-1] - times[0]), 0.05 * (start + slope * times[0]) + room
        if rise > allowed:
            yield f"{name} rises by {rise:.1f} in {times[-1] - times[0]:.0f} s, allowed are {allowed:.1f}"


def short_jobs() -> Iterator[tuple[Any, str]]:
    """Jobs of every kind, over and over, with what becomes of them."""
    messages = [{"role": "user", "content": "Hello"}]

    def chat(**body: Any) -> dict[str, Any]:
        return {"openai_route": "/v1/chat/completions", "openai_input": {"messages": messages, "max_tokens": 5, **body}}

    kinds: list[tuple[Any, str]] = [
        (chat(stream=True), "whole"),
        (chat(), "whole"),
        ({"messages": messages, "max_tokens": 5, "stream": True}, "whole"),
        ({"openai_route": "/v1/completions", "openai_input": {"prompt": "Hello", "stream": True, "max_tokens": 5}}, "whole"),
        (chat(temperature="hot"), "error"),
        (chat(stream=True, max_tokens=1000), "cancel"),
    ]
    return itertools.cycle(kinds)


def long_streams(longest: float) -> Iterator[tuple[Any, str]]:
    """Streams of `longest` seconds and less, over and over."""
    for share in itertools.cycle((1, 0.25, 0.75, 0.5)):
        body = {
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "max_tokens": max(1, int(longest * share * STREAM_RATE)),
        }
        yield {"openai_route": "/v1/chat/completions", "openai_input": body}, "whole"


async def measure(count: int, minutes: float, together: int) -> bool:
    """Run both parts, print the verdict, and return whether it is good."""
    engine = replayed_engine("--synthetic", "--tokens-per-second", str(STREAM_RATE), "--tokens", "1000")
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.to_thread(Path(folder, "sitecustomize.py").write_text, PROBE, encoding="utf-8")
        engine |= {"PYTHONPATH": f"{folder}:{engine['PYTHONPATH']}", "SOAK": "worker", "MAX_CONCURRENCY": str(2 * together)}
        async with JobServer() as jobs, Worker(engine, jobs.environment()) as worker:
            await jobs.wait_worker(60)
            soak = Soak(jobs, worker, together)
            print(f"{count} short jobs")
            short = await soak.part(short_jobs(), lambda begun: begun < count, lambda: soak.ended * SAMPLES / count)
            print(f"{minutes:g} minutes of streams")
            started, length = time.monotonic(), 60 * minutes
            streams = await soak.part(
                long_streams(min(STREAM_SECONDS, length / 4)),
                lambda _: time.monotonic() - started < length,
                lambda: (time.monotonic() - started) * SAMPLES / length,
            )
            worker.signal(signal.SIGTERM)
            if code := await worker.wait(60):
                soak.wrong.append(f"the worker ended with exit code {code}")
    problems = [str(one) for one in jobs.problems if not crossed(one, jobs.jobs.get(one.job))]
    found = [*rises(short), *rises(streams), *soak.wrong, *problems]
    print("\n".join(found) or "flat")
    return not found


def run(values: Mapping[str, str]) -> int:
    """Measure."""
    return 0 if asyncio.run(measure(int(values["jobs"]), float(values["minutes"]), int(values["together"]))) else 1


COMMAND = Command(
    name="bench soak",
    help="Tell whether the worker's memory, files, connections and tasks stay flat.",
    keys=(
        Key("jobs", "Short jobs of the first part.", default="20000", check=whole(1)),
        Key("minutes", "Length of the second part, which has long streams.", default="10", check=number(0.01)),
        Key("together", "Jobs that run at the same time.", default="64", check=whole(1, 1000)),
    ),
    run=run,
)
