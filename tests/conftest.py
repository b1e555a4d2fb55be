"""A gateway on a real socket, in front of a fake upstream."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import hypothesis
import pytest
import ways

from nexus_gateway.testing.upstream import FakeUpstream

pytest_plugins = ("running", "distributions")

# A gateway that a test starts must not write into the user's files.
os.environ |= {"LEDGER": "off", "RESPONSE_STORE": "off"}
# The same examples each time, on any machine; `--hypothesis-profile=thorough` draws new ones.
slow = [hypothesis.HealthCheck.too_slow]
common: dict[str, Any] = {"deadline": None, "suppress_health_check": slow}
hypothesis.settings.register_profile("house", max_examples=50, derandomize=True, **common)
hypothesis.settings.register_profile("thorough", max_examples=2000, **common)
hypothesis.settings.load_profile("house")


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


@pytest.fixture(params=["fast", "plain"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on the fast path, and once more as with DIRECT_PATH=false."""
    ways.take(request.param, monkeypatch)
    way: str = request.param
    return way
