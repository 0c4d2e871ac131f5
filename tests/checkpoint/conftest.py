from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint.checkpoints import write_checkpoint
from tests.twins.model_hub import ModelHub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of three shards."""
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with ModelHub(tokens=("hf_good", "hf_other")) as running:
        yield running
