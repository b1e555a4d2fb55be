"""One request on its way: what is wanted, of whom, on what terms, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nexus_gateway.answer import completion_tokens
from nexus_gateway.continuation import Said
from nexus_gateway.dialects.dialect import Request, Whole
from nexus_gateway.errors import UpstreamRefused
from nexus_gateway.instance import Instance
from nexus_gateway.lease import Lease
from nexus_gateway.log import LONGEST_WHY
from nexus_gateway.scheduler import Target
from nexus_gateway.span import Span
from nexus_gateway.streams import Outlet
from nexus_gateway.tokens import count
from nexus_gateway.trail import Attempt, Trail, story


class CallerGone(Exception):
    """The caller has closed the connection."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a caller wants beside the answer.

    Args:
        policy: the name of the way to route.
        hedge: ask somebody else as well when the first word lets itself be waited for.
        timeout_s: how long the caller waits for the end, None for as long as it takes.
    """

    policy: str
    hedge: bool = False
    timeout_s: float | None = None


class Trace(Protocol):
    """Follows one request.

    Attributes:
        trace_id: of the trace, in hexadecimal; "" where it is not sampled.
    """

    trace_id: str

    def attempt(self, lease: Lease, stream: bool) -> Span:
        """Begin to follow one of its attempts."""


@dataclass(slots=True)
class Report:
    """What became of one request, for the answer's headers and for the log.

    Attributes:
        started_s: when it came, by the relay's clock.
        asked_model: what the caller called the model, None where he did not.
        stream: whether the answer is streamed.
        policy: the way to route.
        trail: what was tried.
        trace: follows it, where it is traced.
        answering: an attempt has begun to answer, and its failure would end the request.
        broken: that attempt, where its answer broke and nobody goes on with it.
        began: an answer began, whatever became of it.
        nobody: why nobody was asked, or nobody else, where that is so.
        hedged: two were asked at a time.
        instance: who answers, None as long as nobody does.
        model: the upstream's name of the model.
        attempts: how many were made, the running ones included.
        resumed: how often the answer broke and somebody else went on with it.
        upstream_ms: the last attempt's time to its first content, its whole answer, its failure;
            but of whoever fails to go on with an answer that broke, nothing.
        total_ms: from the request's arrival to that moment.
        usage: what was used, in OpenAI's shape; empty when unknown.
        outcome: how it ended.
    """

    started_s: float
    asked_model: str | None = None
    stream: bool = False
    policy: str = ""
    trail: Trail = field(default_factory=Trail)
    trace: Trace | None = None
    answering: bool = False
    broken: Attempt | None = None
    began: bool = False
    nobody: str = ""
    hedged: bool = False
    instance: Instance | None = None
    model: str = ""
    attempts: int = 0
    resumed: int = 0
    upstream_ms: float = 0.0
    total_ms: float = 0.0
    usage: Mapping[str, Any] = field(default_factory=dict)
    outcome: str = "cancelled"

    def time(self, begun_s: float, now_s: float) -> None:
        """Note when an attempt had its first content, its whole answer or its failure.

        Args:
            begun_s: when it was begun, by the relay's clock.
            now_s: when that came.
        """
        self.upstream_ms = (now_s - begun_s) * 1000
        self.total_ms = (now_s - self.started_s) * 1000

    @property
    def tokens(self) -> int:
        """How many tokens the answer had, 0 when unknown."""
        return completion_tokens(self.usage) or 0

    def explanation(self) -> str:
        """Tell why the last one was chosen, and who beside him where two were asked at a time."""
        told = self.trail.explanations or []
        return " | ".join(told[-2:] if self.hedged else told[-1:])

    def why(self) -> str | None:
        """Tell why it did not go well at once: who failed and how, and who could not be asked."""
        if self.outcome == "success" and self.attempts <= 1:
            return None
        failed = [*self.trail.attempts, *([self.broken] if self.broken else [])]
        told = [part for part in (story(failed), self.nobody) if part]
        return "; ".join(told)[:LONGEST_WHY] or None

    def add_usage(self, used: Mapping[str, Any]) -> None:
        """Note what an answer used, beside that of the parts before it.

        Of several parts the numbers of tokens are added up. Nothing else is kept: details and
        costs are told of the last part alone.
        """
        if self.resumed:
            before = self.usage
            told = {k: count(v) for k, v in used.items() if k.endswith("_tokens")}
            used = {k: n + (count(before.get(k)) or 0) for k, n in told.items() if n is not None}
        self.usage = used


class Sink(Outlet, Protocol):
    """Where an answer goes. Each method raises CallerGone when nobody is there any more."""

    async def start(self, report: Report) -> None:
        """Let a stream begin; its head goes out no later than its first events."""

    async def fail(self, status: int, body: dict[str, Any]) -> None:
        """End the stream with an error event; the status is what it would have had."""

    async def whole(self, report: Report, answer: Whole) -> None:
        """Send an answer in one piece."""


class Memory(Sink, Protocol):
    """A sink that remembers what went through it."""

    def said(self) -> Said | None:
        """Return what of a chat's answer went through, None where it can't be gone on with."""


@dataclass(slots=True)
class Errand:
    """One request on its way.

    Attributes:
        request: what an attempt is to bring; the rest of it where an answer broke.
        until_s: when nothing new is begun any more, by the relay's clock.
        patience_s: the same, however little time the caller himself has: by it attempts are
            given their share.
        refusal: what an upstream said that does not know the model; the answer if nobody does.
        original: the request as it came.
        before: how many attempts were made before that do not count.
        memory: what was said so far, where somebody may go on with it.
    """

    request: Request
    target: Target
    terms: Terms
    sink: Sink
    report: Report
    until_s: float
    patience_s: float
    original: Request
    memory: Memory | None = None
    before: int = 0
    refusal: UpstreamRefused | None = None

    @property
    def trail(self) -> Trail:
        """What was tried so far."""
        return self.report.trail

    def note_lease(self, lease: Lease) -> None:
        """Put into the report whom an attempt is made at."""
        self.report.instance, self.report.model = lease.instance, lease.model
        self.report.attempts = len(self.trail.attempts) + max(1, len(self.trail.running))

    def attempt(self, lease: Lease) -> tuple[Instance, str, Request]:
        """Return whom an attempt asks, for which model, and for what.

        Where the request is traced, with what makes the upstream go on with the trace.
        """
        request, trace = self.request, self.report.trace
        if trace is not None:
            lease.span = span = trace.attempt(lease, request.stream)
            request = request.traced(span.headers)
        return lease.instance, lease.model, request

    def others(self) -> int:
        """Return how many more could be tried."""
        return len(self.target.instances) - len(self.trail.attempts) - 1
