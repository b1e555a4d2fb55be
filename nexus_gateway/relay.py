"""One request: candidates, attempts, first content, bytes through.

The relay knows no web framework: it writes to a `Sink`. Its promises:

- Attempt after attempt is made until one has its first content in hand; nothing has gone to
  the caller by then, so every failure before it costs the caller only time.
- After it there is no second attempt. What breaks then ends the stream with an error event.
- Every lease ends with exactly one outcome, whatever happens, and a caller who leaves closes
  the upstream at once and is nobody's failure.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nexus_gateway import json_codec
from nexus_gateway.answer import completion_tokens
from nexus_gateway.classify import Outcome, Verdict
from nexus_gateway.dialects.dialect import Request, Whole
from nexus_gateway.errors import BrokenStream, NoCandidate, UpstreamRefused
from nexus_gateway.instance import Instance
from nexus_gateway.registry import prefix
from nexus_gateway.scheduler import Lease, Scheduler, Target, Trail
from nexus_gateway.secret import SHORTEST_SECRET, Secret
from nexus_gateway.sending import AttemptFailed
from nexus_gateway.settings import Settings
from nexus_gateway.streams import AnswerStream, Outlet
from nexus_gateway.upstream import Upstream

logger = logging.getLogger("nexus_gateway")

_CANCELLED = Verdict(Outcome.CANCELLED, "the caller left")
_SUCCESS = Verdict(Outcome.SUCCESS, "ok")
BROKEN_STATUS = 500
_BEGINNING = 8  # of a key: what others show of it as harmless


class CallerGone(Exception):
    """The caller has closed the connection."""


@dataclass(slots=True)
class Report:
    """What became of one request, for the answer's headers and for the log.

    Attributes:
        started_s: when it came, by the relay's clock.
        instance: who answers, None as long as nobody does.
        model: the upstream's name of the model.
        attempts: how many were made, the running one included.
        upstream_ms: the last attempt's time to its first content, its whole answer, its failure.
        total_ms: from the request's arrival to that moment.
        usage: what was used, in OpenAI's shape; empty when unknown.
        outcome: how it ended.
    """

    started_s: float
    instance: Instance | None = None
    model: str = ""
    attempts: int = 0
    upstream_ms: float = 0.0
    total_ms: float = 0.0
    usage: Mapping[str, Any] = field(default_factory=dict)
    outcome: str = "cancelled"

    @property
    def tokens(self) -> int:
        """How many tokens the answer had, 0 when unknown."""
        return completion_tokens(self.usage) or 0


class Sink(Outlet, Protocol):
    """Where an answer goes. Each method raises CallerGone when nobody is there any more."""

    async def start(self, report: Report) -> None:
        """Let a stream begin; its head goes out no later than its first events."""

    async def fail(self, status: int, body: dict[str, Any]) -> None:
        """End the stream with an error event; the status is what it would have had."""

    async def whole(self, report: Report, answer: Whole) -> None:
        """Send an answer in one piece."""


@dataclass(slots=True)
class Errand:
    """One request on its way: what is wanted, of whom, and what was tried so far."""

    request: Request
    target: Target
    policy: str
    sink: Sink
    report: Report
    deadline_s: float
    refusal: UpstreamRefused | None = None
    trail: Trail = field(default_factory=Trail)


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
        self._clock = clock
        self._said: set[str] = set()

    def report(self) -> Report:
        """Begin the report of a request that has just come."""
        return Report(self._clock())

    async def serve(
        self, request: Request, target: Target, policy: str, sink: Sink, report: Report
    ) -> None:
        """Serve one request.

        Raises:
            GatewayError: no answer could be had and nothing was sent.
            CallerGone: the caller left.
        """
        deadline_s = self._clock() + self._settings.response_timeout_ms / 1000
        errand = Errand(request, target, policy, sink, report, deadline_s)
        try:
            while not await self._attempt(errand):
                pass
        except NoCandidate:
            if errand.refusal is None:
                raise
            raise errand.refusal from None

    async def _attempt(self, errand: Errand) -> bool:
        """Make one attempt; False when another one may follow."""
        lease = self._lease(errand)
        try:
            await self._pause(errand, lease)
            begun_s = self._clock()
            answer = await self._ask(errand, lease)
        except AttemptFailed as failed:
            lease.end(failed.verdict)
            self._time(errand.report, begun_s)
            errand.trail.add(lease.instance, failed.verdict, errand.report.upstream_ms)
            self._judge(errand, lease, failed.verdict)
            return False
        except BaseException:
            lease.end(_CANCELLED)
            raise
        await self._deliver(errand, lease, answer, begun_s)
        return True

    def _lease(self, errand: Errand) -> Lease:
        made = len(errand.trail.attempts)
        over = self._clock() >= errand.deadline_s or not errand.request.replayable
        if made >= self._settings.max_attempts or (made and over):
            raise self.scheduler.no_candidate(errand.target, errand.trail)
        lease = self.scheduler.lease(errand.target, errand.policy, errand.trail)
        errand.report.instance, errand.report.model = lease.instance, lease.model
        errand.report.attempts = made + 1
        return lease

    async def _pause(self, errand: Errand, lease: Lease) -> None:
        pause_s = self.scheduler.backoff_s(lease, errand.trail)
        if not pause_s:
            return
        if self._clock() + pause_s >= errand.deadline_s:
            raise self.scheduler.no_candidate(errand.target, errand.trail)
        await asyncio.sleep(pause_s)

    async def _ask(self, errand: Errand, lease: Lease) -> AnswerStream | Whole:
        if errand.request.stream:
            return await self._upstream.stream(lease.instance, lease.model, errand.request)
        return await self._upstream.whole(
            lease.instance, lease.model, errand.request, self._share_s(errand)
        )

    def _share_s(self, errand: Errand) -> float:
        """Return how long one attempt at a whole answer may take.

        Half of the time left as long as somebody else could be tried: a whole answer has no
        first token by which to tell slow from dead, and the next one needs time as well.
        """
        left_s = max(errand.deadline_s - self._clock(), 0.001)
        others = len(errand.target.instances) - len(errand.trail.attempts) - 1
        return left_s / 2 if others > 0 else left_s

    def _judge(self, errand: Errand, lease: Lease, verdict: Verdict) -> None:
        """Pass a refusal on to the caller; let any other failure go to the next candidate."""
        name = lease.instance.name
        logger.debug("attempt failed", extra={"fields": {"on": name, "why": verdict.reason}})
        if verdict.outcome is Outcome.BAD_KEY:
            self._say_once(f"{name} is parked: {verdict.reason}")
        if verdict.outcome is not Outcome.REFUSED:
            return
        error = _without_key(verdict.error or {}, lease.instance.key)
        refusal = UpstreamRefused(verdict.status, error)
        if verdict.status != 404 or not errand.target.chosen_by_us:
            raise refusal
        if errand.target.guessed and errand.target.model is not None:
            errand.refusal = refusal  # the next one may know it; if nobody does, this is the answer
        else:
            own = prefix(lease.instance.provider_name)
            self._say_once(
                f"{name} does not know its model {lease.model!r}: check {own}_MODEL and "
                f"{own}_BASE_URL (it usually ends in /v1)"
            )
            lease.instance.last_reason = f"does not know {lease.model!r} (404)"

    def _say_once(self, warning: str) -> None:
        """Say loudly what only the owner can mend, but not with every request."""
        if warning not in self._said:
            self._said.add(warning)
            logger.warning("%s", warning)

    async def _deliver(
        self, errand: Errand, lease: Lease, answer: AnswerStream | Whole, begun_s: float
    ) -> None:
        report = errand.report
        now_s = self._time(report, begun_s)
        if isinstance(answer, Whole):
            lease.first_token(report.upstream_ms, self._settings.response_timeout_ms)
            lease.end(_SUCCESS)
            report.usage, report.outcome = answer.usage, "success"
            await errand.sink.whole(report, answer)
        else:
            lease.first_token(report.upstream_ms, self._settings.first_token_timeout_ms)
            await self._stream(errand, lease, answer, now_s)

    def _time(self, report: Report, begun_s: float) -> float:
        """Note in the report how long an attempt took; return the time."""
        now_s = self._clock()
        report.upstream_ms = (now_s - begun_s) * 1000
        report.total_ms = (now_s - report.started_s) * 1000
        return now_s

    async def _stream(
        self, errand: Errand, lease: Lease, answer: AnswerStream, first_s: float
    ) -> None:
        verdict = _CANCELLED
        try:
            await errand.sink.start(errand.report)
            await answer.pour(errand.sink)
            verdict = _SUCCESS
        except BrokenStream as broken:
            verdict = Verdict(Outcome.FAILURE, "broke in the middle of its answer")
            told = _without_key(broken.body(), lease.instance.key)
            await errand.sink.fail(BROKEN_STATUS, told)
        finally:
            try:
                errand.report.usage, errand.report.outcome = answer.used(), verdict.outcome.value
                tokens, spent_s = errand.report.tokens, self._clock() - first_s
                fit = verdict is _SUCCESS and tokens > 1 and spent_s > 0
                lease.end(verdict, tokens / spent_s if fit else None)
            finally:
                lease.end(verdict)
                await answer.close()


def _without_key(error: Mapping[str, Any], key: Secret) -> dict[str, Any]:
    """Return an upstream's error with the key masked: some repeat it, or how it begins."""
    if len(key.reveal()) < SHORTEST_SECRET:
        return dict(error)
    whole, begun = (json_codec.dumps(k)[1:-1] for k in (key.reveal(), key.reveal()[:_BEGINNING]))
    said = json_codec.dumps(error).replace(whole, b"***")
    masked: dict[str, Any] = json_codec.loads(
        re.sub(re.escape(begun) + rb'[^\s"\\]*', b"***", said)
    )
    return masked
