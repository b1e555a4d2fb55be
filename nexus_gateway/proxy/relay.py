"""One request: candidates, attempts, first content, bytes through.

The relay knows no web framework: it writes to a `Sink`. Its promises:

- Attempt after attempt is made until one has its first content in hand; nothing has gone to
  the caller by then, so every failure before it costs the caller only time.
- After it there is no second attempt. What breaks then ends the stream with an error event.
- Every lease ends with exactly one outcome, whatever happens, and a caller who leaves closes
  the upstream at once and is nobody's failure.

What the log tells of attempts: of circuits that turn, and of what only the owner can mend.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from nexus_gateway.dialects.base import FullResponse, Request
from nexus_gateway.discovery import prefix
from nexus_gateway.errors import BrokenStream, GatewayError, NoCandidate, UpstreamRefused
from nexus_gateway.provider import Outcome, Verdict
from nexus_gateway.proxy import resumption
from nexus_gateway.proxy.context import RequestContext, RequestOptions, Sink
from nexus_gateway.proxy.hedging import HedgedAttempt
from nexus_gateway.proxy.queue import RequestQueue
from nexus_gateway.proxy.record import RequestState
from nexus_gateway.proxy.resumption import Joining, Remembering
from nexus_gateway.routing.lease import Attempt, AttemptHistory, Lease
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.attempt import Upstream
from nexus_gateway.upstream.failures import AttemptFailed
from nexus_gateway.upstream.streams import AnswerStream
from nexus_gateway.wire.error_objects import masked
from nexus_gateway.wire.usage import parse_usage

logger = logging.getLogger("nexus_gateway")


class AttemptLog:
    """Tells of attempts that have ended; of a circuit, in the process alone where it turned."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def ended(self, lease: Lease, verdict: Verdict, trail: AttemptHistory) -> None:
        """Tell what an attempt's end did to the circuit, and of a key that was refused.

        Args:
            lease: it has ended.
            verdict: how.
            trail: of its request.
        """
        name, turned = lease.instance.name, lease.turned
        if verdict.outcome is Outcome.BAD_KEY:
            self.once(f"{name} is parked: {verdict.reason}")
        if turned is None:
            return
        if not turned.opened:
            logger.info("circuit closed", extra={"fields": {**trail.log_fields(), "on": name}})
            return
        fields = {
            **trail.log_fields(),
            "on": name,
            "failures": turned.since_good,
            "probe_in_s": round(lease.instance.available_in_s() or 0),
            "why": verdict.reason,
        }
        logger.warning("circuit opened", extra={"fields": fields})

    def failed(self, lease: Lease, verdict: Verdict, trail: AttemptHistory) -> None:
        """Tell of an attempt that brought nothing."""
        fields = {**trail.log_fields(), "on": lease.instance.name, "why": verdict.reason}
        logger.debug("attempt failed", extra={"fields": fields})
        self.ended(lease, verdict, trail)

    def once(self, warning: str) -> None:
        """Say loudly what only the owner can mend, but not with every request."""
        if warning not in self._said:
            self._said.add(warning)
            logger.warning("%s", warning)


_CANCELLED = Verdict(Outcome.CANCELLED, "the caller left")
_SUCCESS = Verdict(Outcome.SUCCESS, "ok")
_BROKE = "broke in the middle of its answer: "
BROKEN_STATUS = 500


