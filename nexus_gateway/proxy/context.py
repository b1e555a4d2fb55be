"""One request: what is known of it until its record, and what the relay delivers to its sink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from nexus_gateway.dialects.base import FullResponse, Request
from nexus_gateway.dialects.conversation import conversation_of
from nexus_gateway.errors import UpstreamRefused
from nexus_gateway.proxy.record import MAX_MODEL, MAX_WHY, RequestRecord, Trace
from nexus_gateway.routing.attempts import CANCELLED, Attempt, AttemptHistory
from nexus_gateway.routing.scheduler import RoutingTarget
from nexus_gateway.upstream.client import SentRequest
from nexus_gateway.upstream.streams import AnswerStream, ResponseWriter
from nexus_gateway.wire.usage import billed_usd, parse_usage


class CallerGone(Exception):
    """The caller has closed the connection."""


@dataclass(slots=True)
class RequestOptions:
    """What a caller asks of the gateway itself, by headers.

    Args:
        policy: the name of a routing policy.
        hedge: whether a second instance may be asked while the first token is overdue.
        timeout_s: how long the caller waits for the end; None for as long as it takes.
        session: the caller's name for the conversation, "" if it gives none; None if conversations
            are not kept together.
    """

    policy: str
    hedge: bool = False
    timeout_s: float | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class BegunAttempt:
    """An attempt that is running; `sent` is its request if it was sent."""

    attempt: Attempt
    sent: SentRequest | None

    def abandon(self) -> None:
        """Cancel it unless someone continued it."""
        self.attempt.end(CANCELLED)
        if self.sent is not None:
            self.sent.abandon()


@dataclass(slots=True)
class RequestContext:
    """The facts of one request; its record is made of them.

    Attributes:
        endpoint: `chat`, `messages`, …
        caller: the gateway key it came with, `key-2`; "" if none was needed.
        clock: monotonic seconds.
        started_s: when it arrived, by the clock.
        history: the attempts.
        trace: traces it, if traces are on.
        asked_model, stream, policy: known once it is read.
        unavailable: why no instance, or no other one, could be tried: for `why`.
        outcome: how it ended.
        before: attempts before a reload, which do not count towards MAX_ATTEMPTS.
        begun: a first attempt that the relay has to continue.
    """

    endpoint: str
    caller: str
    clock: Callable[[], float]
    started_s: float
    history: AttemptHistory
    trace: Trace | None = None
    asked_model: str | None = None
    stream: bool = False
    policy: str = ""
    unavailable: str = ""
    outcome: str = "cancelled"
    before: int = 0
    begun: BegunAttempt | None = None

    def set_request(self, request: Request, options: RequestOptions) -> None:
        self.asked_model, self.stream = request.model, request.stream
        self.policy = options.policy
        if options.session is not None:
            self.history.conversation = conversation_of(request, options.session)

    def restart(self) -> None:
        """Serve it again, as a reload has brought other instances."""
        self.history.new_round()
        self.before = len(self.history.attempts)
        self.unavailable = ""

    def latency_ms(self) -> tuple[float, float]:
        """Return the time to the first content, else the last failure, and the upstream's part."""
        attempt = self.history.answer
        if attempt is None:
            attempt = next((a for a in reversed(self.history.attempts) if a.reason), None)
            if attempt is None:
                return 0.0, 0.0
        at_s = attempt.first_content_s or attempt.ended_s
        return (at_s - self.started_s) * 1000, (at_s - attempt.started_s) * 1000

    def why(self) -> str | None:
        """Return which attempts failed and why, and why no other instance could be tried."""
        if self.outcome == "success" and self.history.begun <= 1:
            return None
        parts = (self.history.summary(), self.unavailable)
        return "; ".join(part for part in parts if part)[:MAX_WHY] or None

    def record(self, status: int, ended_s: float) -> RequestRecord:
        """Return the record of the request, which has ended now.

        Args:
            status: of the response; 499 if the caller left.
            ended_s: in Unix seconds.
        """
        history, model = self.history, self.asked_model
        latest, usage = history.latest, history.usage()
        first_ms, upstream_ms = self.latency_ms()
        return RequestRecord(
            id=history.id,
            trace_id=history.trace_id,
            ended_s=ended_s,
            endpoint=self.endpoint,
            asked_model=None if model is None else model[:MAX_MODEL],
            stream=self.stream,
            policy=self.policy,
            caller=self.caller,
            instance="" if latest is None else latest.instance.name,
            provider="" if latest is None else latest.instance.provider_name,
            model="" if latest is None else latest.model[:MAX_MODEL],
            attempts=tuple(history.attempts),
            begun=history.begun,
            hedged=history.hedged,
            status=status,
            outcome=self.outcome,
            first_ms=first_ms,
            upstream_ms=upstream_ms,
            total_ms=(self.clock() - self.started_s) * 1000,
            tokens=parse_usage(usage),
            billed_usd=billed_usd(usage),
            why=self.why(),
            affinity=history.affinity,
        )


class Sink(ResponseWriter, Protocol):
    """Where an answer goes. Each method raises CallerGone if the caller has left."""

    async def start(self, context: RequestContext, stream: AnswerStream) -> None:
        """Start a stream; its head is sent no later than the first events that `stream` makes."""

    async def fail(self, status: int, body: dict[str, Any]) -> None:
        """End the stream with an error event; the status is what it would have had."""

    async def full(self, context: RequestContext, response: FullResponse) -> None:
        """Send an answer in one piece."""


@dataclass(slots=True)
class Delivery:
    """One request for the relay, and where its answer goes.

    Attributes:
        until_s: no attempt begins after it, by the scheduler's clock.
        answer_by_s: when RESPONSE_TIMEOUT_MS is over; limits a full response. The caller's own
            limit is kept by the endpoint.
        refusal: the first one by an upstream that another one may not share; the answer if none
            answers.
        sent: the request of the first attempt if it was sent already.
    """

    context: RequestContext
    request: Request
    target: RoutingTarget
    options: RequestOptions
    sink: Sink
    until_s: float
    answer_by_s: float
    refusal: UpstreamRefused | None = None
    sent: SentRequest | None = None
