"""One request and its answer on a borrowed connection, with no task in between.

The bytes come from the transport straight into `data_received`, which reads head and body itself.
An answer is pulled piece by piece up to its first content; from then on it can be *pushed*: each
piece goes to whoever wants it in the same turn of the loop in which it came, without a future,
a wake-up or a queue.

A head that is not of the usual shape goes to aiohttp's own parser with all that follows, as if
this protocol had never been in between.

The seam to aiohttp's connection pool: connections borrowed for an exchange, and given back.

Everything that the gateway uses of aiohttp's client beyond its documented interface stands in
this file. aiohttp connects (names, TLS, happy eyeballs, the pool and its clean-up); once a
connection stands, its transport gets another protocol for as long as one exchange lasts. Where a
version of aiohttp has moved what is used here, `Connections` says so and requests go the plain
way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from yarl import URL

from nexus_gateway.upstream.http1 import (
    BadFraming,
    BodyReader,
    Head,
    UnsupportedResponse,
    read_head,
)
from nexus_gateway.upstream.response import LAST_BYTES_S, AiohttpResponse, content_type_of

# Where a connection cannot be borrowed, one of these is raised before anything was sent.
PRIVATE_API_ERRORS = (AttributeError, TypeError, NotImplementedError)
READ_BUFFER = 256 * 1024
_MARK = "nexus_gateway_used"  # on the protocol, which lives as long as its connection


class BorrowedConnection:
    """A connection that aiohttp does not look at until it is given back.

    Args:
        connection: of the client's pool.

    Attributes:
        used: an earlier request has had it, so its other end may have closed it by now.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._handler = connection.protocol
        self.used: bool = getattr(self._handler, _MARK, False)
        self.transport: asyncio.Transport = connection.transport

    def lend_to(self, protocol: asyncio.Protocol) -> None:
        """Let a protocol have what comes."""
        self.transport.set_protocol(protocol)

    def give_back(self, *, reusable: bool) -> None:
        """Give it back, to be used again or to be closed."""
        self.transport.set_protocol(self._handler)
        if reusable:
            self._release()
        else:
            self._connection.close()

    def _release(self) -> None:
        # An upstream may answer before it has read: the next request must not queue behind that.
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            self._connection.close()
        else:
            setattr(self._handler, _MARK, True)
            self._connection.release()

    def pause_writing(self) -> None:
        """Tell aiohttp that the upstream takes nothing more for now."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Tell aiohttp that it takes more."""
        self._handler.resume_writing()

    def lost(self, error: Exception | None) -> None:
        """Tell aiohttp that the connection was closed."""
        self._handler.connection_lost(error)

    def hand_over(self, begun: bytes) -> None:
        """Let aiohttp's parser have the answer, of which some bytes have come."""
        self.transport.set_protocol(self._handler)
        self._handler.set_response_params(read_until_eof=True, read_bufsize=READ_BUFFER)
        self._handler.data_received(begun)

    async def answer(self) -> AiohttpResponse:
        """Return the answer that was handed over, when its head is there.

        Raises:
            aiohttp.ClientError: the connection broke, or HTTP's rules.
        """
        connection = self._connection
        try:
            while True:
                try:
                    message, content = await self._handler.read()
                except aiohttp.http.HttpProcessingError as error:
                    raise aiohttp.ClientPayloadError("not an HTTP answer") from error
                if not 100 <= message.code < 200:
                    break
        except BaseException:
            connection.close()
            raise
        return AiohttpResponse(
            message.code, message.headers, content, self._release, connection.close
        )


class Connections:
    """Lends connections of a session's pool.

    Args:
        session: the HTTP client.
        timeout: how long connecting may take.
    """

    def __init__(self, session: aiohttp.ClientSession, timeout: aiohttp.ClientTimeout) -> None:
        self._connector: Any = session.connector
        self._timeout = timeout
        self._requests: dict[str, aiohttp.ClientRequest] = {}

    async def borrow(self, origin: str, *, fresh: bool = False) -> BorrowedConnection:
        """Connect, or take a connection that waits.

        Args:
            origin: scheme, host and port.
            fresh: take none that waits; those are as old as one that was found closed, and go.

        Raises:
            aiohttp.ClientError: nobody could be reached.
            AttributeError, TypeError, NotImplementedError: this aiohttp is not as expected.
        """
        request = self._requests.get(origin)
        if request is None:
            loop = asyncio.get_running_loop()
            request = aiohttp.ClientRequest("POST", URL(origin), loop=loop)
            self._requests[origin] = request
        while True:
            try:
                connection = await self._connector.connect(request, [], self._timeout)
            except TimeoutError as error:
                raise aiohttp.ConnectionTimeoutError("connecting took too long") from error
            borrowed = BorrowedConnection(connection)
            # While it waited, somebody may have said something that nobody had asked for.
            if not (connection.protocol.should_close or (fresh and borrowed.used)):
                return borrowed
            connection.close()


Receive = Callable[[bytes], None]
Fail = Callable[[Exception], None]


