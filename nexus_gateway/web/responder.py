"""Where an answer goes: an aiohttp caller.

An answer written straight to the caller's transport: one write where two would do.

aiohttp's own response builds its head from many parts and writes through several layers; each
costs as much as a chunk of a stream. Here the head waits for the first bytes of the body and
leaves together with them, a chunk is one `write`, and whoever has bytes in hand can send them
without a task (`send`). What it needs of aiohttp is documented: a response may override
`prepare`, `write` and `write_eof`, and a request has a transport and a writer that drains it.

What every answer wears: the request's id, and the headers that let pages read it.
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

from nexus_gateway.dialects.base import Dialect, FullResponse
from nexus_gateway.proxy.context import CallerGone
from nexus_gateway.proxy.record import RequestState
from nexus_gateway.upstream.streams import RawWriter
from nexus_gateway.web.gateway import gateway_of
from nexus_gateway.web.request import EXPLAIN, request_id
from nexus_gateway.wire import sse

_EXPOSED = "X-Request-Id, X-Nexus-Provider, X-Nexus-Model, X-Nexus-Attempts, Server-Timing"


def id_headers(request: web.Request, dialect: Dialect) -> dict[str, str]:
    """Return the headers that tell an answer's id, by the name the dialect's clients know too."""
    id = request_id(request)
    headers = {"X-Request-Id": id}
    if dialect.id_header:
        headers[dialect.id_header] = id
    return headers


def cors_headers(request: web.Request, *, for_all: bool) -> dict[str, str]:
    """Return the headers that let a page of another origin read an answer, where one asks.

    Args:
        request: what is answered.
        for_all: whether any origin may, where the owner does not name one.
    """
    if "Origin" not in request.headers:
        return {}
    origin = allowed_origin(request, for_all=for_all)
    return {**origin, "Access-Control-Expose-Headers": _EXPOSED}


def allowed_origin(request: web.Request, *, for_all: bool) -> dict[str, str]:
    """Say which origin may read an answer."""
    allowed = gateway_of(request).settings.cors_origin
    if allowed == "*":
        return {"Access-Control-Allow-Origin": "*"} if for_all else {}
    headers = {"Vary": "Origin"}
    if request.headers.get("Origin") == allowed:
        headers["Access-Control-Allow-Origin"] = allowed
    return headers


class RawResponse(web.StreamResponse):
    """A 200 in HTTP/1.1: in chunks, or in one piece where `body` is given.

    Args:
        request: the caller's.
        headers: all but what tells the body's length, and the date.
        body: the whole answer.
        lasting: whether the connection may be used again.
    """

    def __init__(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        lasting: bool,
    ) -> None:
        super().__init__()
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the caller has left")
        self._request = request
        self._transport = transport
        self._protocol = request.protocol
        self._lasting = lasting
        self._whole = body
        self._over = False
        length = "Transfer-Encoding: chunked" if body is None else f"Content-Length: {len(body)}"
        self._unsent_head = _head(headers, length, lasting=self._lasting)

    @property
    def prepared(self) -> bool:
        """Whether the head has gone out."""
        return not self._unsent_head

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection may be used again."""
        return self._lasting

    @property
    def full(self) -> bool:
        """Whether the caller does not take what is sent so fast; then `drain`."""
        return self._protocol.writing_paused

    async def drain(self) -> None:
        """Wait until the caller takes more.

        Raises:
            ConnectionError: it never will.
        """
        await self._request.writer.drain()
        if self._transport.is_closing():
            raise ConnectionResetError("the caller has left")

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send a whole answer; a stream's head waits for its first bytes."""
        if self._whole is not None and self._unsent_head:
            self._write(self._whole)
            self._over = True

    def push(self, data: bytes) -> bool:
        """Send a chunk of a stream that has begun; False when the caller takes no more for now."""
        if self._transport.is_closing():
            return False  # `drain` says why
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._protocol.writing_paused

    def send(self, data: bytes) -> None:
        """Send a chunk without waiting, and the head if it has not gone yet."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_last(self, data: bytes) -> None:
        """Send the last chunk, which may be empty, and the end."""
        if not self._over:
            self._over = True
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        if self._unsent_head:
            data, self._unsent_head = self._unsent_head + data, b""
            # By this aiohttp knows that no other head may be written.
            self._request.writer.output_size += len(data)
        if self._transport.is_closing():
            raise ConnectionResetError("the caller has left")
        self._transport.write(data)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a chunk, and wait while the caller takes no more.

        Raises:
            ConnectionError: the caller has left.
        """
        self.send(bytes(data))
        if self.full:
            await self.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the answer; asked again, wait until the caller has taken most of it.

        Who sends requests without reading the answers must not make them pile up.

        Raises:
            ConnectionError: the caller has left.
        """
        if not self._over:
            self.send_last(data)
        elif self.full:
            await self.drain()


def _head(headers: Mapping[str, str], length: str, *, lasting: bool) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if not lasting:
        lines.append("Connection: close")
    text = "\r\n".join(("HTTP/1.1 200 OK", *lines, length, f"Date: {_date(int(time.time()))}"))
    if text.count("\n") != len(lines) + 2 or text.count("\r") != len(lines) + 2 or "\0" in text:
        raise ValueError("a header's value has a line end in it")
    return f"{text}\r\n\r\n".encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


_STREAM_HEAD = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_NOT_PRINTABLE = re.compile("[^ -~]")
LONGEST_EXPLANATION = 1000
Look = Callable[[RequestState, FullResponse | None], Awaitable[FullResponse | None]]


class Responder:
    """Write an answer to an aiohttp caller (a `relay.Sink`).

    Args:
        request: the caller's.
        dialect: in which errors are told.

    Attributes:
        response: what has been begun.
        look: sees an answer before it goes out, and may change a whole one.
    """

    def __init__(self, request: web.Request, dialect: Dialect) -> None:
        self._request = request
        self._dialect = dialect
        self.before_response: Look | None = None
        self.response: web.StreamResponse | None = None
        self._raw: RawResponse | None = None
        self._comments: asyncio.Task[None] | None = None

    def keep_alive(self, every_s: float) -> None:
        """Send the head and comments while the answer lets itself be waited for."""
        self._comments = asyncio.create_task(self._comment(every_s))

    async def _comment(self, every_s: float) -> None:
        with contextlib.suppress(CallerGone):
            while True:
                await asyncio.sleep(every_s)
                await self._send_head({})
                await self.write(sse.KEEP_ALIVE)

    async def stop_keepalive(self) -> None:
        """Send no more comments."""
        if self._comments is not None:
            comments, self._comments = self._comments, None
            comments.cancel()
            await asyncio.wait([comments])

    async def start(self, report: RequestState) -> None:
        """Send the head of a stream, unless comments have gone before."""
        if self.before_response is not None:
            await self.before_response(report, None)
        await self.stop_keepalive()
        await self._send_head(served_by(report))

    async def _send_head(self, more: dict[str, str]) -> None:
        if self.response is not None:
            return
        head = _STREAM_HEAD | more
        try:
            if self._may_be_raw():
                self.response = self._raw = self._new(head)
            else:
                self.response = web.StreamResponse(headers=head)
                await self.response.prepare(self._request)
        except ConnectionError as error:
            raise CallerGone from error

    def _may_be_raw(self) -> bool:
        """Tell whether the answer can be written past aiohttp: its chunks are of HTTP/1.1."""
        request = self._request
        return request.version >= HttpVersion11 and gateway_of(request).settings.direct_path

    def _new(self, head: dict[str, str], body: bytes | None = None) -> RawResponse:
        request = self._request
        head |= id_headers(request, self._dialect) | cors_headers(request, for_all=True)
        leaving = gateway_of(request).drain.leaving.is_set()  # callers are to connect anew
        lasting = request.keep_alive and not leaving
        return RawResponse(request, head, body, lasting=lasting)

    async def write(self, data: bytes) -> None:
        """Send whole events."""
        assert self.response is not None
        try:
            await self.response.write(data)
        except ConnectionError as error:
            raise CallerGone from error

    def pipe(self) -> RawWriter | None:
        """Return a way to write without waiting."""
        return None if self._raw is None else ResponderWriter(self._raw)

    async def end(self, data: bytes = b"") -> None:
        """End the stream, with its last events."""
        assert self.response is not None
        try:
            await self.response.write_eof(data)
        except ConnectionError as error:
            raise CallerGone from error

    async def fail(self, status: int, body: dict[str, Any]) -> None:
        """End the stream with an error event and without `[DONE]`."""
        await self.end(self._dialect.error_event(status, body))

    def abort(self) -> None:
        """Break the connection: the only honest end where no word can be said any more."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def whole(self, report: RequestState, answer: FullResponse) -> None:
        """Keep the answer; the handler returns it, and aiohttp sends it."""
        if self.before_response is not None:
            answer = await self.before_response(report, answer) or answer
        text = answer.content_type.startswith("text/")
        kind = f"{answer.content_type}; charset=utf-8" if text else answer.content_type
        head = {"Content-Type": kind} | served_by(report)
        if not self._may_be_raw():
            self.response = web.Response(body=answer.body, headers=head)
            return
        try:
            self.response = self._new(head, answer.body)
        except ConnectionError as error:
            raise CallerGone from error


class ResponderWriter:
    """Writes to a caller without waiting (a `streams.RawWriter`)."""

    def __init__(self, response: RawResponse) -> None:
        self._response = response
        self.write = response.push

    async def drain(self) -> None:
        """Wait until the caller takes more."""
        try:
            await self._response.drain()
        except ConnectionError as error:
            raise CallerGone from error


def served_by(report: RequestState) -> dict[str, str]:
    """Tell in headers who answers, or was asked last, and how long it took to get so far."""
    gateway_ms = report.total_ms - report.upstream_ms
    head = {
        "X-Nexus-Attempts": str(report.attempts),
        "Server-Timing": f"gateway;dur={gateway_ms:.1f}, upstream;dur={report.upstream_ms:.1f}",
    }
    if report.instance is not None:
        head["X-Nexus-Provider"] = _header_text(report.instance.name)
        head["X-Nexus-Model"] = _header_text(report.model)
    if report.trail.explanations:
        head[EXPLAIN] = _header_text(report.explanation(), LONGEST_EXPLANATION)
    return head


def _header_text(text: str, longest: int = 200) -> str:
    """Make a text fit for a header: a model's name may come from the caller."""
    return _NOT_PRINTABLE.sub("?", text[:longest])
