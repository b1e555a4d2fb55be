"""Loaded by pytest itself: the fake upstream as a fixture, and readable assertions in the suite.

The gateway's modules are imported only when a test needs them.
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
    """A scriptable upstream on loopback that behaves like the real services."""
    from nexus_gateway.testing.upstream import FakeUpstream

    async with FakeUpstream() as upstream:
        yield upstream
