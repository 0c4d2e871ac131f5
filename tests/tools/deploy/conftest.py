from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.twins.rest_api import Twin


@pytest.fixture
async def twin() -> AsyncIterator[Twin]:
    async with Twin() as running:
        yield running
