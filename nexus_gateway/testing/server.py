"""The HTTP server that `FakeUpstream` and `Mock` share: it answers each request with a `Reply`."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from aiohttp import web

from nexus_gateway.server.sockets import QUEUE
from nexus_gateway.testing.reply import Fate, Reply
from nexus_gateway.testing.wire import Received, Wire, wire_for
from nexus_gateway.wire import json_codec

LARGEST_BODY = 64 * 1024 * 1024
CLOSE_S = 0.1
# With this SO_LINGER, closing sends a TCP reset and drops what was not sent yet.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ANOTHER = json_codec.dumps(Reply(text="The answer to someone else.").whole())
_AGAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class ReplyServer:
    """Answers `POST /v1/…`; a subclass listens on ports and chooses the replies.

    By default an answer is encoded as by the official service at the path.
    """

    def __init__(self, host: str = "127.0.0.1", wire: Callable[[], Wire] | None = None) -> None:
        self.open = 0  # requests being answered now
        self._host = host
        self._wire = wire
        self._listeners: list[asyncio.Server] = []
        self._runner: web.AppRunner | None = None

    async def _listen(self) -> None:
        raise NotImplementedError

    def _reply_to(self, request: web.Request, received: Received) -> Reply:
        raise NotImplementedError

    def _wire_at(self, path: str) -> Wire:
        return (self._wire or wire_for(path))()

    def _routes(self) -> Iterable[web.RouteDef]:
        """Return routes beside `POST /v1/…`."""
        return ()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=LARGEST_BODY)
        app.add_routes([web.post("/v1/{path:.*}", self._handle), *self._routes()])
        self._runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=CLOSE_S, access_log=None
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._http: Callable[[], asyncio.Protocol] = self._runner.server
        try:
            await self._listen()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for listener in self._listeners:
            listener.close()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _listen_on(self, port: int, protocol: Callable[[], asyncio.Protocol]) -> int:
        """Listen on a port, 0 for any free one; return the port."""
        listener = await asyncio.get_running_loop().create_server(
            protocol, self._host, port, backlog=QUEUE
        )
        self._listeners.append(listener)
        bound_port: int = listener.sockets[0].getsockname()[1]
        return bound_port

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers, body = dict(request.headers), await request.read()
        key = key_of(request.headers)
        received = Received(key, headers, body, request.path, request.raw_path)
        self.open += 1
        try:
            reply = self._reply_to(request, received)
            response = await send(request, reply, received, self._wire_at(request.path))
            if reply.again:
                await _send_again(request, response)
            transport = request.transport
            received.finished = transport is not None and not transport.is_closing()
            return response
        except asyncio.CancelledError:
            received.left.set()
            raise
        except ConnectionError:
            received.left.set()
            return web.Response()  # the client has disconnected
        finally:
            self.open -= 1


def key_of(headers: Mapping[str, str]) -> str:
    """Return the key in a request's headers, "" if there is none."""
    bearer = headers.get("Authorization", "").removeprefix("Bearer ")
    return bearer or headers.get("x-api-key") or headers.get("api-key") or ""


async def send(
    request: web.Request, reply: Reply, received: Received, wire: Wire
) -> web.StreamResponse:
    """Answer a request with a reply, including its faults."""
    await asyncio.sleep(reply.head_delay_s)
    if reply.reset:
        return _break(request, reset=True)
    if reply.hang:
        await asyncio.Event().wait()
    headers = {"Content-Type": reply.content_type or "application/json", **reply.headers}
    body = reply.body
    if body is None and reply.status == 200 and wire.streams(received):
        headers = {"Content-Type": reply.content_type or "text/event-stream", **reply.headers}
        events = reply.events(wire, usage_wanted=wire.wants_usage(received))
        return await _send_pieces(request, reply, headers, events)
    if body is None:
        failed = reply.status != 200 or reply.whole_fate is Fate.ERROR
        content = wire.failure(reply.failure()) if failed else wire.whole(reply.whole())
        body = json_codec.dumps(content)
        if reply.whole_fate is not None and not failed:
            half = body[: len(body) // 2]
            pieces = ((0.0, piece) for piece in (half, reply.whole_fate))
            return await _send_pieces(request, reply, headers, pieces)
    return web.Response(status=reply.status, body=body, headers=headers)


async def _send_pieces(
    request: web.Request,
    reply: Reply,
    headers: Mapping[str, str],
    pieces: Iterable[tuple[float, bytes | Fate]],
) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    if reply.bom:
        await response.write(b"\xef\xbb\xbf")
    for delay_s, piece in pieces:
        if delay_s:
            await asyncio.sleep(delay_s)
        if piece is Fate.HANG:
            await asyncio.Event().wait()
        if piece is Fate.CUT:
            return _break(request)
        if isinstance(piece, Fate):
            return response
        if reply.bytewise:
            for byte in piece:
                await response.write(bytes([byte]))
                await asyncio.sleep(0)
        elif piece:
            await response.write(piece)
    return response


async def _send_again(request: web.Request, response: web.StreamResponse) -> None:
    """Finish a response and send another, in one segment where the system allows it."""
    transport = request.transport
    if transport is None or transport.is_closing():
        return
    connection, cork = transport.get_extra_info("socket"), getattr(socket, "TCP_CORK", None)
    if cork is not None:
        connection.setsockopt(socket.IPPROTO_TCP, cork, 1)
    await response.prepare(request)
    await response.write_eof()
    transport.write(_AGAIN % (len(_ANOTHER), _ANOTHER))
    if cork is not None:
        connection.setsockopt(socket.IPPROTO_TCP, cork, 0)


def _break(request: web.Request, *, reset: bool = False) -> web.StreamResponse:
    """Break the connection; by a TCP reset if wanted and if the event loop exposes the socket."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        if reset and connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        request.transport.abort()
    return web.Response()
