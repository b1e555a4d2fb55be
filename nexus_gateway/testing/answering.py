"""Put a script's answer onto the wire of an aiohttp server, its faults included."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping

from aiohttp import web

from nexus_gateway import json_codec
from nexus_gateway.testing.received import Received
from nexus_gateway.testing.reply import Fate, Reply
from nexus_gateway.testing.wire import Wire

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
