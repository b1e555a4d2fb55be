"""What is written as the answer of a request.

`Responder` is the relay's sink for an aiohttp request. `RawResponse` writes to the caller's
transport itself: aiohttp's own response builds its head from many parts and writes through several
layers, each of which costs as much as a chunk of a stream. Here the head waits for the first bytes
of the body, a chunk is one `write`, and bytes at hand are sent without a task. It relies on what
aiohttp documents: a response may override `prepare`, `write` and `write_eof`, and a request has a
transport and a writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from aiohttp import HttpVersion11, web

from nexus_gateway.dialects.base import ESTIMATE, Dialect, FullResponse
from nexus_gateway.proxy.context import CallerGone, RequestContext
from nexus_gateway.proxy.hook_runner import RequestHooks
from nexus_gateway.upstream.streams import AnswerStream, RawWriter
from nexus_gateway.web.auth import is_local_origin
from nexus_gateway.web.gateway import Gateway, gateway_of
from nexus_gateway.web.request import EXPLAIN, REQUEST_ID, request_id
from nexus_gateway.wire import sse

_EXPOSED = (
    f"X-Request-Id, X-Nexus-Provider, X-Nexus-Model, X-Nexus-Attempts, X-Nexus-Affinity, "
    f"{ESTIMATE}, Server-Timing"
)
STREAM_HEAD = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_NOT_PRINTABLE = re.compile("[^ -~]")
MAX_HEADER = 200
MAX_EXPLANATION = 1000


class Responder:
    """Where an answer goes: the caller of one request (a `proxy.context.Sink`).

    Attributes:
        response: begun, or to be returned by the handler; None as long as nothing was sent.
        keep: keeps the answer before its end is sent: a full one, or the last events of a stream.
    """

    keep: Callable[[bytes], Awaitable[None]] | None = None

    def __init__(
        self, request: web.Request, dialect: Dialect, gateway: Gateway, hooks: RequestHooks | None
    ) -> None:
        self.response: web.StreamResponse | None = None
        self._request = request
        self._dialect = dialect
        self._gateway = gateway
        self._hooks = hooks
        self._raw: RawResponse | None = None
        self._stream: AnswerStream | None = None
        self._comments: asyncio.Task[None] | None = None

    def keep_alive(self, every_s: float) -> None:
        """Send comments until the answer begins, the first one after `every_s`."""
        self._comments = asyncio.create_task(self._comment(every_s))

    async def _comment(self, every_s: float) -> None:
        with contextlib.suppress(CallerGone):
            while True:
                await asyncio.sleep(every_s)
                await self._send_head(dict(STREAM_HEAD))
                await self.write(sse.KEEP_ALIVE)

    async def stop_keepalive(self) -> None:
        if self._comments is not None:
            comments, self._comments = self._comments, None
            comments.cancel()
            await asyncio.wait([comments])

    async def start(self, context: RequestContext, stream: AnswerStream) -> None:
        """Send the head of a stream, unless comments were sent before."""
        self._stream = stream
        if self._hooks is not None:
            await self._hooks.before_response(context, None)
        if self._comments is not None:
            await self.stop_keepalive()
        if self.response is None:
            await self._send_head(STREAM_HEAD | attempt_headers(context))

    async def _send_head(self, head: dict[str, str]) -> None:
        if self.response is not None:
            return
        try:
            if self._is_raw():
                self.response = self._raw = self._new(head)
            else:
                self.response = web.StreamResponse(headers=head)
                await self.response.prepare(self._request)
        except ConnectionError as error:
            raise CallerGone from error

    def _is_raw(self) -> bool:
        """Whether the answer is written past aiohttp: its chunks are of HTTP/1.1."""
        return self._gateway.settings.direct_path and self._request.version >= HttpVersion11

    def _new(self, head: dict[str, str], body: bytes | None = None) -> RawResponse:
        request, gateway = self._request, self._gateway
        head["X-Request-Id"] = id = request[REQUEST_ID]
        if self._dialect.id_header:
            head[self._dialect.id_header] = id
        if "Origin" in request.headers:
            head |= cors_headers(request, for_all=True)
        leaving = gateway.drain.leaving.is_set()  # callers shall connect to another process
        return RawResponse(request, head, body, keep_alive=request.keep_alive and not leaving)

    async def write(self, data: bytes) -> None:
        """Send whole events."""
        assert self.response is not None
        try:
            await self.response.write(data)
        except ConnectionError as error:
            raise CallerGone from error

    def pipe(self) -> RawWriter | None:
        """Return a way to write without waiting, if there is one."""
        return None if self._raw is None else ResponderWriter(self._raw)

    async def end(self, data: bytes = b"") -> None:
        """End the stream, with its last events."""
        assert self.response is not None
        if self.keep is not None:
            await self.keep(data)
        try:
            await self.response.write_eof(data)
        except ConnectionError as error:
            raise CallerGone from error

    async def fail(self, status: int, body: dict[str, Any]) -> None:
        """End the stream with an error event and without `[DONE]`."""
        sent = None if self._stream is None else self._stream.sent
        await self.end(self._dialect.error_event(status, body, sent))

    def abort(self) -> None:
        """Break the connection: the only honest end if nothing more can be sent."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def full(self, context: RequestContext, response: FullResponse) -> None:
        """Keep a full response; the handler returns it, and aiohttp sends it."""
        if self._hooks is not None and context.history.latest is not None:
            response = await self._hooks.before_response(context, response) or response
        if self.keep is not None:
            await self.keep(response.body)
        head = full_headers(response) | attempt_headers(context)
        if not self._is_raw():
            self.response = web.Response(body=response.body, headers=head)
            return
        try:
            self.response = self._new(head, response.body)
        except ConnectionError as error:
            raise CallerGone from error


