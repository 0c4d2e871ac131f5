"""One gateway for every test of this folder in this process: none of them changes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tools.serve.running import KEYED, Twin


@pytest.fixture(scope="session")
def twin() -> Iterator[Twin]:
    """The CPU engine with the demo model, behind a key."""
    with Twin(variables=KEYED) as started:
        yield started.ready()
