"""The direct path: one request and its response on a connection borrowed from aiohttp's pool.

aiohttp connects (names, TLS, happy eyeballs, the pool and its clean-up). Once a connection stands,
its transport gets another protocol, `DirectResponse`, for one request. That reads head and body
itself, without a task in between: a response is read part by part up to its first content; from
then on it can be *pushed*, each part in the turn of the loop in which it arrives, without a
future, a wake-up or a queue. An unusual head goes to aiohttp's parser with all that follows.

If a version of aiohttp has changed what is used here, one of PRIVATE_API_ERRORS is raised before
anything is sent, and requests go through aiohttp's session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from nexus_gateway.upstream.connector import NO_BYTES, Idle
from nexus_gateway.upstream.http1 import BadFraming, Head, UnsupportedResponse, read_head
from nexus_gateway.upstream.response import (
    LAST_BYTES_S,
    SWITCHING,
    TOO_MANY,
    UNKNOWN_TYPE,
    AiohttpResponse,
    Fail,
    Receive,
)

# Raised before anything was sent.
PRIVATE_API_ERRORS = (AttributeError, TypeError, NotImplementedError)
READ_BUFFER = 256 * 1024


def request_to(proxy_of: Callable[[URL], URL | None], origin: str) -> aiohttp.ClientRequest:
    """Return what the connector needs to connect to an origin; one of PRIVATE_API_ERRORS."""
    url = URL(origin)
    loop = asyncio.get_running_loop()
    return aiohttp.ClientRequest("POST", url, loop=loop, proxy=proxy_of(url))


@dataclass(slots=True)
class BorrowedConnection:
    """A connection of the client's pool that aiohttp does not read until it is given back.

    `idle`: what received its bytes before, None if it is new. If an earlier request was sent on it,
    the upstream may have closed it by now.
    """

    _connection: Any
    handler: Any  # aiohttp's protocol
    transport: asyncio.Transport
    idle: Idle | None

    def give_back(self, *, reusable: bool = True) -> None:
        transport = self.transport
        # An upstream may respond before it has read: the next request must not queue behind that.
        if not reusable or transport.is_closing() or transport.get_write_buffer_size():
            transport.set_protocol(self.handler)
            self._connection.close()
        else:
            self._connection.release()

    def distrust(self) -> None:
        self._connection._connector.distrust(self._connection._key)

    def hand_over(self, data: bytes) -> None:
        """Let aiohttp's parser read the response, which begins with data."""
        self.transport.set_protocol(self.handler)
        self.handler.set_response_params(read_until_eof=True, read_bufsize=READ_BUFFER)
        self.handler.data_received(data)

    async def response(self) -> AiohttpResponse:
        """Wait for the head of the response that was handed over; ClientError if it breaks."""
        connection = self._connection
        try:
            while True:
                try:
                    message, content = await self.handler.read()
                except aiohttp.http.HttpProcessingError as error:
                    raise aiohttp.ClientPayloadError("not an HTTP response") from error
                if not 100 <= message.code < 200 or message.code == SWITCHING:
                    break
            return AiohttpResponse(
                message.code,
                message.headers,
                content,
                self.give_back,
                connection.close,
                self.idle,
            )
        except BaseException:
            connection.close()
            raise