class DirectResponse(asyncio.Protocol):
    """A POST and its answer (a `receiving.HttpAnswer`).

    Args:
        borrowed: the connection, which is this exchange's until the answer has come.

    Attributes:
        handed_over: aiohttp's parser has the answer, from its first byte.
    """

    status = 200

    def __init__(self, borrowed: BorrowedConnection) -> None:
        self.handed_over = False
        self._borrowed: BorrowedConnection | None = borrowed
        self._transport = borrowed.transport
        self._loop = asyncio.get_running_loop()
        self._begun = b""
        self._head: Head | None = None
        self._body: BodyReader | None = None
        self._pieces: list[bytes] = []
        self._held = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._receive: Receive | None = None
        self._fail: Fail | None = None
        self._error: Exception | None = None
        self._ended = False
        self._farewell: asyncio.TimerHandle | None = None
        borrowed.lend_to(self)

    @property
    def unanswered(self) -> bool:
        """Whether not a byte of the answer has come."""
        return self._head is None and not self._begun and not self.handed_over

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's headers."""
        assert self._head is not None
        return self._head.headers

    @property
    def content_type(self) -> str:
        """The answer's media type."""
        assert self._head is not None
        return content_type_of(self._head.headers)

    async def ask(self, request: bytes) -> None:
        """Send a request; returns when the head of its answer is there, or is handed over.

        Raises:
            aiohttp.ClientError: the connection broke.
        """
        self._transport.write(request)
        while self._head is None and not self.handed_over:
            await self._wait()

    async def read(self) -> bytes:
        """Return what came of the body, b"" at its end.

        Raises:
            aiohttp.ClientError: the connection broke, or HTTP's rules.
        """
        while not self._pieces:
            if self._ended:
                return b""
            await self._wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        self.resume()
        return data

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def push(self, receive: Receive, fail: Fail) -> bool:
        """From now on hand over each piece as it comes, b"" at the end; what breaks, to `fail`.

        What is in hand already is handed over at once.
        """
        self._receive, self._fail = receive, fail
        pieces, self._pieces = self._pieces, []
        self.resume()  # and whoever cannot take them says so
        for piece in pieces:
            receive(piece)
        if self._ended:
            receive(b"")
        elif self._error is not None:
            fail(self._error)
        return True

    def pause(self) -> None:
        """Read no more for now: whoever wants the answer cannot take it so fast."""
        if not self._paused and self._borrowed is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._borrowed is not None:
            self._paused = False
            self._transport.resume_reading()

    async def finish(self, *, whole: bool) -> None:
        """Let go of the answer; where it was whole, its last bytes have a moment to come."""
        self._receive = self._fail = None
        if self._borrowed is None:
            return
        if whole and self._error is None:
            self.resume()
            self._farewell = self._loop.call_later(LAST_BYTES_S, self.close)
        else:
            self.close()

    def close(self) -> None:
        """Cut the answer off where it has not ended; whoever waits for it is told."""
        if self._borrowed is not None:
            self._break(aiohttp.ClientPayloadError("the answer was cut off from this side"))

    def _return(self, *, reusable: bool) -> None:
        if self._farewell is not None:
            self._farewell.cancel()
        if reusable:
            self.resume()
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is not None:
            borrowed.give_back(reusable=reusable)

    def data_received(self, data: bytes) -> None:
        """Read what came, and hand it over or keep it."""
        if self._body is None:
            found = self._read_head(data)
            if found is None:
                return
            data = found
        assert self._body is not None
        try:
            piece = self._body.feed(data)
        except BadFraming as error:
            self._break(aiohttp.ClientPayloadError(str(error)))
            return
        if self._body.ended and not self._ended:
            self._ended = True
            assert self._head is not None
            self._return(reusable=self._head.keep_alive and not self._body.surplus)
        if self._receive is not None:
            if piece:
                self._receive(piece)
            # The receiver may have had enough with that piece.
            if self._ended and self._receive is not None:
                self._receive(b"")
        elif piece or self._ended:
            self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self._held += len(piece)
            if self._held > READ_BUFFER:
                self.pause()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _read_head(self, data: bytes) -> bytes | None:
        """Read the head; return what follows it, None while it is not whole or where it is odd."""
        self._begun = data = self._begun + data if self._begun else data
        try:
            found = read_head(data)
        except UnsupportedResponse:
            self.handed_over = True
            borrowed, self._borrowed = self._borrowed, None
            if borrowed is not None:
                borrowed.hand_over(data)
            self._wake()
            return None
        if found is None:
            return None
        self._begun = b""
        self._head, start = found
        self._body = self._head.body
        self._wake()
        return data[start:]

    def _break(self, error: Exception) -> None:
        self._error = error
        self._return(reusable=False)
        if self._fail is not None:
            self._fail(error)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def pause_writing(self) -> None:
        """Note that the upstream does not take the request so fast."""
        if self._borrowed is not None:
            self._borrowed.pause_writing()

    def resume_writing(self) -> None:
        """Note that it does again."""
        if self._borrowed is not None:
            self._borrowed.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the upstream has closed the connection."""
        if self._borrowed is not None:
            self._borrowed.lost(error)
        if self._head is not None:
            self._break(aiohttp.ClientPayloadError("the connection was closed"))
        elif isinstance(error, OSError):
            self._break(aiohttp.ClientOSError(*error.args))
        else:
            self._break(aiohttp.ServerDisconnectedError())
