"""Random faults at random moments: a worker under the SDK's own loop, jobs of every form, and one kind of trouble; then the books are read.

A trial is drawn from its seed, so that a seed names it; only the machine's timing is not the seed's. What must hold, whatever happens:

1. Every job that was handed out ends exactly once at the job server, unless it was cancelled; one that was not handed out stays queued.
2. It ends with its whole text, or with an OpenAI error.
3. What was streamed is a beginning of the right text: no hole, no duplicate, no broken character, whole frames only.
4. The worker leaves with the right exit code, and no process survives.

One thing cannot be kept out (rule D5 of `handler/delivery.py`): where the server kept a POST and its answer was lost (`answers-lost`), a
piece may come twice, as a whole, and the end of a job too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from tests.handler.faults.balance import Question, complaints, crossed
from tests.handler.faults.case import Case
from tests.twins.faulty_engine import Plan
from tools.serve.job_server import Fault, JobServer
from tools.serve.platform_job import Job

__all__ = ["KINDS", "Trial", "draw", "run"]

KINDS = ("term", "term-early", "cancel", "network", "answers-lost", "engine-killed", "engine-stalled")
_NETWORK = ("network", "answers-lost")
FORMS = ("chat", "text", "whole", "native")
STALL_TIMEOUT = 1.0
LONGEST = 60.0
"""Seconds after which a trial that has not ended has failed."""
VANISHED = 2.0
"""Seconds after the worker's end in which its processes must be gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one seed stands for; times in seconds after the worker first asked for jobs, those of `term-early` after its start."""

    seed: int
    kind: str
    rate: int
    latency: float
    questions: tuple[Question, ...]
    moment: float
    """When the trouble begins."""
    stalled: float
    """How long the engine stands still."""
    faults: tuple[tuple[float, Any, Fault], ...]
    """When which POSTs meet what."""


def draw(seed: int, kind: str | None = None) -> Trial:
    """Return the trial of a seed, of its own kind or of the given one."""
    dice = random.Random(seed)
    own = dice.choice(KINDS)
    kind = kind or own
    questions = [_question(dice) for _ in range(dice.randint(2, 6))]
    if kind == "cancel":
        questions = [
            replace(one, cancelled_at=one.at + dice.uniform(0, 1.5) * dice.choice((0.1, 1))) if dice.random() < 0.7 else one
            for one in questions
        ]
    faults = [_fault(dice, kept=kind == "answers-lost") for _ in range(dice.randint(1, 5))]
    return Trial(
        seed=seed,
        kind=kind,
        rate=dice.choice((40, 100, 1000)),
        latency=dice.choice((0.0, 0.02, 0.05)),
        questions=tuple(questions),
        moment=dice.uniform(0, 2.5),
        stalled=dice.choice((0.3, 0.7, 3.0)),
        faults=tuple(faults) if kind in _NETWORK else (),
    )


def _question(dice: random.Random) -> Question:
    return Question(at=dice.uniform(0, 1.5), form=dice.choice(FORMS), tokens=dice.choice((1, 3, 20, 60, 150)))


def _fault(dice: random.Random, *, kept: bool) -> tuple[float, Any, Fault]:
    kind = dice.choice(("job-stream", "job-stream", "job-done", "job-done" if kept else "job-take"))
    status = dice.choice((None, None, 429, 500, 502, 503))
    return dice.uniform(0, 2.5), kind, Fault(times=dice.randint(1, 3), status=status, delivered=kept)


async def run(trial: Trial, folder: Path) -> list[str]:
    """Run it and return what did not hold, with the worker's own words; an empty list is a success."""
    engine = ("--synthetic", "--tokens-per-second", str(trial.rate), "--tokens", "1000")
    limits = {"PORT": "", "REQUEST_STALL_TIMEOUT": f"{STALL_TIMEOUT:g}", "REQUEST_STALLS_FATAL": "2"}
    async with JobServer(poll_s=3) as jobs, Case(folder, Plan(), limits, jobs.environment(), replay=engine) as worker:
        jobs.latency_s = trial.latency
        try:
            wrong = await asyncio.wait_for(_run(trial, jobs, worker), LONGEST)
        except asyncio.TimeoutError:
            wrong = [f"the worker has not ended within {LONGEST:g} s"]
        else:
            wrong += await _survivors(worker)
        for process in worker.living():  # one that holds the worker's output open would be waited for
            process.kill()
        twice = trial.kind == "answers-lost"
        for one, job in zip(trial.questions, jobs.jobs.values(), strict=False):
            wrong += [f"{one}: {job}: {words}" for words in complaints(one, job, twice=twice)]
        problems = [problem for problem in jobs.problems if not (twice and problem.kind == "second-done")]
        wrong += [str(problem) for problem in problems if not crossed(problem, jobs.jobs.get(problem.job))]
        wrong += [line for line in worker.lines if line.startswith("Traceback")]
    return [str(trial), *wrong, worker.output] if wrong else []


