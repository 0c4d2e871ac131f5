"""A few of the random trials; `ci/just bench trials` runs hundreds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.handler.faults.balance import Question, complaints
from tests.handler.faults.trials import KINDS, draw, run
from tools.serve.platform_job import Job

pytestmark = pytest.mark.anyio

SEEDS = (1, 2)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS, ids=[f"seed={seed}" for seed in SEEDS])
async def test_every_job_ends_once_and_whole_or_with_an_error_whatever_happens(tmp_path: Path, seed: int, kind: str) -> None:
    wrong = await run(draw(seed, kind), tmp_path)
    assert not wrong, "\n".join(wrong)


def test_a_seed_names_one_trial() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(7, "network").questions == draw(7, "term").questions
    assert len({draw(seed).kind for seed in range(50)}) == len(KINDS)


def frame(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]}, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
RIGHT = [frame(" the") + frame(" engine"), frame(" says") + DONE]


@pytest.mark.parametrize(
    ("stream", "result", "done_count", "words"),
    [
        (RIGHT, {"output": RIGHT, "isStream": True}, 1, None),
        (RIGHT, None, 0, "0 ends"),
        (RIGHT, {"output": RIGHT, "isStream": True}, 2, "2 ends"),
        ([RIGHT[1]], {"output": RIGHT, "isStream": True}, 1, "no beginning"),
        ([RIGHT[0], RIGHT[0], RIGHT[1]], {"output": RIGHT, "isStream": True}, 1, "no beginning"),
        ([RIGHT[0][:-1]], {"output": RIGHT, "isStream": True}, 1, "not whole frames"),
        ([*RIGHT, RIGHT[0]], {"output": RIGHT, "isStream": True}, 1, "after the end"),
        ([RIGHT[0].replace(" the", "\ufffd")], {"output": RIGHT, "isStream": True}, 1, "no beginning"),
        (RIGHT[:1], {"output": RIGHT, "isStream": True}, 1, "streamed ' the engine' only"),
        (RIGHT, {"output": RIGHT[:1], "isStream": True}, 1, "ended with"),
        (RIGHT[:1], {"error": '{"error": {"message": "m", "type": "server_error"}}', "isStream": True}, 1, None),
        (RIGHT[:1], {"error": "KeyError: 'x'", "isStream": True}, 1, "no OpenAI error"),
    ],
    ids=[
        "right", "lost", "twice", "hole", "duplicate", "half-frame", "goes-on", "character", "early", "cut", "error", "repr"
    ],
)  # fmt: skip
def test_the_books_are_read_strictly(stream: list[str], result: dict[str, object] | None, done_count: int, words: str | None) -> None:
    job = Job("0", {})
    job.stream, job.result, job.done_count, job.status = stream, result, done_count, "COMPLETED"
    found = list(complaints(Question(at=0, form="chat", tokens=3), job))
    assert not found if words is None else any(words in one for one in found), found


TWICE = [*RIGHT[:1] * 2, *RIGHT[1:] * 3]


@pytest.mark.parametrize(
    ("stream", "output", "words"),
    [
        (RIGHT, RIGHT, None),
        (TWICE, RIGHT, None),
        (RIGHT[1:], RIGHT, "no beginning"),
        ([*RIGHT, RIGHT[0]], RIGHT, "after the end"),
        ([RIGHT[0], RIGHT[1][:20], RIGHT[1]], RIGHT, "no stream"),
    ],
    ids=["right", "twice", "hole", "goes-on", "half"],
)
def test_pieces_may_come_twice_only_as_a_whole_and_in_a_row(stream: list[str], output: list[str], words: str | None) -> None:
    job = Job("0", {})
    job.stream, job.result, job.done_count, job.status = stream, {"output": output, "isStream": True}, 2, "COMPLETED"
    found = list(complaints(Question(at=0, form="chat", tokens=3), job, twice=True))
    assert not found if words is None else any(words in one for one in found), found
