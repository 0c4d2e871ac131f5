"""What a streamed token costs between the engine and RunPod: `ci/just bench stream`.

The engine is FastDeploy's server as it was recorded, with made-up tokens, `rate` per second for each stream (0: as fast as it can write);
the worker runs under the RunPod SDK's own loop; this process is the job server, with `latency` ms added to each POST. Without options every
combination is measured, with `quick=yes` those that have a target; the exit code is 1 when one was missed.

wall/ideal   from the submission of all jobs to the last job-done, against tokens / rate
POSTs/token  1 / (rate * latency) for a stream alone, for no token is held back while no POST is under way
us/token     processor time of the worker, the engine, and the job server
lag          from when the engine had to write a token, by its rate, to its arrival here; each token counts
last, RTT    from when the engine wrote the last token of a stream to its arrival, in round trips; the worst stream
late         how far the engine was behind its own rate at the end of a stream; the worst stream
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil

from images.arguments import Command, Key, number, whole, yes_or_no
from tests.handler.worker_process import Worker, replayed_engine
from tools.serve.job_server import JobServer
from tools.serve.platform_job import Job

RATES, LATENCIES, STREAMS = (40, 100), (0, 20, 50), (1, 50, 100, 256)
UNPACED = 1_000_000
"""Tokens per second of an engine whose rate is 0: more than can be written."""
UNPACED_TOKENS = 1500
HOLDS_CONTENT = '"delta":{"content":"'
HOLDS_NONE = HOLDS_CONTENT + '"'
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measurement."""

    streams: int
    rate: int
    """Tokens per second of each stream; 0 is unpaced."""
    latency: int
    """Milliseconds that a POST takes."""
    seconds: float
    """How long each stream is, if it is paced."""

    @property
    def tokens(self) -> int:
        """How many tokens each stream has."""
        return int(self.rate * self.seconds) or UNPACED_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFigures:
    """What was found; times in seconds."""

    wall: float
    posts: int
    processor: tuple[float, float, float]
    """Of the worker, the engine, and the job server."""
    lags: tuple[float, ...]
    """One for each of PERCENTILES."""
    last_lag: float
    late: float
    memory: int
    """Resident bytes of the worker."""


TARGETS = {
    (1, 40, 50): {"wall": 1.10, "trips": 2.0},
    (1, 100, 50): {"wall": 1.10, "posts": 0.25, "trips": 2.0},
    (100, 40, 50): {"wall": 1.15, "trips": 2.0},
    (256, 0, 0): {"tokens/s": 40_000.0},
}
"""By streams, rate and latency; all of them are upper bounds but tokens/s."""


def cells(values: Mapping[str, str]) -> list[Cell]:
    """Return the measurements that a command line means."""
    seconds = float(values["seconds"])
    asked = {name: int(values[name]) for name in ("streams", "rate", "latency") if values[name]}
    every = [*itertools.product(STREAMS, RATES, LATENCIES), (256, 0, 0)]
    if len(asked) == 3:
        every = [(asked["streams"], asked["rate"], asked["latency"])]
    elif values["quick"] == "yes":
        every = list(TARGETS)
    found = [Cell(streams=streams, rate=rate, latency=latency, seconds=seconds) for streams, rate, latency in every]
    return [cell for cell in found if all(getattr(cell, name) == value for name, value in asked.items())]


async def measure(wanted: Iterable[Cell]) -> bool:
    """Measure, print the table, and return whether every target among the cells was met."""
    met = True
    by_rate = sorted(wanted, key=lambda cell: (cell.rate, cell.latency, cell.streams))
    print(HEAD)
    for rate, together in itertools.groupby(by_rate, key=lambda cell: cell.rate):
        group, engine = list(together), ("--synthetic", "--tokens-per-second", str(rate or UNPACED), "--tokens", "1000000")
        async with JobServer() as jobs, Worker(replayed_engine(*engine), jobs.environment(), {"MAX_CONCURRENCY": "512"}) as worker:
            await jobs.wait_worker(60)
            for cell in group:
                row = await one(cell, jobs, worker)
                missed = list(misses(cell, row))
                print(line(cell, row), "  ".join(missed), flush=True)
                met = met and not missed
            streams = max(cell.streams for cell in group)
            bare = await bare_engine(worker.engine_url, streams, 2 * rate or UNPACED_TOKENS)
            print(f"(the engine alone, {streams} streams of {rate or 'unbounded'} tokens/s: {bare:,.0f} tokens/s)")
    return met


