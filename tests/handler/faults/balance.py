"""Reads in the job server's books whether a worker did right by a job, whatever befell it: the rules stand in trials.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, groupby, islice, zip_longest
from typing import Any

from tests.twins.replay.synthetic import WORDS
from tools.serve.job_server import Problem
from tools.serve.platform_job import Job

__all__ = ["Question", "complaints", "crossed"]

CROSSED = 2.0
"""Seconds within which the news of a cancellation and the end of the job may cross."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One job."""

    at: float
    """Seconds after the worker first asked for jobs."""
    form: str
    tokens: int
    cancelled_at: float | None = None

    @property
    def text(self) -> str:
        """The right answer."""
        return "".join(islice(cycle(WORDS), self.tokens))

    def job_input(self) -> dict[str, Any]:
        """What is submitted."""
        messages = [{"role": "user", "content": "Hello"}]
        if self.form == "native":
            return {"messages": messages, "max_tokens": self.tokens, "stream": True}
        question = {"prompt": "Hello"} if self.form == "text" else {"messages": messages}
        route = "/v1/completions" if self.form == "text" else "/v1/chat/completions"
        return {"openai_route": route, "openai_input": {**question, "max_tokens": self.tokens, "stream": self.form != "whole"}}


def complaints(question: Question, job: Job, *, twice: bool = False) -> Iterator[str]:
    """Say what the server's books hold against the worker; `twice` allows for pieces and ends that came twice."""
    if job.status == "IN_QUEUE":
        return
    if job.status == "CANCELLED":
        if job.done_count > 1:
            yield f"{job.done_count} ends"
    elif job.result is None or not (job.done_count == 1 or twice):
        yield f"{job.done_count} ends, expected 1"
        return
    try:
        streamed = _said(_once(job) if twice else job.stream, question.form)
        ended = _said((job.result or {}).get("output", []), question.form)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"what came is no stream: {error!r}: {job.stream}, {job.result}"
        return
    if not question.text.startswith(streamed):
        yield f"streamed {streamed!r}, which is no beginning of {question.text!r}"
    if job.result is None or job.status == "CANCELLED":
        return
    if "error" in job.result:
        if not _is_openai_error(job.result["error"]):
            yield f"ended with {job.result['error']!r}, which is no OpenAI error"
        return
    if job.result["isStream"] is not True or ended != question.text:
        yield f"ended with {job.result!r}, expected {question.text!r}"
    if question.form != "whole" and streamed != question.text:
        yield f"streamed {streamed!r} only, and ended well"


def _once(job: Job) -> list[Any]:
    """What was streamed, without the pieces that came twice in a row and stand in the result once."""
    streamed, whole = ([list(run) for _, run in groupby(pieces)] for pieces in (job.stream, (job.result or {}).get("output") or []))
    once: list[Any] = []
    run: list[Any]
    right: list[Any]
    for run, right in zip_longest(streamed, whole, fillvalue=[]):
        doubled = run[:1] == right[:1] and len(run) > len(right)
        once += right if doubled else run
    return once


def _said(pieces: list[Any], form: str) -> str:
    """The text in the pieces of a stream; raises ValueError for one that is not made of whole frames."""
    if form == "native":
        return "".join(token for piece in pieces for choice in piece["choices"] for token in choice["tokens"])
    if form == "whole":
        return "".join(choice["message"]["content"] for piece in pieces for choice in piece["choices"])
    text, done = "", False
    for frame in "".join(pieces).split("\n\n")[:-1]:
        if done:
            raise ValueError(f"after the end: {frame!r}")
        if not frame.startswith("data: "):
            raise ValueError(f"not a frame: {frame!r}")
        done = frame == "data: [DONE]"
        for choice in () if done else json.loads(frame.removeprefix("data: ")).get("choices", ()):
            text += (choice["text"] if form == "text" else choice["delta"].get("content")) or ""
    for piece in pieces:
        if not piece.endswith("\n\n"):
            raise ValueError(f"not whole frames: {piece!r}")
    return text


def _is_openai_error(text: Any) -> bool:
    try:
        error = json.loads(text)["error"]
        return bool(error["message"] and error["type"]) and "Traceback" not in text
    except (ValueError, KeyError, TypeError):
        return False


def crossed(problem: Problem, job: Job | None) -> bool:
    """Whether a problem is only that something about the job was under way when its cancellation was."""
    after_stop = problem.kind in {"done-after-stop", "chunk-after-stop"}
    return after_stop and (job is None or job.ended_at is None or problem.at - job.ended_at < CROSSED)
