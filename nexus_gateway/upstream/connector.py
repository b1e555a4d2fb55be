"""The pool of connections to upstreams, of both paths: aiohttp's, kept clean.

HTTP/1.1 pairs answers with requests by their order alone. If an upstream sends one answer too many,
the next request on that connection gets it, and its caller reads what another one asked for. So:

- While a connection is idle, `Idle` receives its bytes, not aiohttp: the first one closes it.
- Bytes that this process has not read yet are looked for before a connection is used again.
- A body that is not sent in one piece gets a connection of its own (`needs_new`): while it is being
  sent, a late answer to an earlier request would pass for its own.
- An answer on a used connection that comes before the request has left does not count as one; on
  Linux, before it has reached the other host: each packet of an answer acknowledges the request.
- A new connection closes the oldest idle ones, of any origin, if there would be more than `most`.
- An origin that has sent more than it was asked for is *distrusted*: it gets a connection for each
  request, for ten minutes. What reveals it cannot be told from an answer before.

This file and `upstream.direct` are the only ones that use aiohttp's client beyond its documented
interface.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any

import aiohttp
from aiohttp.connector import Connection

if sys.platform == "linux":
    import fcntl
    import termios

logger = logging.getLogger("nexus_gateway")

DISTRUST_S = 600.0
NO_BYTES = bytes(4)  # a C int
_IDLE = "nexus_gateway_idle"  # set on aiohttp's protocol, which lives as long as its connection
# What closes an idle connection without being an answer: 408 (RFC 9110, 15.5.9), or blank lines.
_HARMLESS = re.compile(rb"[\r\n]*(?:HTTP/1\.[01] 408 |\Z)")


class Idle(asyncio.Protocol):
    """Receives the bytes of a connection that has been used, up to the first byte of an answer.

    Attributes:
        answered: whether a byte of the answer to the latest request has arrived; only known on
            aiohttp's path.
        surplus: whether more than one answer arrived for the latest request.
        is_used: whether an answer is expected.
        has_bytes: returns whether there are bytes that this process has not read; takes a number of
            milliseconds to wait.
        unacknowledged: returns how many bytes the other host has not acknowledged, as a C int.
    """

    def __init__(self, connector: Connector, key: Any, handler: Any) -> None:
        self.key = key
        self.answered = False
        self.surplus = False
        self._connector = connector
        self._handler = handler  # aiohttp's
        self.is_used = False
        self.has_bytes = _watch(handler.transport)
        self.unacknowledged = _count(handler.transport)

    def data_received(self, data: bytes) -> None:
        handler = self._handler
        if self.is_used:
            transport = handler.transport
            if transport.get_write_buffer_size() or self.unacknowledged() != NO_BYTES:
                transport.abort()
                return
            self.answered = True
            transport.set_protocol(handler)
            handler.data_received(data)
            return
        handler.close()
        if not _HARMLESS.match(data):
            self._connector.distrust(self.key)

    def connection_lost(self, error: Exception | None) -> None:
        self._handler.connection_lost(error)

    def eof_received(self) -> None:
        self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


def _watch(transport: asyncio.Transport) -> Callable[[int], object]:
    """Return a function that tells whether a transport's socket has bytes to read."""
    connection = transport.get_extra_info("socket")
    if connection is None or not hasattr(select, "poll"):  # not on Windows
        return lambda wait_ms: False
    watched = select.poll()
    watched.register(connection.fileno(), select.POLLIN)
    return watched.poll


def _count(transport: asyncio.Transport) -> Callable[[], bytes]:
    """Return the function that is `Idle.unacknowledged`; it finds none where that is unknown."""
    connection = transport.get_extra_info("socket")
    if connection is not None and sys.platform == "linux":
        ioctl: Callable[..., bytes] = fcntl.ioctl  # it returns as it is given
        count = partial(ioctl, connection.fileno(), termios.TIOCOUTQ, NO_BYTES)
        with suppress(OSError):
            count()
            return count
    return lambda: NO_BYTES