async def one(cell: Cell, jobs: JobServer, worker: Worker) -> CellFigures:
    """Measure one cell.

    Raises:
        AssertionError: a stream did not arrive as the engine sent it.
    """
    jobs.latency_s = cell.latency / 1000
    jobs.jobs.clear()
    processes = [psutil.Process(worker.process.pid), worker.engine(), psutil.Process()]
    before = [processor(process) for process in processes]
    submitted = time.monotonic()
    marks = [f"{submitted}-{number}" for number in range(cell.streams)]
    running = [jobs.submit(_question(mark, cell.tokens), id=mark) for mark in marks]
    for job in running:
        await job.wait_done(60 + 10 * cell.seconds)
    wall = max(job.ended_at or 0 for job in running) - submitted
    spent = tuple(processor(process) - start for process, start in zip(processes, before, strict=True))
    entries = await _entries(worker.engine_url)
    lags, last_lag, late = [], 0.0, 0.0
    for job in running:
        began, ended = entries[job.id]
        counts = [tokens_of(piece) for piece in job.stream]
        _whole(job, cell.tokens, sum(counts))
        last_lag = max(last_lag, job.arrivals[-1] - ended)
        if cell.rate:
            late = max(late, ended - began - cell.tokens / cell.rate)
            lags += list(_lags(zip(counts, job.arrivals, strict=True), began, cell.rate))
    lags.sort()
    return CellFigures(
        wall=wall,
        posts=sum(len(job.stream) for job in running),
        processor=(spent[0], spent[1], spent[2]),
        lags=tuple(lags[len(lags) * percentile // 100] if lags else 0.0 for percentile in PERCENTILES),
        last_lag=last_lag,
        late=late,
        memory=processes[0].memory_info().rss,
    )


def _question(mark: str, tokens: int) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": mark}], "stream": True, "max_tokens": tokens}
    return {"openai_route": "/v1/chat/completions", "openai_input": body}


async def _entries(engine_url: str) -> dict[str, tuple[float, float]]:
    """When the engine began and ended each stream, by the mark in its question, on this process's clock."""
    async with aiohttp.ClientSession() as session, session.get(f"{engine_url}/__seen") as response:
        seen = [entry for entry in await response.json() if entry["path"] == "/v1/chat/completions" and entry["last_event"]]
    offset = time.time() - time.monotonic()
    return {
        json.loads(entry["body"])["messages"][0]["content"]: (entry["first_byte"] - offset, entry["last_event"] - offset) for entry in seen
    }


def tokens_of(piece: str) -> int:
    """How many tokens a piece of a stream holds."""
    return piece.count(HOLDS_CONTENT) - piece.count(HOLDS_NONE)


def _whole(job: Job, tokens: int, found: int) -> None:
    assert found == tokens, f"{job}: {found} tokens, expected {tokens}"
    assert job.stream[-1].endswith("data: [DONE]\n\n"), f"{job}: ends with {job.stream[-1][-80:]!r}"
    assert job.result is not None
    assert job.result["output"] == job.stream, f"{job}: the last output is not what was streamed"


def _lags(arrived: Iterable[tuple[int, float]], began: float, rate: int) -> Iterator[float]:
    """How long after its time each token arrived."""
    number = 0
    for count, at in arrived:
        for _ in range(count):
            number += 1
            yield at - began - number / rate


def processor(process: psutil.Process) -> float:
    """Seconds of processor time that it used so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def bare_engine(url: str, streams: int, tokens: int) -> float:
    """Tokens per second that arrive from the engine at a client that only counts bytes."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(_question("bare", tokens)["openai_input"]).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def read() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        writer.write(head + body)
        while await reader.read(1 << 20):
            pass
        writer.close()

    started = time.monotonic()
    await asyncio.gather(*(read() for _ in range(streams)))
    return streams * tokens / (time.monotonic() - started)


HEAD = (
    "streams  tokens/s  latency  wall/ideal  tokens/s  POSTs/   worker  engine  server  lag p50     p95     p99   last,   late  worker\n"
    "            each       ms                  in all   token      us per token                              ms    RTT     ms      MB"
)


def figures(cell: Cell, row: CellFigures) -> dict[str, float]:
    """What targets are set for."""
    all_tokens = cell.streams * cell.tokens
    return {
        "wall": row.wall * cell.rate / cell.tokens,
        "tokens/s": all_tokens / row.wall,
        "posts": row.posts / all_tokens,
        "trips": 1000 * row.last_lag / cell.latency if cell.latency else 0.0,
    }


def line(cell: Cell, row: CellFigures) -> str:
    """One line of the table."""
    found = figures(cell, row)
    micros = [1e6 * seconds / (cell.streams * cell.tokens) for seconds in row.processor]
    lags = [1000 * lag for lag in row.lags]
    wall, trips = (f"{found['wall']:.3f}" if cell.rate else "-"), (f"{found['trips']:.2f}" if cell.latency else "-")
    return (
        f"{cell.streams:7}  {cell.rate or 'max':>8}  {cell.latency:7}  {wall:>10}  {found['tokens/s']:8,.0f}  {found['posts']:6.3f}"
        f"  {micros[0]:7.1f} {micros[1]:7.1f} {micros[2]:7.1f}  {lags[0]:7.0f} {lags[1]:7.0f} {lags[2]:7.0f}"
        f"  {trips:>6}  {1000 * row.late:5.0f}  {row.memory / 1e6:6.0f}"
    )


def misses(cell: Cell, row: CellFigures) -> Iterator[str]:
    """The targets that were missed, in words."""
    found = figures(cell, row)
    for name, bound in TARGETS.get((cell.streams, cell.rate, cell.latency), {}).items():
        if found[name] < bound if name == "tokens/s" else found[name] > bound:
            yield f"MISSED: {name} {found[name]:,.2f}, target {bound:,g}"


def run(values: Mapping[str, str]) -> int:
    """Measure."""
    return 0 if asyncio.run(measure(cells(values))) else 1


COMMAND = Command(
    name="bench stream",
    help="Measure what a streamed token costs between the engine and RunPod; without streams=, rate= and latency= in every combination.",
    keys=(
        Key("quick", "Measure only the combinations that have a target.", check=yes_or_no),
        Key("streams", "Streams at the same time.", check=whole(1, 4096)),
        Key("rate", "Tokens a second of each stream; 0 is as fast as the engine writes.", check=whole(0, 100_000)),
        Key("latency", "Milliseconds that are added to each POST.", check=whole(0, 10_000)),
        Key("seconds", "Length of each stream.", default="5", check=number(0.1, 3600)),
    ),
    run=run,
)