class DirectResponse(asyncio.Protocol):
    """A POST and its response, an `HttpResponse`; it owns the connection until the body has ended.

    `handed_over`: aiohttp's parser reads the response, from its first byte. `head_s`: when its head
    came, in the loop's time.
    """

    head_s: float | None = None
    status = 200
    headers: Mapping[str, str]
    content_type: str

    def __init__(self, borrowed: BorrowedConnection) -> None:
        self.handed_over = False
        self._borrowed: BorrowedConnection | None = borrowed
        self._transport = borrowed.transport
        self._loop = asyncio.get_running_loop()
        self._head_bytes = b""
        self._head: Head | None = None
        self._parts: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._receive: Receive | None = None
        self._fail: Fail | None = None
        self._error: Exception | None = None
        self._ended = False
        self._close_timer: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    @property
    def is_unanswered(self) -> bool:
        return self._head is None and not self._head_bytes and not self.handed_over

    def send(self, request: bytes) -> None:
        self._transport.write(request)

    async def wait_for_head(self) -> None:
        """Wait for the response's head; ClientError if the connection breaks before it."""
        if self._head is None and not self.handed_over:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter

    async def read(self) -> bytes:
        while not self._parts:
            if self._ended:
                return b""
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._buffered = 0
        if self._paused:
            self.resume()
        return data

    def push(self, receive: Receive, fail: Fail) -> bool:
        self._receive, self._fail = receive, fail
        parts, self._parts = self._parts, []
        self.resume()  # before `receive`, which may pause again
        for part in parts:
            receive(part)
        if self._ended:
            receive(b"")
        elif self._error is not None:
            fail(self._error)
        return True

    def take_back(self, parts: list[bytes]) -> None:
        """Stop pushing; what was pushed is read again."""
        self._receive = self._fail = None
        self._parts[:0] = parts
        self._buffered += sum(map(len, parts))
        if self._buffered > READ_BUFFER:
            self.pause()

    def pause(self) -> None:
        if not self._paused and self._borrowed is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._borrowed is not None:
            self._paused = False
            self._transport.resume_reading()

    async def finish(self, *, whole: bool) -> None:
        self.release(whole=whole)

    def release(self, *, whole: bool) -> None:
        self._receive = self._fail = None
        if self._borrowed is None:
            return
        if whole and self._error is None:
            self.resume()
            self._close_timer = self._loop.call_later(LAST_BYTES_S, self.close)
        else:
            self.close()

    def close(self) -> None:
        if self._borrowed is not None:
            self._break(aiohttp.ClientPayloadError("the response was closed on this side"))

    def _give_back(self, *, reusable: bool) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        if reusable and self._paused:
            self.resume()
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is not None:
            borrowed.give_back(reusable=reusable)

    def data_received(self, data: bytes) -> None:
        if self._head is None:
            rest = self._read_head(data)
            if rest is None:
                return
            data = rest
        assert self._head is not None
        body = self._head.body
        try:
            part = body.feed(data)
        except BadFraming as error:
            self._break(aiohttp.ClientPayloadError(str(error)))
            return
        if body.ended and not self._ended:
            if body.surplus and self._borrowed is not None:
                self._borrowed.distrust()
                if self._borrowed.idle is not None:
                    # Either may be the answer to this request.
                    self._break(aiohttp.ClientPayloadError(TOO_MANY))
                    return
            self._ended = True
            self._give_back(reusable=self._head.keep_alive and not body.surplus)
        if self._receive is None:
            self._wake(part)
            return
        if part:
            self._receive(part)
        # The receiver may have finished with that part.
        if self._ended and self._receive is not None:
            self._receive(b"")

    def _wake(self, part: bytes = b"") -> None:
        """Keep a part for the reader; wake it up, to look at what has changed."""
        if part:
            self._parts.append(part)
            self._buffered += len(part)
            if self._buffered > READ_BUFFER:
                self.pause()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _read_head(self, data: bytes) -> bytes | None:
        """Read the head; return what follows it, None if it is incomplete or was handed over."""
        idle = None if self._borrowed is None else self._borrowed.idle
        if (
            idle is not None
            and not self._head_bytes
            and (self._transport.get_write_buffer_size() or idle.unacknowledged() != NO_BYTES)
        ):
            # It answers an earlier request: this one has not arrived yet.
            self._break(aiohttp.ServerDisconnectedError())
            return None
        self._head_bytes = data = self._head_bytes + data if self._head_bytes else data
        try:
            parsed = read_head(data)
        except UnsupportedResponse as unsupported:
            self.handed_over = True
            borrowed, self._borrowed = self._borrowed, None
            if borrowed is not None:
                borrowed.hand_over(data)
            if self._fail is not None:
                self._fail(unsupported)
            self._wake()
            return None
        if parsed is None:
            return None
        self._head_bytes = b""
        self._head, start = parsed
        self.head_s = self._loop.time()
        self.headers = headers = self._head.headers
        content_type = headers.get("Content-Type", UNKNOWN_TYPE)
        self.content_type = content_type.partition(";")[0].strip().lower()
        return data[start:]

    def _break(self, error: Exception) -> None:
        self._error = error
        self._give_back(reusable=False)
        if self._fail is not None:
            self._fail(error)
        elif self._head is not None:
            self._wake()  # `read` raises it
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def pause_writing(self) -> None:
        if self._borrowed is not None:
            self._borrowed.handler.pause_writing()

    def resume_writing(self) -> None:
        if self._borrowed is not None:
            self._borrowed.handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._borrowed is not None:
            self._borrowed.handler.connection_lost(error)
        if self._head is not None:
            self._break(aiohttp.ClientPayloadError("the connection was closed"))
        elif isinstance(error, OSError):
            self._break(aiohttp.ClientOSError(*error.args))
        else:
            self._break(aiohttp.ServerDisconnectedError())