async def _run(trial: Trial, jobs: JobServer, worker: Case) -> list[str]:
    """Do to the worker what the trial says, wait for its end, and return what is wrong with that."""
    ended = asyncio.create_task(_exit_code(worker))
    if trial.kind == "term-early":
        for one in trial.questions:
            jobs.submit(one.job_input())
        await asyncio.sleep(trial.moment)
        worker.signal(signal.SIGTERM)
    else:
        await jobs.wait_worker(30)
        running = await _timeline(trial, jobs, worker)
        if trial.kind in {"cancel", "engine-stalled", *_NETWORK}:
            answered = asyncio.create_task(_all_ended(running))
            await asyncio.wait({ended, answered}, return_when=asyncio.FIRST_COMPLETED)
            answered.cancel()
            if worker.process.returncode is None:
                worker.signal(signal.SIGTERM)
    code = await ended
    # A TERM outside the time in which Python handles signals ends it by itself, as in its first and last moments.
    expected = {
        "term-early": {0, 130, -signal.SIGTERM},
        "engine-killed": {1},
        "engine-stalled": {0, 1, -signal.SIGTERM},
    }.get(trial.kind, {0})
    return [] if code in expected else [f"exit code {code}, expected one of {expected}"]


async def _exit_code(worker: Case) -> int:
    """Wait for the worker's end alone; its output may be held open by what it left."""
    for _ in range(int(LONGEST * 50)):
        if worker.process.returncode is not None:
            break
        await asyncio.sleep(0.02)
    return worker.process.returncode or 0


async def _survivors(worker: Case) -> list[str]:
    """What its engine left, and what of its processes lives on for longer than a heartbeat needs to see that the worker is gone."""
    for _ in range(int(VANISHED * 50)):
        if not worker.living():
            break
        await asyncio.sleep(0.02)
    with contextlib.suppress(psutil.NoSuchProcess):
        return [f"survived: {one}" for one in worker.remains()]
    return []


async def _all_ended(jobs: list[Job]) -> None:
    for job in jobs:
        await job.bell.until(lambda job=job: job.has_ended, None)  # type: ignore[misc]


async def _timeline(trial: Trial, jobs: JobServer, worker: Case) -> list[Job]:
    """Let everything happen at its time, and return the jobs in the order of the questions."""
    clock, begun = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    moments: list[tuple[float, int, Any]] = [(one.at, number, one) for number, one in enumerate(trial.questions)]
    moments += [(one.cancelled_at, number, None) for number, one in enumerate(trial.questions) if one.cancelled_at is not None]
    moments += [(at, -1, (kind, fault)) for at, kind, fault in trial.faults]
    moments += [(trial.moment, -1, "trouble"), (trial.moment + trial.stalled, -1, "relief")]
    submitted: dict[int, Job] = {}
    for at, number, what in sorted(moments, key=lambda moment: moment[0]):
        await asyncio.sleep(max(0.0, begun + at - clock.time()))
        if isinstance(what, Question):
            submitted[number] = jobs.submit(what.job_input(), id=str(number))
        elif isinstance(what, tuple):
            jobs.faults[what[0]] = replace(what[1])
        elif what is None:
            jobs.stop(str(number))
        else:
            _trouble(trial.kind, worker, begins=what == "trouble")
    # A job that was submitted later stands later in the server's books.
    jobs.jobs = {str(number): submitted[number] for number in sorted(submitted)}
    return list(jobs.jobs.values())


def _trouble(kind: str, worker: Case, *, begins: bool) -> None:
    """Strike, or make good again."""
    if worker.process.returncode is not None:
        return
    if kind == "term" and begins:
        worker.signal(signal.SIGTERM)
    elif kind == "engine-killed" and begins:
        worker.kill("server")
    elif kind == "engine-stalled":
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(worker.pid("server")).send_signal(signal.SIGSTOP if begins else signal.SIGCONT)
