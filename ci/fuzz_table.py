"""Print what FastDeploy did with each odd request that was tried on it, and what the worker answers: `ci/just fuzz-table`.

The requests and FastDeploy's answers are data of the tests. The worker's answer is made by the code that makes it in service: a refusal by
`check`, or FastDeploy's recorded answer to what is sent on, as `to_openai` translates it. Exits with 1 if a request that FastDeploy never
answered would be sent on, or a caller's mistake would come back as a 500.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handler.errors import EngineRejected, InvalidJob, to_openai
from handler.fastdeploy.checks import check
from handler.fastdeploy.rules import CAPABILITIES, Rules
from handler.job import CHAT
from images.arguments import Command, call

CASES = Path(__file__).parent.parent / "tests" / "handler" / "fastdeploy" / "data" / "fuzz.json"
RELEASES = ("2.3", "2.5")
QUESTION = {"messages": [{"role": "user", "content": "Say Hi"}]}
SERVED = "tiny-qwen3"
# FastDeploy fails on these for what its own state was at the time, not for what they hold; the worker sends them without their id.
ONLY_BY_ID = frozenset({"dup request_id", "dup request_id2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzRow:
    """One request on one release; `status` of FastDeploy is None where it never answered."""

    case: str
    release: str
    fastdeploy: int | None
    sent: bool
    status: int | None
    param: str | None
    message: str

    @property
    def is_bad(self) -> bool:
        """Whether the caller would wait for ever, or get a 500."""
        return self.status is None or self.status >= 500


def rows() -> Iterator[FuzzRow]:
    """Yield each case on each release, under the rules of the set-up that it was tried on: no parser, no guided decoding, a text model."""
    for case in json.loads(CASES.read_bytes()):
        for release in RELEASES:
            yield _row(case["case"], case["body"], release, case[release])


def _row(case: str, body: dict[str, Any], release: str, recorded: dict[str, Any]) -> FuzzRow:
    rules = Rules(engine=CAPABILITIES[release], served_name=SERVED, vocab_size=2048, max_model_len=4096, logprobs=False, vision=False)
    try:
        checked = check(QUESTION | body, CHAT, rules)
    except InvalidJob as error:
        return FuzzRow(
            case=case,
            release=release,
            fastdeploy=recorded["status"],
            sent=False,
            status=error.status,
            param=error.param,
            message=str(error),
        )
    changed = checked.body != QUESTION | body
    status, param, notes = recorded["status"], None, ["sent on" + (" changed" if changed else ""), *checked.warnings]
    if case in ONLY_BY_ID:
        status = 200
    elif "error" in recorded:
        status, answer = to_openai(EngineRejected(recorded["status"], json.dumps({"error": recorded["error"]}).encode()))
        param = answer["error"]["param"]
        notes = [answer["error"]["message"]]
    message = "; ".join(notes)
    return FuzzRow(case=case, release=release, fastdeploy=recorded["status"], sent=True, status=status, param=param, message=message)


def run(_: Mapping[str, str]) -> int:
    """Print the table and one line of sums; return the exit code."""
    table = list(rows())
    width = max(len(row.case) for row in table)
    print(f"{'request':{width}}  FastDeploy         worker")
    for row in table:
        did = "never answered" if row.fastdeploy is None else str(row.fastdeploy)
        now = f"{row.status} {row.message}"
        print(f"{row.case:{width}}  {row.release} {did:14} {now[:150]}")
    bad = [row for row in table if row.is_bad]
    never = sum(row.fastdeploy is None for row in table)
    failed = sum(row.fastdeploy is not None and row.fastdeploy >= 500 for row in table)
    print(f"{len(table)} requests: FastDeploy never answered {never} and gave a 500 to {failed}; the worker {len(bad)} of either")
    return 1 if bad else 0


COMMAND = Command(name="fuzz-table", help="Show what FastDeploy and the worker answer to odd requests.", keys=(), run=run)


if __name__ == "__main__":
    sys.exit(call(COMMAND, sys.argv[1:]))