class ResponderWriter:
    """Writes to a caller without waiting (an `upstream.streams.RawWriter`)."""

    def __init__(self, response: RawResponse) -> None:
        self._response = response
        self.write = response.push

    async def drain(self) -> None:
        """Wait until the caller takes more."""
        try:
            await self._response.drain()
        except ConnectionError as error:
            raise CallerGone from error


def full_headers(response: FullResponse) -> dict[str, str]:
    content_type = response.content_type
    if content_type.startswith("text/"):
        content_type += "; charset=utf-8"
    return {"Content-Type": content_type, **response.headers}


def attempt_headers(context: RequestContext) -> dict[str, str]:
    """Return the headers with the attempt that answers, or the last one, and the time so far."""
    history = context.history
    head = {
        "X-Nexus-Attempts": str(history.begun),
        "X-Nexus-Affinity": history.affinity,
        "Server-Timing": server_timing(context),
    }
    if (latest := history.latest) is not None:
        head["X-Nexus-Provider"] = _printable(latest.instance.name, MAX_HEADER)
        head["X-Nexus-Model"] = _printable(latest.model, MAX_HEADER)
    if history.explanations:
        choices = history.explanations[-2:] if history.hedged else history.explanations[-1:]
        head[EXPLAIN] = _printable(" | ".join(choices), MAX_EXPLANATION)
    return head


def server_timing(context: RequestContext) -> str:
    total_ms, upstream_ms = context.latency_ms()
    return f"gateway;dur={total_ms - upstream_ms:.1f}, upstream;dur={upstream_ms:.1f}"


@lru_cache(maxsize=1024)
def _printable(text: str, limit: int) -> str:
    """Make a text fit for a header: a model's name may come from the caller."""
    return _NOT_PRINTABLE.sub("?", text[:limit])


def id_headers(request: web.Request, dialect: Dialect) -> dict[str, str]:
    """Return the headers with the request's id, under the dialect's name for it too."""
    id = request_id(request)
    headers = {"X-Request-Id": id}
    if dialect.id_header:
        headers[dialect.id_header] = id
    return headers


