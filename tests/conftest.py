"""A gateway on a real socket, in front of a fake upstream."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import hypothesis
import pytest

from nexus_gateway import app
from nexus_gateway.client import open_client
from nexus_gateway.handlers.sink import CallerSink
from nexus_gateway.instance import Instance
from nexus_gateway.provider import Account, Model, Provider
from nexus_gateway.secret import Secret
from nexus_gateway.testing import FakeUpstream, Served, serving
from nexus_gateway.testing.gateway import HELLO, instance_of

__all__ = ["HELLO", "Served", "make_instance", "serving"]

pytest_plugins = ("running",)

# What a test starts writes nothing into the ledger of whoever runs it.
os.environ["LEDGER"] = "off"
# The same examples each time, however slow the machine is. More of them, and new ones each time,
# come with `--hypothesis-profile=thorough`.
slow = [hypothesis.HealthCheck.too_slow]
common: dict[str, Any] = {"deadline": None, "suppress_health_check": slow}
hypothesis.settings.register_profile("house", max_examples=50, derandomize=True, **common)
hypothesis.settings.register_profile("thorough", max_examples=2000, **common)
hypothesis.settings.load_profile("house")

KEYS = ("key-one-secret", "key-two-secret", "key-three-secret")


class Fake(Provider):
    title = "Fake"
    base_url = "http://127.0.0.1:9/v1"
    default_model = "fake-large"
    models = (Model("fake-large", 1000, True), Model("fake-small", 100))


class Other(Fake):
    title = "Other"
    default_model = "other-text"
    models = (Model("other-text", 100),)


def make_instance(
    upstream: FakeUpstream | str = "",
    number: int = 1,
    clock: Callable[[], float] = time.monotonic,
    provider: type[Provider] = Fake,
    name: str = "fake",
    **more: Any,
) -> Instance:
    url = upstream if isinstance(upstream, str) else upstream.base_url
    key = more.pop("key", None) or Secret(KEYS[number - 1] if provider.needs_key else "")
    account = Account(key, more.pop("base_url", "") or url or provider.base_url)
    return instance_of(
        provider, number=number, name=name, clock=clock, **{"account": account, **more}
    )


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


@pytest.fixture(params=["direct", "plain"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the direct path, and once more as with DIRECT_PATH=false."""
    way: str = request.param
    if way == "plain":
        monkeypatch.setattr(app, "open_client", lambda direct: open_client(direct=False))
        monkeypatch.setattr(CallerSink, "_may_be_raw", lambda sink: False)
    return way
