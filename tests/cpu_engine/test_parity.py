"""The engine computes what transformers computes: stored logits and greedy ids of every family and layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ci.parity.agreement import Agreement, measure, open_model
from ci.parity.reference import StoredCase, load_cases
from cpu_engine.forward import Chunk
from tests import DATA

CASES = load_cases(DATA / "parity")
CHECKPOINTS = [pytest.param(case, path, id=f"{case.name}-{path.name}") for case in CASES for path in case.checkpoints]


def test_every_family_has_a_reference() -> None:
    assert {case.family for case in CASES} >= {"ernie4_5", "qwen2", "qwen3", "llama"}


@pytest.mark.parametrize(("case", "checkpoint"), CHECKPOINTS)
def test_logits_are_within_1e_4_and_greedy_ids_identical_alone_and_batched(case: StoredCase, checkpoint: Path) -> None:
    agreement: Agreement = measure(open_model(checkpoint), case.reference)
    assert agreement.holds, agreement


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_layout_of_a_checkpoint_gives_the_same_bits(case: StoredCase) -> None:
    prompt = max(case.reference.prompts, key=len)
    answers = []
    for checkpoint in case.checkpoints:
        model = open_model(checkpoint)
        answers.append(model.forward([Chunk(cache=model.new_cache(), tokens=prompt)]))
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])