def cors_headers(request: web.Request, *, for_all: bool) -> dict[str, str]:
    """Return the headers that let a page of another origin read the response.

    Args:
        request: the caller's.
        for_all: whether any origin may, unless CORS_ORIGIN names one.
    """
    if "Origin" not in request.headers:
        return {}
    origin = allowed_origin(request, for_all=for_all)
    return {**origin, "Access-Control-Expose-Headers": _EXPOSED}


def allowed_origin(request: web.Request, *, for_all: bool) -> dict[str, str]:
    allowed = gateway_of(request).settings.allowed_origin
    if allowed == "*":
        return {"Access-Control-Allow-Origin": "*"} if for_all else {}
    headers = {"Vary": "Origin"}
    origin = request.headers.get("Origin", "")
    # With "" no page of another origin makes admin calls, as with "*".
    if origin == allowed if allowed else for_all and is_local_origin(origin):
        headers["Access-Control-Allow-Origin"] = origin
    return headers


class RawResponse(web.StreamResponse):
    """A 200 in HTTP/1.1: chunked, or in one piece if `body` is given.

    Args:
        request: the caller's.
        headers: all but the body's length, the date and `Connection`.
        body: the full body.
        keep_alive: whether the connection may be used again.
    """

    def __init__(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        keep_alive: bool,
    ) -> None:
        super().__init__()
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the caller has left")
        self._request = request
        self._transport = transport
        self._protocol = request.protocol
        self._may_keep_alive = keep_alive
        self._full_body = body
        self._is_ended = False
        length = "Transfer-Encoding: chunked" if body is None else f"Content-Length: {len(body)}"
        self._unsent_head = raw_head(headers, length, keep_alive=keep_alive)

    @property
    def prepared(self) -> bool:
        return not self._unsent_head

    @property
    def keep_alive(self) -> bool | None:
        return self._may_keep_alive

    async def drain(self) -> None:
        """Wait until the caller takes more.

        Raises:
            ConnectionError: it has left.
        """
        await self._request.writer.drain()
        if self._transport.is_closing():
            raise ConnectionResetError("the caller has left")

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send a full body; a stream's head waits for its first bytes."""
        if self._full_body is not None and self._unsent_head:
            self._write(self._full_body)
            self._is_ended = True

    def push(self, data: bytes) -> bool:
        """Send a chunk of a stream that has begun; False if the caller takes no more for now."""
        if self._transport.is_closing():
            return False  # `drain` raises
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._protocol.writing_paused

    def _write(self, data: bytes) -> None:
        if self._unsent_head:
            data, self._unsent_head = self._unsent_head + data, b""
            # This keeps aiohttp from writing another head.
            self._request.writer.output_size += len(data)
        if self._transport.is_closing():
            raise ConnectionResetError("the caller has left")
        self._transport.write(data)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a chunk; wait while the caller takes no more.

        Raises:
            ConnectionError: the caller has left.
        """
        self._write(b"%x\r\n%b\r\n" % (len(data), bytes(data)))
        if self._protocol.writing_paused:
            await self.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the response; called again, wait until the caller has taken most of it.

        The answers of a caller that sends requests without reading must not pile up.

        Raises:
            ConnectionError: the caller has left.
        """
        if not self._is_ended:
            self._is_ended = True
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")
        elif self._protocol.writing_paused:
            await self.drain()


def raw_head(headers: Mapping[str, str], length: str, *, keep_alive: bool) -> bytes:
    lines = [*map("{}: {}".format, headers, headers.values())]
    if not keep_alive:
        lines.append("Connection: close")
    text = "\r\n".join(("HTTP/1.1 200 OK", *lines, length, f"Date: {http_date(int(time.time()))}"))
    if text.count("\n") != len(lines) + 2 or text.count("\r") != len(lines) + 2 or "\0" in text:
        raise ValueError("a header's value has a line end in it")
    return f"{text}\r\n\r\n".encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1)
def http_date(second: int) -> str:
    return formatdate(second, usegmt=True)
