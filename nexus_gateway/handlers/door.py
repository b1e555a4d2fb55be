"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from aiohttp import web

from nexus_gateway import chat, json_codec, sse
from nexus_gateway.errors import Draining, GatewayError, InvalidRequest
from nexus_gateway.handlers.gateway import Gateway, gateway_of, read_body, request_id
from nexus_gateway.relay import CallerGone, Report
from nexus_gateway.targets import resolve

logger = logging.getLogger("nexus_gateway")
GOODBYE_S = 1.0
DEFAULT_POLICY = "smart"


class CallerSink:
    """Write an answer to an aiohttp caller (a `relay.Sink`)."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None
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
        await self.be_quiet()
        await self._send_head(served_by(report))

    async def _send_head(self, more: dict[str, str]) -> None:
        if self.response is not None:
            return
        head = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        }
        response = web.StreamResponse(headers=head | more)
        self.response = response
        try:
            await response.prepare(self._request)
        except ConnectionError as error:
            raise CallerGone from error

    async def write(self, data: bytes) -> None:
        """Send whole events."""
        assert self.response is not None
        try:
            await self.response.write(data)
        except ConnectionError as error:
            raise CallerGone from error

    async def end(self) -> None:
        """End the stream."""
        assert self.response is not None
        try:
            await self.response.write_eof()
        except ConnectionError as error:
            raise CallerGone from error

    async def fail(self, body: dict[str, Any]) -> None:
        """End the stream with an error event and without `[DONE]`."""
        await self.write(sse.frame(json_codec.dumps(body)))
        await self.end()

    def abort(self) -> None:
        """Break the connection: the only honest end where no word can be said any more."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def whole(self, report: Report, body: bytes) -> None:
        """Keep the answer; the handler returns it, and aiohttp sends it."""
        self.response = web.Response(
            body=body, content_type="application/json", headers=served_by(report)
        )


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
    return head


def _header_text(text: str) -> str:
    """Make a text fit for a header: a model's name may come from the caller."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:200]


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Serve a chat completion, streamed or in one piece."""
    gateway = gateway_of(request)
    assert gateway.relay is not None
    report = gateway.relay.report()
    sink = CallerSink(request)
    status = 200
    try:
        with gateway.drain.track():
            await _serve(gateway, request, sink, report)
    except CallerGone:
        status = 499
    except asyncio.CancelledError:
        status = 499
        if not gateway.drain.expired:
            raise
        status = 503
        await _say_goodbye(sink)
    except GatewayError as error:
        status = error.status
        report.outcome = error.code or error.kind
        if sink.response is None:
            error.headers.update(served_by(report))
            raise
        await _fail_late(sink, error)
    except Exception:
        # A second head must never be written into an answer that has begun.
        status = 500
        if sink.response is None or not sink.response.prepared:
            raise
        logger.exception("a stream failed", extra={"fields": {"id": request_id(request)}})
        sink.abort()
    finally:
        _log(request, report, status, gateway)
    if sink.response is None:
        raise CallerGone
    return sink.response


async def _serve(gateway: Gateway, request: web.Request, sink: CallerSink, report: Report) -> None:
    assert gateway.relay is not None
    policy = _policy(request, gateway)
    wanted = chat.parse(await read_body(request))
    strict = gateway.settings.strict_models
    target = resolve(gateway.pool, wanted.model, wanted.images, strict)
    if wanted.stream and gateway.settings.keepalive_ms:
        sink.keep_alive(gateway.settings.keepalive_ms / 1000)
    try:
        await gateway.relay.serve(wanted, target, policy, sink, report)
    finally:
        await sink.be_quiet()


def _policy(request: web.Request, gateway: Gateway) -> str:
    policy = request.headers.get("X-Routing-Mode", DEFAULT_POLICY).strip().lower()
    known = gateway.scheduler.policies
    if policy not in known:
        raise InvalidRequest(
            f"X-Routing-Mode must be one of: {', '.join(known)}.",
            param="X-Routing-Mode",
            code="unknown_routing_mode",
        )
    return policy


async def _fail_late(sink: CallerSink, error: GatewayError) -> None:
    """Tell an error to a caller whose head is already sent."""
    with contextlib.suppress(CallerGone):
        await sink.fail(error.body())


async def _say_goodbye(sink: CallerSink) -> None:
    """End an answer that the shutdown's time limit cuts off."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
    farewell = Draining()
    if sink.response is None:
        raise farewell
    try:
        async with asyncio.timeout(GOODBYE_S):
            await sink.fail(farewell.body())
    except (CallerGone, TimeoutError):
        pass


def _log(request: web.Request, report: Report, status: int, gateway: Gateway) -> None:
    """Write the request's one line."""
    took_ms = gateway.scheduler.clock() * 1000 - report.started_s * 1000
    fields = {
        "id": request_id(request),
        "status": status,
        "instance": report.instance.name if report.instance else None,
        "model": report.model or None,
        "attempts": report.attempts,
        "first_ms": round(report.total_ms),
        "ms": round(took_ms),
        "tokens": report.tokens,
        "outcome": report.outcome,
    }
    logger.info("chat", extra={"fields": fields})
