"""The ways that a request can take: the fast path, the main path, and that over aiohttp."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest

from nexus_gateway.fastpath.connection import FastRunner
from nexus_gateway.fastpath.request import FastRequest
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.client import Client, open_client
from nexus_gateway.upstream.connector import Connector, reused
from nexus_gateway.web import gateway
from nexus_gateway.web.connections import Runner
from nexus_gateway.web.responder import Responder


def take(way: str, patch: pytest.MonkeyPatch) -> None:
    """Let requests take a way from now on: `fast`, `direct` (the main path) or `plain`."""
    if way == "fast":
        _connect_first(patch)
        return
    patch.setattr(FastRunner, "connection_factory", Runner.connection_factory)
    if way == "plain":

        def plain(settings: Settings, pseudonym: str) -> AbstractAsyncContextManager[Client]:
            return open_client(replace(settings, direct_path=False), pseudonym)

        patch.setattr(gateway, "open_client", plain)
        patch.setattr(Responder, "_is_raw", lambda sink: False)


class _Wanted(Exception):
    pass


def _connect_first(patch: pytest.MonkeyPatch) -> None:
    """Open a connection to the upstream for each request that finds no idle one.

    The fast path would leave these to the main path, so that a test's first request never took it.
    """
    ready: list[Any] = []
    take_idle, send = Connector.take_idle, FastRequest.send
    connecting: set[asyncio.Task[None]] = set()

    def take_ready(pool: Connector, key: Any) -> Any:
        taken = ready.pop() if ready else take_idle(pool, key)
        if taken is None:
            raise _Wanted(f"{'https' if key.is_ssl else 'http'}://{key.host}:{key.port}")
        return taken

    async def connect(fast: FastRequest, origin: str) -> None:
        client = fast._relay.upstream._client
        try:
            connection = await client._pool.connect(
                client._request_to(origin), [], client._session.timeout
            )
        except Exception:
            if not fast._is_over:
                fast._hand_over()
            return
        if fast._is_over:
            connection.release()
            return
        ready.append((connection, reused.get()))
        send(fast)

    def connect_and_send(fast: FastRequest) -> None:
        try:
            send(fast)
        except _Wanted as wanted:
            task = asyncio.create_task(connect(fast, str(wanted)))
            connecting.add(task)
            task.add_done_callback(connecting.discard)

    patch.setattr(Connector, "take_idle", take_ready)
    patch.setattr(FastRequest, "send", connect_and_send)
