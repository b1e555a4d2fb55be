"""What pytest loads by itself: the fake upstream as a fixture, and clear assertions in the suite.

Nothing of the gateway is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from nexus_gateway.testing.upstream import FakeUpstream

pytest.register_assert_rewrite(
    "nexus_gateway.testing.conformance",
    "nexus_gateway.testing.conformance.conversations",
)


@pytest_asyncio.fixture
async def fake_upstream() -> AsyncIterator[FakeUpstream]:
    """Give a scriptable upstream on loopback that speaks as the official services do."""
    from nexus_gateway.testing.upstream import FakeUpstream

    async with FakeUpstream() as upstream:
        yield upstream
