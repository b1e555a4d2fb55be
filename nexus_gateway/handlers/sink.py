"""Where an answer goes: an aiohttp caller."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion11, web

from nexus_gateway import sse
from nexus_gateway.dialects.dialect import Dialect, Whole
from nexus_gateway.errand import CallerGone, Report
from nexus_gateway.handlers.dressing import identity, readable
from nexus_gateway.handlers.gateway import EXPLAIN, gateway_of
from nexus_gateway.handlers.raw_response import RawResponse
from nexus_gateway.streams import Pipe

_STREAM_HEAD = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_NOT_PRINTABLE = re.compile("[^ -~]")
LONGEST_EXPLANATION = 1000
Look = Callable[[Report, Whole | None], Awaitable[Whole | None]]


class CallerSink:
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
        self.look: Look | None = None
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

    async def be_quiet(self) -> None:
        """Send no more comments."""
        if self._comments is not None:
            comments, self._comments = self._comments, None
            comments.cancel()
            await asyncio.wait([comments])

    async def start(self, report: Report) -> None:
        """Send the head of a stream, unless comments have gone before."""
        if self.look is not None:
            await self.look(report, None)
        await self.be_quiet()
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
        head |= identity(request, self._dialect) | readable(request, for_all=True)
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

    def pipe(self) -> Pipe | None:
        """Return a way to write without waiting."""
        return None if self._raw is None else CallerPipe(self._raw)

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

    async def whole(self, report: Report, answer: Whole) -> None:
        """Keep the answer; the handler returns it, and aiohttp sends it."""
        if self.look is not None:
            answer = await self.look(report, answer) or answer
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


class CallerPipe:
    """Writes to a caller without waiting (a `streams.Pipe`)."""

    def __init__(self, response: RawResponse) -> None:
        self._response = response
        self.write = response.push

    async def drain(self) -> None:
        """Wait until the caller takes more."""
        try:
            await self._response.drain()
        except ConnectionError as error:
            raise CallerGone from error


def served_by(report: Report) -> dict[str, str]:
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
