"""What the pages say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.defects import DEFECTS

ROOT = Path(__file__).resolve().parents[1]


def test_every_recipe_that_the_readme_names_is_there() -> None:
    recipes = set(re.findall(r"^([a-z][a-z-]*)(?: [^:\n]*)?:", (ROOT / "justfile").read_text(), re.MULTILINE))
    named = set(re.findall(r"ci/just ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named
    assert named <= recipes


@pytest.mark.parametrize("number", DEFECTS)
def test_every_known_defect_of_an_earlier_worker_has_its_proof(number: int) -> None:
    """A proof is a test that is there under its name, or a reason why the defect cannot be made here."""
    proofs = DEFECTS[number]
    assert proofs
    for proof in proofs:
        file, _, name = proof.partition("::")
        if not name:
            assert len(proof.split()) > 5, "a reason is a sentence"
        else:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), proof


def test_all_forty_defects_are_listed() -> None:
    assert list(DEFECTS) == list(range(1, 41))
