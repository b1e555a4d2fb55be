"""The doors: POST of a request in one dialect, answered by whoever can serve it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

from aiohttp import web

from nexus_gateway.dialects.base import Dialect, Request
from nexus_gateway.errors import DeadlinePassed, Draining, GatewayError, InternalError, NoCandidate
from nexus_gateway.proxy.context import CallerGone, RequestOptions
from nexus_gateway.proxy.hook_runner import RequestHooks
from nexus_gateway.proxy.record import Observer, RequestState, record_of
from nexus_gateway.telemetry import log
from nexus_gateway.upstream.timeout import TimeLimit
from nexus_gateway.web.gateway import Gateway, gateway_of
from nexus_gateway.web.request import (
    EXPLAINED,
    RECORDED,
    _Incoming,
    admit,
    caller_of,
    parse_options,
    request_id,
)
from nexus_gateway.web.responder import Responder, served_by

logger = logging.getLogger("nexus_gateway")

GOODBYE_S = 1.0


class DialectEndpoint:
    """The handler of one dialect's route.

    Args:
        dialect: in which callers speak here.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Serve a request, streamed or in one piece."""
        gateway = gateway_of(request)
        report, observers = self._begin(request, gateway)
        sink = Responder(request, self.dialect)
        hooked = None if gateway.hooks is None else RequestHooks(gateway.hooks)
        status = 200
        try:
            admit(gateway)
            with gateway.drain:
                await self._serve(gateway, request, sink, report, hooked)
        except CallerGone:
            status = 499
        except asyncio.CancelledError:
            status = 499
            if not gateway.drain.expired:
                raise
            status = 503
            await _abort_on_shutdown(sink)
        except GatewayError as error:
            status = error.status
            report.outcome = error.code or error.kind
            if error.param and not report.attempts:
                report.nobody = f"`{error.param}` is at fault"
            if sink.response is None:
                error.headers.update(served_by(report))
                raise
            await _fail_stream(sink, error)
        except Exception:
            # A second head must never be written into an answer that has begun.
            status, report.outcome = 500, InternalError.code or ""
            if sink.response is None or not sink.response.prepared:
                raise
            logger.exception("a stream failed", extra={"fields": report.trail.log_fields()})
            sink.abort()
        finally:
            self._end(request, report, status, hooked, observers)
        if sink.response is None:
            raise CallerGone
        return sink.response

    def _begin(
        self, request: web.Request, gateway: Gateway
    ) -> tuple[RequestState, Sequence[Observer]]:
        """Begin the report of a request; return it, and who is to know of the end."""
        assert gateway.relay is not None
        report = gateway.relay.report()
        report.trail.id = request_id(request)
        if EXPLAINED in request:
            report.trail.explanations = []
        if gateway.tracing is None:
            return report, gateway.observers
        about = (request.headers, self.dialect.endpoint, request.path)
        report.trace = trace = gateway.tracing.begin(*about)
        report.trail.trace_id = trace.trace_id
        return report, [*gateway.observers, trace.end]

    async def _serve(
        self,
        gateway: Gateway,
        request: web.Request,
        sink: Responder,
        report: RequestState,
        hooked: RequestHooks | None,
    ) -> None:
        terms = parse_options(request, gateway)
        if terms.timeout_s is None:
            await self._read_and_relay(gateway, request, sink, report, hooked, terms)
            return
        try:
            with TimeLimit(terms.timeout_s):
                await self._read_and_relay(gateway, request, sink, report, hooked, terms)
        except TimeoutError:
            raise DeadlinePassed from None

    async def _read_and_relay(
        self,
        gateway: Gateway,
        request: web.Request,
        sink: Responder,
        report: RequestState,
        hooked: RequestHooks | None,
        terms: RequestOptions,
    ) -> None:
        wanted = await self.dialect.read(_Incoming(request))
        if hooked is not None:
            wanted = await hooked.begin(wanted, request_id(request), caller_of(request))
            sink.before_response = hooked.before_response
        if wanted.stream and gateway.settings.keepalive_ms:
            sink.keep_alive(gateway.settings.keepalive_ms / 1000)
        try:
            await _relay(gateway, wanted, terms, sink, report)
        finally:
            await sink.stop_keepalive()

    def _end(
        self,
        request: web.Request,
        report: RequestState,
        status: int,
        hooked: RequestHooks | None,
        observers: Sequence[Observer],
    ) -> None:
        """Write the request's one line, and tell the hooks and the observers."""
        took_ms = gateway_of(request).scheduler.clock() * 1000 - report.started_s * 1000
        fields = {
            **report.trail.log_fields(),
            "caller": caller_of(request) or None,
            "status": status,
            "instance": report.instance.name if report.instance else None,
            "asked": report.asked_model,
            "model": report.model or None,
            "policy": report.policy or None,
            "attempts": report.attempts,
            "resumed": report.resumed or None,
            "first_ms": round(report.total_ms) if report.began else None,
            "ms": round(took_ms),
            "tokens": report.tokens,
            "outcome": report.outcome,
            "why": report.why(),
        }
        log.info_line(logger, self.dialect.endpoint, fields)
        if hooked is not None:
            hooked.end(report, status, took_ms)
        if observers:
            self._observed(request, report, status, took_ms, observers)
        if status >= 400:
            request[RECORDED] = True

    def _observed(
        self,
        request: web.Request,
        report: RequestState,
        status: int,
        took_ms: float,
        observers: Sequence[Observer],
    ) -> None:
        record = record_of(
            report,
            id=request_id(request),
            endpoint=self.dialect.endpoint,
            caller=caller_of(request),
            status=status,
            ended_s=time.time(),
            total_ms=took_ms,
        )
        for observe in observers:
            try:
                observe(record)
            except Exception:
                logger.exception("an observer failed")


async def _relay(
    gateway: Gateway, wanted: Request, terms: RequestOptions, sink: Responder, report: RequestState
) -> None:
    """Serve a request; once more where nobody was left and others are there since, by a reload."""
    while True:
        assert gateway.relay is not None
        targets = gateway.targets
        try:
            return await gateway.relay.serve(wanted, targets.of(wanted), terms, sink, report)
        except NoCandidate:
            if targets is gateway.targets or not wanted.replayable:
                raise


async def _fail_stream(sink: Responder, error: GatewayError) -> None:
    """Tell an error to a caller whose head is already sent."""
    with contextlib.suppress(CallerGone):
        await sink.fail(error.status, error.body())


async def _abort_on_shutdown(sink: Responder) -> None:
    """End an answer that the shutdown's time limit cuts off."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
    farewell = Draining()
    if sink.response is None:
        raise farewell
    try:
        async with asyncio.timeout(GOODBYE_S):
            await sink.fail(farewell.status, farewell.body())
    except (CallerGone, TimeoutError):
        pass
