"""A gateway on a real socket, for tests of providers, hooks and policies."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from typing import Any

import aiohttp
from aiohttp import web

from nexus_gateway.discovery import load
from nexus_gateway.fastpath.connection import FastRunner
from nexus_gateway.hooks import Hook
from nexus_gateway.provider import Account, Provider
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.policies import POLICIES, Policy
from nexus_gateway.routing.pool import Pool
from nexus_gateway.secret import Secret
from nexus_gateway.server.sockets import QUEUE
from nexus_gateway.settings import Settings
from nexus_gateway.web.app import build_app
from nexus_gateway.web.gateway import GATEWAY, Gateway

HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}


def instance_of(
    provider: type[Provider],
    base_url: str = "",
    *,
    key: str = "",
    number: int = 1,
    name: str = "",
    clock: Callable[[], float] = time.monotonic,
    **more: Any,
) -> Instance:
    """Create an instance of a provider.

    Args:
        base_url: such as that of a fake upstream; "" for the provider's own.
        name: the name of its entry point; "" for the class's name in lower case.
        clock: monotonic seconds.
        more: other arguments of `Instance`.
    """
    arguments: dict[str, Any] = {
        "provider_name": name or provider.__name__.lower(),
        "provider": provider(),
        "account": Account(Secret(key), base_url or provider.base_url, provider.options),
        "number": number,
        "model": provider.default_model or "a-model",
        "clock": clock,
    }
    return Instance(**{**arguments, **more})


@cache
def _policies() -> Mapping[str, type[Policy]]:
    """Return the installed policies; looked up once, as that takes longer than many a test."""
    return {name: type(made) for name, made in load(POLICIES)[0].items()}


class Served:
    """A running gateway, its URL, and an HTTP client for it."""

    def __init__(self, url: str, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.gateway = gateway
        self.session = session

    @property
    def instances(self) -> list[Instance]:
        """The gateway's instances."""
        return self.gateway.pool.instances

    async def chat(
        self, body: Any = None, *, stream: bool = True, headers: dict[str, str] | None = None
    ) -> tuple[int, str, Mapping[str, str]]:
        """Send an object or bytes to `/v1/chat/completions`; None sends `HELLO`, with `stream`.

        Returns:
            The status, the body as text, the headers.
        """
        content = {**HELLO, "stream": stream} if body is None else body
        return await self.post("/v1/chat/completions", content, headers=headers)

    async def post(
        self, path: str, body: Any, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, Mapping[str, str]]:
        """Send an object or bytes; return the status, the body as text, the headers."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers = {"Content-Type": "application/json", **(headers or {})}
        async with self.session.post(
            self.url + path, data=io.BytesIO(content), headers=all_headers
        ) as response:
            return response.status, await response.text(), response.headers.copy()

    async def health(self) -> dict[str, Any]:
        """Return the JSON of `/health`."""
        async with self.session.get(self.url + "/health") as response:
            health: dict[str, Any] = await response.json()
            return health


@contextlib.asynccontextmanager
async def serving(
    *instances: Instance,
    clock: Callable[[], float] = time.monotonic,
    policy_by_name: Mapping[str, Policy] | None = None,
    hooks: Mapping[str, Hook] | None = None,
    backoff_ms: Sequence[int] = (1,),
    **settings: Any,
) -> AsyncIterator[Served]:
    """Run a gateway on a free port of loopback.

    Args:
        clock: monotonic seconds.
        policy_by_name: its routing policies; None for the installed ones.
        backoff_ms: the pauses between the attempts of a request, far shorter than the real ones.
        settings: fields of `Settings` that differ from the defaults.
    """
    app = build_app(
        Settings(**settings),
        Pool(instances=list(instances)),
        policy_by_name=policy_by_name or {n: cls() for n, cls in _policies().items()},
        hooks=hooks,
        clock=clock,
        rng=random.Random(7),
        backoff_ms=backoff_ms,
    )
    runner = FastRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=QUEUE)
    await site.start()
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield Served(url, app[GATEWAY], session)
    finally:
        await runner.cleanup()
