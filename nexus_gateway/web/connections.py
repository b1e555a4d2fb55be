"""The connections of callers: time limits, their number, and an answer to what is not HTTP.

aiohttp waits without a limit for the rest of a request's head, and for a caller to take what is
written; bytes that are not HTTP it answers in plain text and with its version. Here each connection
records since when a head is awaited, and one timer for all connections checks them: a request costs
no timer, a chunk nothing.

An idle connection is kept for IDLE_S. Each takes a file descriptor, and a request on it one more
for its upstream, so if there are more connections than `Drain.places`, those that have been idle
for longest are closed. If none is idle, the new ones are refused.

Only this file uses parts of aiohttp's server that are not documented. If a version of aiohttp has
moved them, connections are aiohttp's own, and a warning says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from heapq import nsmallest
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from nexus_gateway.dialects.messages import Messages
from nexus_gateway.errors import GatewayError, InvalidRequest, Overloaded, UnknownExpectation
from nexus_gateway.web.gateway import GATEWAY, Gateway
from nexus_gateway.web.request import json_response, note_refusal, request_id

logger = logging.getLogger("nexus_gateway")

try:
    import fcntl
    import termios
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


HEAD_S = 30.0
IDLE_S = 75.0
CHECKS = 8  # for each limit
# Of connections beyond the places so many are asked what they want; others are closed at once.
MOST_SURPLUS = 2
SEARCH_S = 0.1  # no sooner than this idle connections are searched for again in vain
LOG_EVERY_S = 60.0
UNREAD = 2**16
MESSAGES = Messages()
LINGER_S = 2.0  # for the rest of a body that is not read
_USED = (
    "_close",
    "_current_request",
    "_force_close",
    "_keepalive_timeout",
    "_loop",
    "_messages",
    "_next_keepalive_close_time",
    "_paused",
    "_process_keepalive",
    "_waiter",
)


class ClientConnection(web.RequestHandler):
    """A caller's connection.

    Attributes:
        head_since: since when a request's head is awaited; None between requests.
        is_surplus: there is no place for its requests.
    """

    __slots__ = ("_taken_at", "_unsent", "_wire", "gateway", "head_since", "is_surplus")

    gateway: Gateway

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire: Any = transport
        self._unsent = 0
        self._taken_at = self._loop.time()
        self.is_surplus = False
        self.head_since: float | None = self._taken_at
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.is_surplus:
            self.refuse()
            return
        super().data_received(data)
        if self._messages:
            self.head_since = None
            current = self._current_request
            if current is not None and not current.content.is_eof():
                # A second request before the end of the body: the body is broken.
                current.content.set_exception(web.RequestPayloadError("the body is broken"))
                current.content.feed_eof()  # else aiohttp reads on after the response
        elif self.head_since is None and self._waiter is not None and not self._waiter.done():
            self.head_since = self._loop.time()

    def refuse(self) -> None:
        """Answer that there is no place, whatever is asked, and close the connection.

        Anthropic's clients can read the error as well as OpenAI's.
        """
        error = Overloaded()
        if self.gateway.meter is not None:
            self.gateway.meter.refuse(error.status, error.code or error.kind)
        body = json.dumps(MESSAGES.error(error.status, error.body())).encode()
        head = f"HTTP/1.1 {error.status} Service Unavailable\r\nContent-Type: application/json\r\n"
        for name, value in {**error.headers, "Content-Length": len(body)}.items():
            head += f"{name}: {value}\r\n"
        self._wire.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        with contextlib.suppress(OSError):  # a close with unread bytes may destroy the answer
            os.read(self._wire.get_extra_info("socket").fileno(), UNREAD)
        self._wire.close()

    def resume_writing(self) -> None:
        self._unsent = 0
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = None
        super().connection_lost(exc)

    @property
    def idle_until(self) -> float | None:
        """Until when it waits for another request, by the loop's clock; None while it has one."""
        if self.head_since is not None or self._waiter is None or self._waiter.done():
            return None
        return self._next_keepalive_close_time

    def check_timeouts(self, now: float, head_s: float, write_s: float) -> None:
        """Close the connection if its request's head is overdue, or if the caller takes nothing.

        Args:
            now: by the loop's clock.
            head_s: how long a head may take.
            write_s: how long a caller may take nothing of what is written.
        """
        if self._wire is None:
            return
        if self.head_since is not None and now - self.head_since > head_s:
            self.force_close()
        before, self._unsent = self._unsent, 0
        # If nothing more is written, the rest shrinks, however slowly it is taken.
        if self._paused or self._wire.is_closing():
            self._unsent = _untaken(self._wire)
        if not self._unsent or self._unsent < before or not before:
            self._taken_at = now
        elif now - self._taken_at > write_s:
            # An error would wait behind all that the caller does not take.
            self._wire.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP in OpenAI's shape, and close the connection."""
        if isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers:
            # aiohttp's own answer, where there is no route, repeats the header, and cannot.
            status = UnknownExpectation.status
        else:
            super().handle_error(request, status, exc, message)  # logs, prevents a second head
        error: GatewayError = InvalidRequest(
            "This is not a valid HTTP/1.1 request, so the connection is closed. This port speaks "
            "HTTP, not HTTPS.",
            code="bad_http",
        )
        if isinstance(exc, LineTooLong):
            error = InvalidRequest("The request's address or a header is longer than 8 KB.")
            status = 431
        elif status == UnknownExpectation.status:
            error = UnknownExpectation()
        elif status != 400:
            error = GatewayError("The gateway failed on this request.", code="internal_error")
        why = None if exc is None else type(exc).__name__
        note_refusal(self.gateway, request, status, error, why)
        response = json_response(error.body(), status)
        response.headers["X-Request-Id"] = request_id(request)
        response.headers["Server"] = "nexus-gateway"  # aiohttp would send its version
        response.force_close()
        return response


