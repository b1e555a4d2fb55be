"""A scriptable OpenAI-compatible server on loopback.

async with FakeUpstream() as upstream:
    upstream.script(Reply(status=500), Reply(text="Back again"), key="key-1")
    ...  # send requests to upstream.base_url
    assert upstream.hits("key-1") == 2
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Self

from aiohttp import web

from nexus_gateway.listening import QUEUE
from nexus_gateway.testing.answering import answer, key_of
from nexus_gateway.testing.received import Received
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.wire import Wire, wire_for

__all__ = ["FakeUpstream", "Received"]

LARGEST_BODY = 64 * 1024 * 1024
CLOSE_S = 0.1


class FakeUpstream:
    """The server; `default` answers where no script does, `defaults` by key.

    Args:
        wire: makes what puts an answer into bytes; None: as the official service at the path.

    Attributes:
        requests: all that came.
        open: how many are being answered now.
    """

    def __init__(self, wire: Callable[[], Wire] | None = None) -> None:
        self.default = Reply()
        self.defaults: dict[str, Reply] = {}
        self.requests: list[Received] = []
        self.open = 0
        self._wire = wire
        self._scripts: dict[str | None, deque[Reply]] = defaultdict(deque)
        self._runner: web.AppRunner | None = None
        self.base_url = ""

    def script(self, *replies: Reply, key: str | None = None) -> None:
        """Queue answers: for the requests of one key, or for any."""
        self._scripts[key].extend(replies)

    def hits(self, key: str | None = None) -> int:
        """Count the requests, of one key or of all."""
        return sum(key is None or received.key == key for received in self.requests)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_post("/v1/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=CLOSE_S, access_log=None
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=QUEUE)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def _next(self, key: str) -> Reply:
        for queue in (self._scripts[key], self._scripts[None]):
            if queue:
                return queue.popleft()
        return self.defaults.get(key, self.default)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        key = key_of(request.headers)
        raw = await request.read()
        received = Received(key, dict(request.headers), raw, request.path, request.raw_path)
        self.requests.append(received)
        self.open += 1
        try:
            wire = (self._wire or wire_for(request.path))()
            response = await answer(request, self._next(key), received, wire)
            transport = request.transport
            received.finished = transport is not None and not transport.is_closing()
            return response
        except (asyncio.CancelledError, ConnectionError):
            received.left.set()
            raise
        finally:
            self.open -= 1
