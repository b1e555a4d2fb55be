"""A caller's connection whose usual requests take the fast path; aiohttp gets all others.

aiohttp's parser never shows where it is. So the bytes of each request that it gets are counted, by
a head that is plain: only between two requests, with nothing in its buffers, and while it has
nothing to do, can the next one take the fast path. After anything else the connection is aiohttp's
to its end.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from nexus_gateway.dialects.base import Dialect
from nexus_gateway.errors import GatewayError
from nexus_gateway.fastpath.head import Head, read_head
from nexus_gateway.fastpath.request import FastRequest
from nexus_gateway.fastpath.wheel import Wheel
from nexus_gateway.proxy.context import RequestContext
from nexus_gateway.routing.attempts import AttemptHistory
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.large import LARGE
from nexus_gateway.web.auth import Access
from nexus_gateway.web.connections import ClientConnection, Runner
from nexus_gateway.web.gateway import GATEWAY, Gateway
from nexus_gateway.web.middleware import admit
from nexus_gateway.web.request import id_of, parse_options

logger = logging.getLogger("nexus_gateway")

# For so long, and so many reads, the rest of a body is waited for here.
BODY_S = 1.0
MAX_READS = 8
# More of what follows a request is not read before its answer has ended.
MAX_AHEAD = 64 * 1024


class FastPath:
    """What the connections of one gateway share."""

    def __init__(self, gateway: Gateway) -> None:
        self.wheel = Wheel()
        self._gateway = gateway
        self._settings: Settings | None = None
        self._is_on = False

    def admit(self, head: Head) -> str | None:
        """Return which of the gateway's keys a request has; None if it is not for the fast path."""
        gateway = self._gateway
        settings = gateway.settings
        if settings is not self._settings:
            self._settings, self._is_on = settings, _is_usual(gateway)
        drain = gateway.drain
        if not self._is_on or drain.leaving.is_set() or drain.exceeds(settings.max_concurrent, 1):
            return None
        if not gateway.client.is_direct or logger.isEnabledFor(logging.DEBUG):
            return None
        try:
            return admit(head.headers, Access.CALLER, gateway)
        except GatewayError:
            return None

    def begin(
        self,
        connection: FastConnection,
        head: Head,
        dialect: Dialect,
        raw: bytes,
        start: int,
        since_s: float | None,
    ) -> FastRequest | None:
        """Begin the first attempt of a request; None if the main path has to.

        Args:
            raw: the request, whose body begins at `start`.
            since_s: when its head came, if that was before its body.
        """
        caller = self.admit(head)
        if caller is None:
            return None
        gateway, headers = self._gateway, head.headers
        scheduler = gateway.scheduler
        history = AttemptHistory(id_of(headers))
        clock = scheduler.clock
        since_s = clock() if since_s is None else since_s
        context = RequestContext(dialect.endpoint, caller, clock, since_s, history)
        try:
            options = parse_options(headers, gateway)
            request = dialect.parse(raw[start:], headers)
            context.set_request(request, options)
            target = gateway.resolver.of(request)
            attempt = scheduler.attempt(target, options.policy, history)
        except Exception:
            return None  # the main path meets it again, and knows what it means
        return FastRequest(connection, gateway, self.wheel, context, request, options, attempt, raw)


def _is_usual(gateway: Gateway) -> bool:
    """Return whether no request needs what only the main path does."""
    settings = gateway.settings
    needs_main_path = (
        settings.hedge or settings.resume or settings.keepalive_ms or settings.queue_timeout_ms
    )
    return not needs_main_path and gateway.hooks is None and gateway.tracing is None


