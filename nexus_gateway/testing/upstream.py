"""Put a script's answer onto the wire of an aiohttp server, its faults included.

A scriptable OpenAI-compatible server on loopback.

async with FakeUpstream() as upstream:
    upstream.script(Reply(status=500), Reply(text="Back again"), key="key-1")
    ...  # send requests to upstream.base_url
    assert upstream.hits("key-1") == 2
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Self

from aiohttp import web

from nexus_gateway.server.sockets import QUEUE
from nexus_gateway.testing.received import Received
from nexus_gateway.testing.reply import Fate, Reply
from nexus_gateway.testing.wire import Wire, wire_for
from nexus_gateway.wire import json_codec

# Closing then sends a reset, and drops what was not sent yet.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


async def answer(
    request: web.Request, reply: Reply, received: Received, wire: Wire
) -> web.StreamResponse:
    """Answer a request as a script says.

    Args:
        request: what is answered.
        reply: the script.
        received: the same request, as a wire looks into it.
        wire: puts the answer into bytes.
    """
    await asyncio.sleep(reply.head_delay_s)
    if reply.reset:
        return _reset(request)
    if reply.hang:
        await asyncio.Event().wait()
    body, kind = reply.body, reply.content_type or "application/json"
    if body is None and reply.status != 200:
        body = json_codec.dumps(wire.failure(reply.failure()))
    elif body is None and not wire.streams(received):
        spoilt = reply.whole_fate is Fate.ERROR
        body = json_codec.dumps(
            wire.failure(reply.failure()) if spoilt else wire.whole(reply.whole())
        )
        if reply.whole_fate is not None and not spoilt:
            return await _half(request, body, reply.whole_fate)
    if body is not None:
        head = {"Content-Type": kind, **reply.headers}
        return web.Response(status=reply.status, body=body, headers=head)
    return await _stream(request, reply, received, wire)


async def _stream(
    request: web.Request, reply: Reply, received: Received, wire: Wire
) -> web.StreamResponse:
    kind = reply.content_type or "text/event-stream"
    response = web.StreamResponse(headers={"Content-Type": kind, **reply.headers})
    await response.prepare(request)
    if reply.bom:
        await response.write(b"\xef\xbb\xbf")
    for delay_s, event in reply.events(wire, usage_wanted=wire.wants_usage(received)):
        if delay_s:
            await asyncio.sleep(delay_s)
        if isinstance(event, Fate):
            return await _end(request, response, event)
        await _write(response, event, reply.bytewise)
    return response


async def _half(request: web.Request, body: bytes, fate: Fate) -> web.StreamResponse:
    """Send half of an answer in one piece, and let its fate befall it."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    return await _end(request, response, fate)


async def _end(
    request: web.Request, response: web.StreamResponse, fate: Fate
) -> web.StreamResponse:
    if fate is Fate.HANG:
        await asyncio.Event().wait()
    return _break(request) if fate is Fate.CUT else response


def key_of(headers: Mapping[str, str]) -> str:
    """Return the key that a request carries, in whichever of the usual headers."""
    bearer = headers.get("Authorization", "").removeprefix("Bearer ")
    return bearer or headers.get("x-api-key") or headers.get("api-key") or ""


async def _write(response: web.StreamResponse, event: bytes, bytewise: bool) -> None:
    if not bytewise and event:
        await response.write(event)
        return
    for byte in event:
        await response.write(bytes([byte]))
        await asyncio.sleep(0)


def _break(request: web.Request) -> web.StreamResponse:
    """Break the connection without a goodbye."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _reset(request: web.Request) -> web.StreamResponse:
    """Break the connection by a reset, where the loop lets us."""
    if request.transport is not None:
        reset(request.transport)
    return web.Response()


def reset(transport: asyncio.BaseTransport) -> None:
    """Reset a connection."""
    own = transport.get_extra_info("socket")
    if own is not None:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    assert isinstance(transport, asyncio.Transport)
    transport.abort()


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