def _untaken(transport: Any) -> int:
    """Return how many bytes wait for the caller, in this process and in the kernel's queue.

    The kernel takes more only if a good part of its queue, which may be megabytes, is empty:
    without it a slow caller would seem to take nothing for minutes.
    """
    waiting: int = transport.get_write_buffer_size()
    if waiting and fcntl is not None:
        try:
            number = transport.get_extra_info("socket").fileno()
            queued = fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4))
        except (AttributeError, OSError, ValueError):
            return waiting
        waiting += int.from_bytes(queued, sys.byteorder)
    return waiting


class _Server(web.Server):
    gateway: Gateway
    connect: Callable[..., ClientConnection]

    _search_at = _log_at = 0.0

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        places = self.gateway.drain.places
        if self.count() > places and isinstance(handler, ClientConnection):
            surplus = self.count() - self._close_idle() - places
            handler.is_surplus = surplus > 0
            if surplus > 0:
                self._log(places)
            if surplus > MOST_SURPLUS:
                handler.refuse()

    def count(self) -> int:
        return len(self._connections)

    def _close_idle(self) -> int:
        """Close the oldest idle connections; return how many are being closed.

        An eighth of them, as to search for each one alone would be slow.
        """
        if (now := self._loop.time()) < self._search_at:
            return 0
        connections = [c for c in self._connections if isinstance(c, ClientConnection)]
        idle = [(c.idle_until, n, c) for n, c in enumerate(connections) if c.idle_until is not None]
        for _, _, connection in nsmallest(len(idle) // 8 + 1, idle):
            connection.force_close()
        closing = sum(c.transport is None for c in connections)
        if not closing:
            self._search_at = now + SEARCH_S
        return closing

    def _log(self, places: float) -> None:
        if (now := self._loop.time()) >= self._log_at:
            self._log_at = now + LOG_EVERY_S
            logger.warning(
                "refusing connections with 503: there are no file descriptors for more than %d; "
                "raise the limit (ulimit -n)",
                places,
            )

    def __call__(self) -> web.RequestHandler:
        connection = self.connect(self, loop=self._loop, **self._kwargs)
        connection.gateway = self.gateway
        return connection


class Runner(web.AppRunner):
    """Runs the application.

    A subclass may make other connections.

    A caller that leaves cancels its handler, so that the upstream does not run on. Compressed
    bodies are not unpacked, as they are refused.

    Args:
        app: the application.
        shutdown_timeout: how long handlers have to end, in seconds.
    """

    def __init__(self, app: web.Application, *, shutdown_timeout: float) -> None:
        super().__init__(
            app,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            shutdown_timeout=shutdown_timeout,
            lingering_time=LINGER_S,
            keepalive_timeout=IDLE_S,
        )
        self._timer: asyncio.TimerHandle | None = None

    def connection_factory(self) -> Callable[..., ClientConnection]:
        """Return what makes connections, with the arguments of `ClientConnection`."""
        return ClientConnection

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        try:
            if not all(hasattr(web.RequestHandler, name) for name in _USED):
                raise AttributeError("RequestHandler is not as expected")
            watched = _Server(
                server.request_handler,
                request_factory=server.request_factory,
                handler_cancellation=server.handler_cancellation,
                loop=asyncio.get_running_loop(),
                **server._kwargs,
            )
            watched.gateway = self.app[GATEWAY]
            watched.connect = self.connection_factory()
            watched()
        except (AttributeError, TypeError):
            logger.warning(
                "aiohttp %s is not as expected: connections of slow callers have no time limit",
                aiohttp.__version__,
            )
            return server
        if watched.gateway.meter is not None:
            watched.gateway.meter.connections = watched.count
        self._check(watched)
        return watched

    def _check(self, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        write_s = self.app[GATEWAY].settings.write_timeout_ms / 1000  # a reload may change it
        interval_s = min(write_s, HEAD_S) / CHECKS
        self._timer = loop.call_later(interval_s, self._check, server)
        now = loop.time()
        head_s = HEAD_S - interval_s  # the next look would be too late
        for connection in server.connections:
            assert isinstance(connection, ClientConnection)
            connection.check_timeouts(now, head_s, write_s)

    async def cleanup(self) -> None:
        await super().cleanup()
        if self._timer is not None:
            self._timer.cancel()
