"""The seam to aiohttp's connection pool: connections borrowed for an exchange, and given back.

Everything that the gateway uses of aiohttp's client beyond its documented interface stands in
this file. aiohttp connects (names, TLS, happy eyeballs, the pool and its clean-up); once a
connection stands, its transport gets another protocol for as long as one exchange lasts. Where a
version of aiohttp has moved what is used here, `Connections` says so and requests go the plain
way.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from yarl import URL

from nexus_gateway.receiving import PlainAnswer

# Where a connection cannot be borrowed, one of these is raised before anything was sent.
MOVED = (AttributeError, TypeError, NotImplementedError)
READ_BUFFER = 256 * 1024
_MARK = "nexus_gateway_used"  # on the protocol, which lives as long as its connection


class Borrowed:
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

    async def answer(self) -> PlainAnswer:
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
        return PlainAnswer(message.code, message.headers, content, self._release, connection.close)


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

    async def borrow(self, origin: str, *, fresh: bool = False) -> Borrowed:
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
            borrowed = Borrowed(connection)
            # While it waited, somebody may have said something that nobody had asked for.
            if not (connection.protocol.should_close or (fresh and borrowed.used)):
                return borrowed
            connection.close()
