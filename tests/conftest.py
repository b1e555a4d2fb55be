"""A gateway on a real socket, in front of a fake upstream."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import hypothesis
import pytest

from nexus_gateway.settings import Settings
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.upstream.client import Client, open_client
from nexus_gateway.web import gateway
from nexus_gateway.web.responder import Responder

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


@pytest.fixture(params=["direct", "plain"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the direct path, and once more as with DIRECT_PATH=false."""
    way: str = request.param
    if way == "plain":

        def plain(settings: Settings, pseudonym: str) -> AbstractAsyncContextManager[Client]:
            return open_client(replace(settings, direct_path=False), pseudonym)

        monkeypatch.setattr(gateway, "open_client", plain)
        monkeypatch.setattr(Responder, "_is_raw", lambda sink: False)
    return way