class FastConnection(ClientConnection):
    """A caller's connection.

    Attributes:
        begun: a request that the main path has to take over.
    """

    __slots__ = (
        "_ahead",
        "_ended",
        "_fast",
        "_held",
        "_path",
        "_reads",
        "_since_s",
        "_to_come",
        "begun",
    )

    def __init__(self, path: FastPath, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.begun: FastRequest | None = None
        self._path = path
        self._fast: FastRequest | None = None
        self._held = b""  # a request whose body is not complete
        self._reads = 0
        self._since_s: float | None = None  # by the gateway's clock
        self._ahead = b""  # what follows the request that is served
        # What aiohttp has yet to get of its latest request; None if nobody knows.
        self._to_come: int | None = 0
        self._ended: asyncio.Future[None] | None = None

    @property
    def _aiohttp_is_idle(self) -> bool:
        is_closing = self._close or self._force_close
        return self._waiter is not None and not self._waiter.done() and not is_closing

    def data_received(self, data: bytes) -> None:
        if not data or self.is_surplus or self._to_come is None:  # aiohttp resumes by b""
            super().data_received(data)
        elif self._fast is not None or (self._paused and self._aiohttp_is_idle):
            self._ahead += data
            if len(self._ahead) > MAX_AHEAD:
                self._wire.pause_reading()
        elif self._to_come:
            self._pass(data, self._to_come)
        else:
            self._read(self._held + data if self._held else data)

    def _read(self, data: bytes) -> None:
        """Read a request from its beginning."""
        found = read_head(data)
        if found is None:
            self._pass(data, None)
            return
        head, start, end = found
        if head.dialect is not None and self._aiohttp_is_idle:
            if len(data) == end and self._begin(head, head.dialect, data, start):
                return
            if len(data) < end and self._hold(head, data, end):
                return
        self._pass(data, end)

    def _begin(self, head: Head, dialect: Dialect, raw: bytes, start: int) -> bool:
        """Serve a request; False if it is not for the fast path."""
        if len(raw) > LARGE:
            return False
        fast = self._path.begin(self, head, dialect, raw, start, self._since_s)
        if fast is None:
            return False
        self._drop_held()
        self._fast = fast
        self.head_since = None
        if self._manager is not None:
            self._manager.requests_count += 1
        self.gateway.drain.add(fast)
        fast.send()
        return True

    def _hold(self, head: Head, data: bytes, end: int) -> bool:
        """Wait for the rest of a body, for a short while."""
        if end > LARGE or self._reads >= MAX_READS or self._path.admit(head) is None:
            return False
        if not self._held:
            self.head_since = None
            self._path.wheel.add(self, self._loop.time() + BODY_S)
            self._since_s = self.gateway.scheduler.clock()
        self._held = data
        self._reads += 1
        return True

    def check(self, now_s: float) -> float:
        """Let aiohttp have a request whose body does not come."""
        held = read_head(self._held)
        if held is not None:
            self._pass(self._held, held[2])
        return math.inf

    def _drop_held(self) -> None:
        if self._held:
            self._held, self._reads, self._since_s = b"", 0, None
            self._path.wheel.discard(self)

    def _pass(self, data: bytes, size: int | None) -> None:
        """Give aiohttp bytes; `size` is how many its request has from here on, None if unknown."""
        self._drop_held()
        self._to_come = None if size is None or len(data) > size else size - len(data)
        super().data_received(data)

    def hand_over(self, fast: FastRequest) -> None:
        """Let aiohttp read a request that has begun."""
        self.begun, self._fast = fast, None
        super().data_received(fast.raw)
        self._go_on()

    def end(self, *, keep_alive: bool) -> None:
        """The request that is served has ended."""
        self._fast = self.begun = None
        if not keep_alive:
            self.force_close()
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self._go_on()

    def _go_on(self) -> None:
        """Read what follows a request, unless the caller has to take its answer first."""
        if self._paused and self.transport is not None:
            return
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        if self._ahead and self.transport is not None:
            data, self._ahead = self._ahead, b""
            if not self._wire.is_reading():
                self._wire.resume_reading()
            self.data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._fast is not None:
            self._fast.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._fast is not None:
            self._fast.resume()
        else:
            self._go_on()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._drop_held()
        self._ahead = b""
        fast = self._fast or self.begun
        if fast is not None:
            fast.caller_left()
        self._go_on()

    @property
    def idle_until(self) -> float | None:
        return None if self._fast is not None or self._held else super().idle_until

    def _process_keepalive(self) -> None:
        if self._fast is not None or self._held:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        if self._fast is not None or (self._paused and not self._request_in_progress):
            self._ended = self._loop.create_future()
            await asyncio.wait([self._ended], timeout=timeout)
        if self._fast is not None:
            self._fast.caller_left()
        await super().shutdown(timeout)


class FastRunner(Runner):
    """Runs the application with the fast path, unless DIRECT_PATH is off."""

    def connection_factory(self) -> Callable[..., ClientConnection]:
        gateway = self.app[GATEWAY]
        if not gateway.settings.direct_path:
            return super().connection_factory()
        return partial(FastConnection, FastPath(gateway))
