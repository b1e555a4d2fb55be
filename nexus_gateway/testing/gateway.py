"""A gateway on a real socket, for tests of what stands behind it."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from typing import Any

import aiohttp
from aiohttp import web

from nexus_gateway.discovery import load
from nexus_gateway.hooks import Hook
from nexus_gateway.provider import Account, Provider
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.policies import POLICIES, Policy
from nexus_gateway.routing.pool import Pool
from nexus_gateway.secret import Secret
from nexus_gateway.server.sockets import QUEUE
from nexus_gateway.settings import Settings
from nexus_gateway.web.app import build_app
from nexus_gateway.web.connections import Runner
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
    """Make an instance of a provider.

    Args:
        provider: its class.
        base_url: where it asks, such as a fake upstream's; "" for the provider's own.
        key: its key.
        number: of the key.
        name: the provider's name, as its entry point says; "" for the class's, in small letters.
        clock: monotonic seconds.
        more: the other arguments of `Instance`.
    """
    about: dict[str, Any] = {
        "provider_name": name or provider.__name__.lower(),
        "provider": provider(),
        "account": Account(Secret(key), base_url or provider.base_url, provider.options),
        "number": number,
        "model": provider.default_model or "a-model",
        "clock": clock,
    }
    return Instance(**{**about, **more})


@cache
def _policies() -> Mapping[str, type[Policy]]:
    """Return the installed policies; looked up once, as that takes longer than many a test."""
    return {name: type(made) for name, made in load(POLICIES)[0].items()}


class Served:
    """A running gateway and a client of it.

    Args:
        url: where it listens.
        gateway: its parts.
        session: an HTTP client.
    """

    def __init__(self, url: str, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.gateway = gateway
        self.session = session

    @property
    def instances(self) -> list[Instance]:
        """The instances behind it."""
        return self.gateway.pool.instances

    async def chat(
        self, body: Any = None, *, stream: bool = True, headers: dict[str, str] | None = None
    ) -> tuple[int, str, Mapping[str, str]]:
        """Ask for a chat completion.

        Args:
            body: the body, as an object or as bytes; None for a hello.
            stream: whether a hello is answered with a stream.
            headers: more headers.

        Returns:
            The status, the body as text, the headers.
        """
        whole = {**HELLO, "stream": stream} if body is None else body
        return await self.post("/v1/chat/completions", whole, headers=headers)

    async def post(
        self, path: str, body: Any, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, Mapping[str, str]]:
        """Send a body, as an object or as bytes; return the status, the text, the headers."""
        url, whole = self.url + path, body
        data = io.BytesIO(whole if isinstance(whole, bytes) else json.dumps(whole).encode())
        head = {"Content-Type": "application/json", **(headers or {})}
        async with self.session.post(url, data=data, headers=head) as response:
            return response.status, await response.text(), response.headers.copy()

    async def health(self) -> dict[str, Any]:
        """Ask how everybody is."""
        async with self.session.get(self.url + "/health") as response:
            found: dict[str, Any] = await response.json()
            return found


@contextlib.asynccontextmanager
async def serving(
    *instances: Instance,
    clock: Callable[[], float] = time.monotonic,
    policy_by_name: Mapping[str, Policy] | None = None,
    hooks: Mapping[str, Hook] | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Serve instances on a free port of loopback.

    Args:
        instances: who can be asked.
        clock: monotonic seconds.
        policy_by_name: the ways to route; None for those that are installed.
        hooks: what looks at requests, by name.
        settings: the fields of `Settings` that differ from the defaults.
    """
    pool = Pool(instances=list(instances))
    app = build_app(
        Settings(**settings),
        pool,
        policy_by_name=policy_by_name or {name: cls() for name, cls in _policies().items()},
        hooks=hooks,
        clock=clock,
        rng=random.Random(7),
    )
    runner = Runner(app, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=QUEUE)
    await site.start()
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield Served(url, app[GATEWAY], session)
    finally:
        await runner.cleanup()
