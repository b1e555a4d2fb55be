"""The connections of callers: those that hold on to nothing are let go, and noise is answered.

Everything that the gateway uses of aiohttp's server beyond its documented interface stands in this
file. aiohttp waits for ever for the rest of a request's head and for a caller to take what is
written to him, and answers bytes that are no HTTP in plain text and with its version. Here each
connection notes since when a head is awaited, and one timer for all of them looks every few
seconds; a request costs no timer and a chunk nothing at all. Where a version of aiohttp has moved
what is used here, connections are as aiohttp makes them, and a warning says so.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from nexus_gateway.errors import GatewayError, InvalidRequest
from nexus_gateway.web.gateway import GATEWAY, Gateway
from nexus_gateway.web.request import json_response, note_refusal, request_id

logger = logging.getLogger("nexus_gateway")

try:
    import fcntl
    import termios
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


HEAD_S = 60.0
LOOKS = 8  # for each limit
LINGER_S = 2.0  # for what a caller still sends of a body that nobody reads
_USED = ("_current_request", "_loop", "_messages", "_paused", "_waiter")


class ClientConnection(web.RequestHandler):
    """A caller's connection.

    Attributes:
        gateway: told of what is no HTTP.
        head_since: since when a request's head has been awaited; None between requests.
    """

    __slots__ = ("_taken_at", "_unsent", "_wire", "gateway", "head_since")

    gateway: Gateway

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note when it began: the first head is awaited from then on."""
        self._wire: Any = transport
        self._unsent = 0
        self._taken_at = self._loop.time()
        self.head_since: float | None = self._taken_at
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Let aiohttp read what came, and note whether a head has only begun with it."""
        super().data_received(data)
        if self._messages:
            self.head_since = None
            current = self._current_request
            if current is not None and not current.content.is_eof():
                # What came is noise in its midst: whoever reads it would wait for the rest.
                current.content.set_exception(web.RequestPayloadError("the body is broken"))
                current.content.feed_eof()  # else aiohttp goes on reading after the answer
        elif self.head_since is None and self._waiter is not None and not self._waiter.done():
            self.head_since = self._loop.time()

    def resume_writing(self) -> None:
        """Note that the caller has taken what waited: what waits next is something else."""
        self._unsent = 0
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note the end."""
        self._wire = None
        super().connection_lost(exc)

    def check_timeouts(self, now: float, head_s: float, write_s: float) -> None:
        """Let go of a caller who does not end his request's head, or takes nothing.

        Args:
            now: by the loop's clock.
            head_s: how long a head may take.
            write_s: how long a caller may take nothing of what waits for him.
        """
        if self._wire is None:
            return
        if self.head_since is not None and now - self.head_since > head_s:
            self.force_close()
        before, self._unsent = self._unsent, 0
        # Where nothing more is written, what waits becomes less, however slowly it is taken.
        if self._paused or self._wire.is_closing():
            self._unsent = _untaken(self._wire)
        if not self._unsent or self._unsent < before or not before:
            self._taken_at = now
        elif now - self._taken_at > write_s:
            # Cut off: a goodbye would wait behind all that he does not take.
            self._wire.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP in OpenAI's shape; the connection ends with it."""
        super().handle_error(request, status, exc, message)  # logs, and refuses a second head
        error: GatewayError = InvalidRequest(
            "This is not a valid HTTP/1.1 request, so the connection is closed. This port speaks "
            "HTTP, not HTTPS.",
            code="bad_http",
        )
        if isinstance(exc, LineTooLong):
            error = InvalidRequest("The request's address or a header is longer than 8 KB.")
            status = 431
        elif status != 400:
            error = GatewayError("The gateway failed on this request.", code="internal_error")
        why = None if exc is None else type(exc).__name__
        note_refusal(self.gateway, request, status, error, why)
        response = json_response(error.body(), status)
        response.headers["X-Request-Id"] = request_id(request)
        response.headers["Server"] = "nexus-gateway"  # else aiohttp tells its version
        response.force_close()
        return response


def _untaken(transport: Any) -> int:
    """Return how many bytes wait for a caller: here, and in the kernel where it tells.

    The kernel takes more only when a good part of its own queue, which may be megabytes, is empty:
    without it somebody slow would seem to take nothing for minutes.
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
    """Makes the connections."""

    gateway: Gateway

    def __call__(self) -> web.RequestHandler:
        caller = ClientConnection(self, loop=self._loop, **self._kwargs)
        caller.gateway = self.gateway
        return caller


class Runner(web.AppRunner):
    """Runs an application for callers of all kinds.

    A caller who leaves cancels his handler, so that the upstream does not run on. A compressed
    body comes as it is, for it is refused, and aiohttp must not try to unpack it before.

    Args:
        app: the application, which knows its gateway.
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
        )
        self._gateway = app[GATEWAY]
        self._timer: asyncio.TimerHandle | None = None

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
            watched.gateway = self._gateway
            watched()
        except (AttributeError, TypeError):
            logger.warning(
                "aiohttp %s is not as expected: callers who hold a connection are not let go",
                aiohttp.__version__,
            )
            return server
        self._look(watched)
        return watched

    def _look(self, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        write_s = self._gateway.settings.write_timeout_ms / 1000  # a reload may change it
        self._timer = loop.call_later(min(write_s, HEAD_S) / LOOKS, self._look, server)
        now = loop.time()
        for connection in server.connections:
            assert isinstance(connection, ClientConnection)
            connection.check_timeouts(now, HEAD_S, write_s)

    async def cleanup(self) -> None:
        """Stop serving."""
        await super().cleanup()
        if self._timer is not None:
            self._timer.cancel()
