"""The handler of a dialect's route: reads a request, relays it, and records what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from aiohttp import web

from nexus_gateway.dialects.base import Dialect, Request
from nexus_gateway.dialects.responses import RESPONSES
from nexus_gateway.errors import (
    DeadlinePassed,
    Draining,
    GatewayError,
    InternalError,
    InvalidRequest,
    NoCandidate,
    Overloaded,
)
from nexus_gateway.proxy.context import CallerGone, RequestContext, RequestOptions
from nexus_gateway.proxy.hook_runner import RequestHooks
from nexus_gateway.routing.attempts import SUCCESS, AttemptHistory
from nexus_gateway.upstream.large import LARGE, apart, in_thread
from nexus_gateway.web.conversation import Conversation, owner_of
from nexus_gateway.web.gateway import GATEWAY, Gateway
from nexus_gateway.web.request import (
    CALLER,
    EXPLAINED,
    RECORDED,
    BegunRequest,
    BodyPieces,
    JoinedHeaders,
    begun_of,
    parse_options,
    read_body,
    request_id,
    via_headers,
)
from nexus_gateway.web.responder import Responder, attempt_headers

logger = logging.getLogger("nexus_gateway")
ABORT_S = 1.0


class DialectEndpoint:
    """The handler of one dialect's route."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Serve a request, streamed or in one piece."""
        gateway = request.app[GATEWAY]
        context = self._begin(request, gateway)
        hooks = None if gateway.hooks is None else RequestHooks(gateway.hooks)
        responder = Responder(request, self.dialect, gateway, hooks)
        status = 200
        try:
            with gateway.drain:
                await self._serve(request, gateway, context, responder, hooks)
        except CallerGone:
            status = 499
            if responder.response is None:
                raise
        except asyncio.CancelledError:
            status = 499
            if not gateway.drain.expired:
                raise
            status = 503
            await _abort_on_shutdown(responder)
        except GatewayError as error:
            status, context.outcome = error.status, error.code or error.kind
            if error.param and not context.history.begun:
                context.unavailable = f"`{error.param}` is invalid"
            if responder.response is None:
                error.headers.update(attempt_headers(context))
                raise
            with contextlib.suppress(CallerGone):
                await responder.fail(error.status, error.body())
        except Exception:
            # A second head must never be written into a response that has begun.
            status, context.outcome = 500, InternalError.code or ""
            if responder.response is None or not responder.response.prepared:
                raise
            logger.exception("a stream failed", extra={"fields": context.history.log_fields()})
            responder.abort()
        finally:
            self._end(request, gateway, context, status, hooks)
        assert responder.response is not None
        return responder.response

    def _begin(self, request: web.Request, gateway: Gateway) -> RequestContext:
        if (begun := begun_of(request)) is not None:
            return begun.context
        history = AttemptHistory(request_id(request))
        if EXPLAINED in request:
            history.explanations = []
        trace = None
        if gateway.tracing is not None:
            trace = gateway.tracing.begin(request.headers, self.dialect.endpoint, request.path)
            history.trace_id = trace.trace_id
        clock = gateway.scheduler.clock
        endpoint = self.dialect.endpoint
        return RequestContext(endpoint, request[CALLER], clock, clock(), history, trace)

    async def _serve(
        self,
        request: web.Request,
        gateway: Gateway,
        context: RequestContext,
        responder: Responder,
        hooks: RequestHooks | None,
    ) -> None:
        if (begun := begun_of(request)) is not None:
            return await self._continue(begun, gateway, responder)
        if gateway.drain.exceeds(gateway.settings.max_concurrent):  # this request included
            raise Overloaded
        options = parse_options(request.headers, gateway)
        if options.timeout_s is None:
            await self._relay(request, gateway, context, options, responder, hooks)
            return
        try:
            async with asyncio.timeout(options.timeout_s):
                await self._relay(request, gateway, context, options, responder, hooks)
        except TimeoutError:
            raise DeadlinePassed from None

    async def _continue(self, begun: BegunRequest, gateway: Gateway, responder: Responder) -> None:
        context, attempt = begun.context, begun.context.begun
        assert attempt is not None
        begun.take()
        try:
            if gateway.drain.expired:
                raise asyncio.CancelledError
            await self._serve_until_answered(
                gateway, context, begun.request, begun.options, responder
            )
        finally:
            attempt.abandon()

    async def _relay(
        self,
        request: web.Request,
        gateway: Gateway,
        context: RequestContext,
        options: RequestOptions,
        responder: Responder,
        hooks: RequestHooks | None,
    ) -> None:
        headers = JoinedHeaders(request.headers)
        via = via_headers(headers, gateway.client.via) if "Via" in request.headers else None
        if self.dialect.reads_pieces:
            with gateway.drain.receiving(gateway.settings.max_concurrent):
                parsed = await self.dialect.read(BodyPieces(request, gateway), headers)
        elif self.dialect is RESPONSES and gateway.store is not None:
            conversation = Conversation(
                gateway.store, owner_of(request), gateway.bodies, gateway.settings
            )
            parsed = await conversation.read(await read_body(request, gateway))
            responder.keep = conversation.keep
        else:
            data = await read_body(request, gateway)
            if len(data) > LARGE:
                parsed = await in_thread(self.dialect.parse, data, headers)
            else:
                parsed = self.dialect.parse(data, headers)
            del data  # it may be large, and the answer may take minutes
        if hooks is not None:
            parsed = await hooks.before_routing(parsed, context.history.id, context.caller)
        if via is not None:
            parsed = parsed.traced(via)
        context.set_request(parsed, options)
        if parsed.stream and gateway.settings.keepalive_ms:
            responder.keep_alive(gateway.settings.keepalive_ms / 1000)
        try:
            await self._serve_until_answered(gateway, context, parsed, options, responder)
        finally:
            if gateway.settings.keepalive_ms:
                await responder.stop_keepalive()

    async def _serve_until_answered(
        self,
        gateway: Gateway,
        context: RequestContext,
        parsed: Request,
        options: RequestOptions,
        responder: Responder,
    ) -> None:
        while True:
            resolver = gateway.resolver
            try:
                target = resolver.of(parsed)
                return await gateway.relay.serve(context, parsed, target, options, responder)
            except InvalidRequest as error:
                return await self._answer_itself(error, parsed, context, responder)
            except NoCandidate:
                # Once more if a reload has brought other instances in the meantime.
                if resolver is gateway.resolver or not parsed.replayable:
                    raise
                context.restart()

    async def _answer_itself(
        self,
        error: InvalidRequest,
        request: Request,
        context: RequestContext,
        responder: Responder,
    ) -> None:
        """Answer a request that no backend can serve; raise the error if the dialect cannot."""
        own = await apart(request.native.size, self.dialect.own_answer, request)
        if own is None or error is not request.untranslatable:
            raise error
        context.outcome = SUCCESS.outcome.value
        await responder.full(context, own)

    def _end(
        self,
        request: web.Request,
        gateway: Gateway,
        context: RequestContext,
        status: int,
        hooks: RequestHooks | None,
    ) -> None:
        """Make the request's record, and pass it to the recorder, the hooks and the trace."""
        record = context.record(status, time.time())
        gateway.recorder.record(record)
        if hooks is not None:
            hooks.at_end(record, context.history.usage())
        if context.trace is not None:
            context.trace.end(record)
        if status >= 400:  # `guard` must not log it a second time
            request[RECORDED] = True


async def _abort_on_shutdown(responder: Responder) -> None:
    """End a response that the time limit of the shutdown cuts off."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
    error = Draining()
    if responder.response is None:
        raise error
    with contextlib.suppress(CallerGone, TimeoutError):
        async with asyncio.timeout(ABORT_S):
            await responder.fail(error.status, error.body())
