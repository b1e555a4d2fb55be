"""A gateway on a real socket, in front of a fake upstream."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import hypothesis
import pytest
from aiohttp import web

from nexus_gateway.app import build_app
from nexus_gateway.handlers.gateway import GATEWAY, Gateway
from nexus_gateway.instance import Instance
from nexus_gateway.pool import Pool
from nexus_gateway.provider import Model, Provider
from nexus_gateway.secret import Secret
from nexus_gateway.settings import Settings
from nexus_gateway.testing import FakeUpstream

# The same examples each time, however slow the machine is today.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")

KEYS = ("key-one-secret", "key-two-secret", "key-three-secret")
HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}


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
    made = provider()
    url = upstream if isinstance(upstream, str) else upstream.base_url
    about: dict[str, Any] = {
        "provider_name": name,
        "provider": made,
        "key": Secret(KEYS[number - 1]) if made.needs_key else Secret(""),
        "number": number,
        "model": made.default_model,
        "base_url": url or made.base_url,
        "clock": clock,
    }
    return Instance(**{**about, **more})


class Served:
    """A running gateway and a client of it."""

    def __init__(self, url: str, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.gateway = gateway
        self.session = session

    @property
    def instances(self) -> list[Instance]:
        return self.gateway.pool.instances

    async def chat(
        self, body: Any = None, *, stream: bool = True, headers: dict[str, str] | None = None
    ) -> tuple[int, str, Mapping[str, str]]:
        whole = {**HELLO, "stream": stream} if body is None else body
        url = self.url + "/v1/chat/completions"
        data = io.BytesIO(whole if isinstance(whole, bytes) else json.dumps(whole).encode())
        head = {"Content-Type": "application/json", **(headers or {})}
        async with self.session.post(url, data=data, headers=head) as response:
            return response.status, await response.text(), response.headers.copy()

    async def health(self) -> dict[str, Any]:
        async with self.session.get(self.url + "/health") as response:
            found: dict[str, Any] = await response.json()
            return found


@contextlib.asynccontextmanager
async def serving(
    *instances: Instance, clock: Callable[[], float] = time.monotonic, **settings: Any
) -> AsyncIterator[Served]:
    pool = Pool(instances=list(instances))
    app = build_app(Settings(**settings), pool, clock=clock, rng=random.Random(7))
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield Served(url, app[GATEWAY], session)
    finally:
        await runner.cleanup()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake
