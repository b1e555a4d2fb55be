"""The relay serves one request: it makes attempts until one answers, then forwards the bytes.

- Until an attempt has its first content, nothing of an answer is sent (with KEEPALIVE_MS, comments
  may be): every failure before it costs only time, and another instance is tried.
- After it the sink's `fail` ends a stream that breaks: with an error event, unless
  `resumption.Resuming` lets another instance continue.
- Every attempt ends exactly once. A caller that leaves closes the upstream at once, and no instance
  is blamed for it.

The relay knows no web framework: it writes to a `Sink`.
"""

from __future__ import annotations

import asyncio

from nexus_gateway.dialects.base import FullResponse, Request
from nexus_gateway.errors import BrokenStream, NoCandidate, UpstreamRefused
from nexus_gateway.provider import Outcome, Scope, Verdict
from nexus_gateway.proxy.context import Delivery, RequestContext, RequestOptions, Sink
from nexus_gateway.proxy.hedging import HedgedAttempt
from nexus_gateway.proxy.queue import RequestQueue
from nexus_gateway.routing.attempts import (
    BROKE,
    SUCCESS,
    Attempt,
    AttemptFailed,
    AttemptHistory,
    advice_on_model,
    is_unknown_model,
    warn_once,
)
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.attempt import Upstream
from nexus_gateway.upstream.streams import AnswerStream
from nexus_gateway.wire.error_objects import masked

BROKEN_STATUS = 500
EMPTY = Verdict(Outcome.REFUSED, "answered with nothing", 200, scope=Scope.ANSWER)


class Relay:
    """Serves requests."""

    def __init__(self, scheduler: Scheduler, upstream: Upstream, settings: Settings) -> None:
        self.scheduler = scheduler
        self.upstream = upstream
        self._queue: RequestQueue | None = None
        if settings.queue_timeout_ms:
            self._queue = RequestQueue(settings.queue_timeout_ms / 1000, settings.queue_limit)
        self._max_attempts = settings.max_attempts
        self.first_token_ms = settings.first_token_timeout_ms
        self.response_ms = settings.response_timeout_ms
        self._clock = scheduler.clock

    async def serve(
        self,
        context: RequestContext,
        request: Request,
        target: RoutingTarget,
        options: RequestOptions,
        sink: Sink,
    ) -> None:
        """Serve one request; continue its first attempt if that has begun.

        Raises:
            GatewayError: there is no answer, and nothing was sent.
            CallerGone: the caller left.
        """
        begun, context.begun = context.begun, None
        now_s = self._clock() if begun is None else begun.attempt.started_s
        until_s = answer_by_s = now_s + self.response_ms / 1000
        if options.timeout_s is not None:
            until_s = min(until_s, context.started_s + options.timeout_s)
        delivery = Delivery(context, request, target, options, sink, until_s, answer_by_s)
        attempt = None
        if begun is not None:
            attempt, delivery.sent = begun.attempt, begun.sent
        try:
            while True:
                attempt = attempt or await self._next_attempt(delivery)
                try:
                    with attempt:
                        return await self._run(delivery, attempt)
                except AttemptFailed:
                    self._raise_refusal(delivery, attempt)
                attempt = None
        except NoCandidate:
            refusal = delivery.refusal or _common_refusal(context.history)
            if refusal is None:
                raise
            raise refusal from None
        finally:
            if context.history.pending:
                context.history.settle()

    async def _next_attempt(self, delivery: Delivery) -> Attempt:
        context, target, policy = delivery.context, delivery.target, delivery.options.policy
        history = context.history
        left_s = delivery.until_s - self._clock()
        if len(history.attempts) > context.before:
            over = left_s <= 0 or not delivery.request.replayable
            if over or history.counted() - context.before >= self._max_attempts:
                raise self.scheduler.no_candidate(target, history)
        try:
            if self._queue is None:
                return self.scheduler.attempt(target, policy, history)
            return await self._queue.attempt(target, lambda: self._choose(delivery), left_s)
        except NoCandidate:
            context.unavailable = self.scheduler.explain_unavailable(target, policy, history)
            raise

    def _choose(self, delivery: Delivery) -> Attempt:
        """Begin the next attempt.

        If no instance is available, but one returns later, this request's failures are forgotten,
        so that the same instances may be tried again. They still count towards MAX_ATTEMPTS.
        """
        history = delivery.context.history
        try:
            return self.scheduler.attempt(delivery.target, delivery.options.policy, history)
        except NoCandidate as error:
            if error.retry_after_s:
                history.new_round()
            raise

    async def _run(self, delivery: Delivery, attempt: Attempt) -> None:
        """Send an attempt's request and deliver its answer."""
        context, request = delivery.context, delivery.request
        if context.history.attempts:
            # After the choice, as the pause depends on the chosen instance's provider.
            await self._back_off(delivery, attempt)
        if not request.stream:
            response = await self._open_full(delivery, attempt)
            attempt.first_content(self.response_ms, stream=False)
            attempt.usage = response.usage
            attempt.end(SUCCESS)
            context.outcome = SUCCESS.outcome.value
            await delivery.sink.full(context, response)
        elif delivery.options.hedge and request.replayable:
            limits = self.first_token_ms, self._max_attempts
            race = HedgedAttempt(delivery, self.scheduler, self._open, self._raise_refusal, limits)
            winner, stream = await race.run(attempt)
            with winner:  # `attempt` may have ended by now: a second end is ignored
                await self._deliver(delivery, winner, stream)
        else:
            await self._deliver(delivery, attempt, await self._open(delivery, attempt))

    async def _back_off(self, delivery: Delivery, attempt: Attempt) -> None:
        history = delivery.context.history
        pause_s = self.scheduler.backoff_s(attempt, history)
        if not pause_s:
            return
        if self._clock() + pause_s >= delivery.until_s:
            raise self.scheduler.no_candidate(delivery.target, history)
        await asyncio.sleep(pause_s)

    async def _open(self, delivery: Delivery, attempt: Attempt) -> AnswerStream:
        """Send the request; return the stream once its first content has arrived.

        If no other instance could be asked, to give up early would gain nothing.
        """
        request = delivery.request
        if delivery.context.trace is not None:
            request = _traced(delivery, attempt)
        upstream = self._sender(delivery, attempt)
        stream = await upstream.stream(
            attempt.deployment,
            request,
            max(delivery.answer_by_s - attempt.started_s, 0.001),
            may_give_up=attempt.has_alternative,
        )
        if attempt.has_alternative and stream.is_empty and _is_first(delivery.context.history):
            attempt.usage = stream.used()
            await stream.close()
            raise AttemptFailed(EMPTY)
        return stream

    async def _open_full(self, delivery: Delivery, attempt: Attempt) -> FullResponse:
        """Send the request and return its full response.

        It gets all the time that is left: a full response has no first token that tells slow from
        dead, and an answer that is cut off is paid all the same.
        """
        request = delivery.request
        if delivery.context.trace is not None:
            request = _traced(delivery, attempt)
        upstream = self._sender(delivery, attempt)
        limit_s = max(delivery.answer_by_s - attempt.started_s, 0.001)
        response = await upstream.full(attempt.deployment, request, limit_s)
        if attempt.has_alternative and response.is_empty and _is_first(delivery.context.history):
            attempt.usage = response.usage
            raise AttemptFailed(EMPTY)
        return response

    def _sender(self, delivery: Delivery, attempt: Attempt) -> Upstream:
        """Return what sends an attempt's request now, or has sent it."""
        sent, delivery.sent = delivery.sent, None
        if sent is not None:
            return self.upstream.continuing(sent)
        attempt.started_s = self._clock()
        return self.upstream

    async def _deliver(self, delivery: Delivery, attempt: Attempt, stream: AnswerStream) -> None:
        """Send the stream to the caller; if it breaks, end it with an error event."""
        context, sink = delivery.context, delivery.sink
        attempt.first_content(self.first_token_ms, stream=True)
        try:
            try:
                await sink.start(context, stream)
                await stream.write_to(sink)
            finally:
                attempt.usage = stream.used()
            attempt.end(SUCCESS)
            context.outcome = SUCCESS.outcome.value
            return
        except BrokenStream as broken:
            attempt.end(Verdict(Outcome.FAILURE, BROKE + broken.reason))
            context.outcome = Outcome.FAILURE.value
            error = masked(broken.body(), attempt.instance.key)
        finally:
            await stream.close()
        await sink.fail(BROKEN_STATUS, error)

    def _raise_refusal(self, delivery: Delivery, attempt: Attempt) -> None:
        """Raise the upstream's refusal of a request, unless another instance may answer it.

        If none does, the caller gets the first refusal, except for a model that the gateway chose:
        that is no fault of the request.
        """
        verdict, target = attempt.verdict, delivery.target
        if verdict is None or verdict.error is None:
            return
        is_unknown = is_unknown_model(verdict)
        status = 404 if is_unknown else verdict.status
        refusal = UpstreamRefused(status, masked(verdict.error, attempt.instance.key))
        if verdict.outcome is not Outcome.REFUSED:
            history = delivery.context.history
            if not history.edge_repeats(attempt):
                return
            if verdict.status == 401:  # would look like one of the gateway's own
                raise self.scheduler.no_candidate(target, history)
            raise refusal
        if verdict.scope is Scope.REQUEST:
            raise refusal
        if not is_unknown or target.model is not None:
            delivery.refusal = delivery.refusal or refusal
            return
        attempt.mark()  # at once: the next attempt may be at a successor
        warn_once(
            attempt.instance,
            f"{attempt.name} does not know its model {attempt.model!r}: "
            f"{advice_on_model(attempt.instance)}",
        )


def _common_refusal(history: AttemptHistory) -> UpstreamRefused | None:
    """Return the last refusal of a key if every attempt ended with its status.

    By its status alone a refusal concerns the key; if all keys say the same, the request. A 401
    would look like one of the gateway's own.
    """
    if len({(a.outcome, a.status) for a in history.attempts}) != 1:
        return None
    last = history.attempts[-1]
    verdict = last.verdict
    if verdict is None or verdict.error is None or verdict.status == 401:
        return None
    if verdict.outcome is Outcome.REFUSED:
        return None
    return UpstreamRefused(verdict.status, masked(verdict.error, last.instance.key))


def _is_first(history: AttemptHistory) -> bool:
    """Whether an empty answer is the request's first: after it another instance is asked, once."""
    return not any(attempt.verdict is EMPTY for attempt in history.attempts)


def _traced(delivery: Delivery, attempt: Attempt) -> Request:
    """Start the attempt's span; return the request with the trace's headers."""
    request, trace = delivery.request, delivery.context.trace
    assert trace is not None
    attempt.span = span = trace.attempt(attempt, stream=request.stream)
    return request.traced(span.headers)