# The connection of the latest request in this context if it had been used before.
reused: ContextVar[Idle | None] = ContextVar("reused", default=None)
# Whether the next request in this context must not get a connection that was used before.
needs_new: ContextVar[bool] = ContextVar("needs_new", default=False)


class Connector(aiohttp.TCPConnector):
    """aiohttp's pool, with the rules above.

    Attributes:
        most: for how many connections, idle ones included, there are file descriptors.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.most = math.inf
        self._entering = 0  # requests that are about to open a connection
        self._distrusted: dict[Any, float] = {}  # until when, by the loop's clock

    async def _get(self, key: Any, traces: list[Any]) -> Any:
        """Take an idle connection, None if a new one is to be opened, and set `reused`."""
        reused.set(None)
        while not needs_new.get() and (connection := await super()._get(key, traces)):
            protocol: Any = connection.protocol
            idle: Idle = getattr(protocol, _IDLE)
            if protocol._buffer:
                # One more answer in the bytes that ended the last: it was released in between.
                self.distrust(key)
                connection.close()
                continue
            if not idle.has_bytes(0):
                idle.is_used, idle.answered = True, False
                reused.set(idle)
                return connection
            try:
                for _ in range(2):  # let the event loop read them, and `Idle` judge them
                    await asyncio.sleep(0)
            finally:
                connection.close()
        if self.most != math.inf:
            await self._make_room()
        return None

    def take_idle(self, key: Any) -> tuple[Connection, Idle] | None:
        """Take an idle connection at once; None if there is none, or `_get` has to look at it."""
        waiting = self._conns.get(key)
        if not waiting:
            return None
        protocol, since = waiting[0]
        idle: Idle = getattr(protocol, _IDLE)
        is_old = monotonic() - since > (self._keepalive_timeout or math.inf)
        if is_old or protocol._buffer or not protocol.is_connected() or idle.has_bytes(0):
            return None
        waiting.popleft()
        if not waiting:
            del self._conns[key]
        self._acquired.add(protocol)
        idle.is_used, idle.answered = True, False
        return Connection(self, key, protocol, self._loop), idle

    async def _make_room(self) -> None:
        """Close the oldest idle connections for one that is about to be opened."""
        self._entering += 1
        try:
            while self._conns and self._count() > self.most:
                key = min(self._conns, key=lambda key: self._conns[key][0][1])
                handler, _ = self._conns[key].popleft()
                if not self._conns[key]:
                    del self._conns[key]
                handler.abort()
                await asyncio.sleep(0)  # only then is its descriptor free
        finally:
            self._entering -= 1

    def _count(self) -> int:
        return len(self._acquired) + self._entering + sum(map(len, self._conns.values()))

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        transport = protocol.transport
        if transport is not None and not self._closed:
            idle: Idle | None = getattr(protocol, _IDLE, None)
            if not should_close and protocol._buffer:  # one more answer, read by aiohttp
                self.distrust(key)
                if idle is not None:
                    idle.surplus = True
            if idle is None:
                idle = Idle(self, key, protocol)
                setattr(protocol, _IDLE, idle)
            idle.is_used = False
            transport.set_protocol(idle)
            if self._distrusted and self._is_distrusted(key):
                should_close = True
        super()._release(key, protocol, should_close=should_close)

    def forget(self, key: Any) -> None:
        """Close all idle connections to an origin."""
        for handler, _ in self._conns.pop(key, ()):
            handler.close()

    def distrust(self, key: Any) -> None:
        """Use no connection to an origin twice for DISTRUST_S: it has sent one answer too many."""
        now = self._loop.time()
        if not self._is_distrusted(key):
            logger.warning(
                "%s:%s sent more than it was asked for: for %d minutes none of its connections is "
                "used twice, so that no caller gets another's answer",
                key.host,
                key.port,
                DISTRUST_S / 60,
            )
        self._distrusted = {k: until for k, until in self._distrusted.items() if until > now}
        self._distrusted[key] = now + DISTRUST_S
        self.forget(key)

    def _is_distrusted(self, key: Any) -> bool:
        return self._distrusted.get(key, 0.0) > self._loop.time()