class Relay:
    """Serve requests.

    Args:
        scheduler: who gets them.
        upstream: how an attempt is made.
        settings: limits.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        upstream: Upstream,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self.scheduler = scheduler
        self._upstream = upstream
        self._settings = settings
        self._queue = RequestQueue(settings.queue_timeout_ms / 1000, settings.queue_limit)
        self._clock = clock
        self._log = AttemptLog()

    def report(self) -> RequestState:
        """Begin the report of a request that has just come."""
        return RequestState(self._clock())

    async def serve(
        self,
        request: Request,
        target: RoutingTarget,
        terms: RequestOptions,
        sink: Sink,
        report: RequestState,
    ) -> None:
        """Serve one request.

        Raises:
            GatewayError: no answer could be had and nothing was sent.
            CallerGone: the caller left.
        """
        memory = None
        if self._settings.resume and resumption.is_plain_text(request):
            sink = memory = Remembering(sink)
        report.asked_model, report.stream, report.policy = (
            request.model,
            request.stream,
            terms.policy,
        )
        now_s = self._clock()
        until_s = patience_s = now_s + self._settings.response_timeout_ms / 1000
        if terms.timeout_s is not None:
            until_s = min(until_s, report.started_s + terms.timeout_s)
        way = (request, target, terms, sink, report, until_s, patience_s)
        report.nobody = ""
        report.trail.new_round()  # where others are there by now, it is served once more
        before = len(report.trail.attempts)
        await self._run(RequestContext(*way, original=request, memory=memory, before=before))

    async def _run(self, errand: RequestContext) -> None:
        """Make attempts until one has brought an answer; raises as `serve`."""
        try:
            while not await self._attempt(errand):
                pass
        except NoCandidate:
            if errand.refusal is None:
                raise
            raise errand.refusal from None

    async def _attempt(self, errand: RequestContext) -> bool:
        """Make one attempt; False when another one may follow."""
        lease = await self._lease(errand)
        answer: AnswerStream | FullResponse
        try:
            await self._pause(errand, lease)
            begun_s = self._clock()
            if not errand.request.stream:
                answer = await self._whole(errand, lease)
            elif not errand.terms.hedge or not errand.request.replayable:
                answer = await self._begin(errand, lease)
            else:
                limits = self._settings.first_token_timeout_ms, self._settings.max_attempts
                race = HedgedAttempt(errand, self.scheduler, self._begin, self._failed, limits)
                spoken = await race.run(lease)
                if spoken is None:
                    return False
                lease, answer, begun_s = spoken.lease, spoken.answer, spoken.begun_s
        except AttemptFailed as failed:
            self._failed(errand, lease, failed.verdict, begun_s)
            return False
        except BaseException:
            lease.end(_CANCELLED)
            raise
        await self._deliver(errand, lease, answer, begun_s)
        return True

    async def _lease(self, errand: RequestContext) -> Lease:
        made = len(errand.trail.attempts) - errand.before
        left_s = errand.until_s - self._clock()
        over = left_s <= 0 or not errand.request.replayable
        if made >= self._settings.max_attempts or (made and over):
            raise self.scheduler.no_candidate(errand.target, errand.trail)
        policy = errand.terms.policy
        try:
            if self._queue.open:
                lease = await self._queue.lease(errand.target, lambda: self._give(errand), left_s)
            else:
                lease = self.scheduler.lease(errand.target, policy, errand.trail)
        except NoCandidate:
            errand.report.nobody = self.scheduler.explain_unavailable(
                errand.target, policy, errand.trail
            )
            raise
        errand.note_lease(lease)
        return lease

    def _give(self, errand: RequestContext) -> Lease:
        """Give a lease; who waits for the next one may come back to whom he has tried."""
        try:
            return self.scheduler.lease(errand.target, errand.terms.policy, errand.trail)
        except NoCandidate as nobody:
            if nobody.retry_after_s:
                errand.trail.new_round()
            raise

    async def _pause(self, errand: RequestContext, lease: Lease) -> None:
        pause_s = self.scheduler.backoff_s(lease, errand.trail)
        if not pause_s:
            return
        if self._clock() + pause_s >= errand.until_s:
            raise self.scheduler.no_candidate(errand.target, errand.trail)
        await asyncio.sleep(pause_s)

    async def _begin(self, errand: RequestContext, lease: Lease) -> AnswerStream:
        return await self._upstream.stream(*errand.attempt(lease))

    async def _whole(self, errand: RequestContext, lease: Lease) -> FullResponse:
        return await self._upstream.whole(*errand.attempt(lease), self._share_s(errand))

    def _share_s(self, errand: RequestContext) -> float:
        """Return how long one attempt at a whole answer may take.

        Half of the time left as long as somebody else could be tried: a whole answer has no
        first token by which to tell slow from dead, and the next one needs time as well.
        """
        left_s = max(errand.patience_s - self._clock(), 0.001)
        return left_s / 2 if errand.others() > 0 else left_s

    def _failed(
        self, errand: RequestContext, lease: Lease, verdict: Verdict, begun_s: float
    ) -> None:
        """End an attempt that brought nothing; raises UpstreamRefused where that is the answer."""
        lease.end(verdict)
        now_s = self._clock()
        if not errand.report.began:  # else the times are those of the answer that broke
            errand.report.time(begun_s, now_s)
        errand.trail.add(lease.instance, verdict, (now_s - begun_s) * 1000)
        self._judge(errand, lease, verdict)

    def _judge(self, errand: RequestContext, lease: Lease, verdict: Verdict) -> None:
        """Pass a refusal on to the caller; let any other failure go to the next candidate."""
        self._log.failed(lease, verdict, errand.trail)
        if verdict.outcome is not Outcome.REFUSED:
            return
        error = masked(verdict.error or {}, lease.instance.key)
        refusal = UpstreamRefused(verdict.status, error)
        if verdict.status != 404 or not errand.target.chosen_by_us:
            raise refusal
        if errand.target.is_fallback and errand.target.model is not None:
            errand.refusal = refusal  # the next one may know it; if nobody does, this is the answer
        else:
            name, own = lease.instance.name, prefix(lease.instance.provider_name)
            self._log.once(
                f"{name} does not know its model {lease.model!r}: check {own}_MODEL and "
                f"{own}_BASE_URL (it usually ends in /v1)"
            )
            lease.instance.last_reason = f"does not know {lease.model!r} (404)"

    async def _deliver(
        self,
        errand: RequestContext,
        lease: Lease,
        answer: AnswerStream | FullResponse,
        begun_s: float,
    ) -> None:
        report = errand.report
        report.answering = report.began = True
        now_s = self._clock()
        report.time(begun_s, now_s)
        if isinstance(answer, FullResponse):
            lease.answered(report.upstream_ms, self._settings.response_timeout_ms)
            lease.used(answer.usage)
            self._end(errand, lease, _SUCCESS)
            report.usage, report.outcome = answer.usage, "success"
            await errand.sink.whole(report, answer)
        else:
            lease.first_token(report.upstream_ms, self._settings.first_token_timeout_ms)
            await self._stream(errand, lease, answer, now_s)

    async def _stream(
        self, errand: RequestContext, lease: Lease, answer: AnswerStream, first_s: float
    ) -> None:
        verdict, broken = _CANCELLED, None
        try:
            await errand.sink.start(errand.report)
            await answer.write_to(errand.sink)
            verdict = _SUCCESS
        except BrokenStream as error:
            verdict, broken = Verdict(Outcome.FAILURE, _BROKE + error.reason), error
        finally:
            try:
                used = answer.used()
                errand.report.add_usage(used)
                lease.used(used)
                errand.report.outcome = verdict.outcome.value
                spent_s = self._clock() - first_s
                if (
                    verdict is _SUCCESS
                    and (tokens := parse_usage(used).output_without_reasoning or 0) > 1
                ):
                    lease.came(tokens - 1, spent_s)
                self._end(errand, lease, verdict)
            finally:
                lease.end(verdict)
                await answer.close()
        if broken is None:
            return
        took_ms = errand.report.upstream_ms + spent_s * 1000
        began = replace(verdict, status=200)
        errand.report.broken = Attempt(lease.instance, began, took_ms)
        if not await self._resume(errand, errand.report.broken):
            told = masked(broken.body(), lease.instance.key)
            await errand.sink.fail(BROKEN_STATUS, told)

    def _end(self, errand: RequestContext, lease: Lease, verdict: Verdict) -> None:
        lease.end(verdict)
        if lease.turned is not None:
            self._log.ended(lease, verdict, errand.trail)

    async def _resume(self, errand: RequestContext, broken: Attempt) -> bool:
        """Let somebody else go on with an answer that broke; False where nobody can."""
        memory = errand.memory
        said = memory.said() if memory is not None else None
        if memory is None or said is None:
            return False
        errand.trail.attempts.append(broken)
        errand.report.answering, errand.report.broken = False, None
        errand.report.resumed += 1
        errand.report.outcome = _CANCELLED.outcome.value  # unless somebody goes on to an end
        patience_s = self._clock() + self._settings.response_timeout_ms / 1000
        try:
            await self._run(
                replace(
                    errand,
                    request=resumption.continued(errand.original, said),
                    sink=Joining(memory, said),
                    until_s=patience_s,
                    patience_s=patience_s,
                )
            )
        except GatewayError:
            errand.report.resumed -= 1
            errand.report.outcome = broken.verdict.outcome.value
            return False
        return True
