"""What became of a request, in one object, for whoever keeps count of it.

A record says who asked for what, who was asked in turn and why each of them failed, who answered,
and what it took. It never holds a word of the conversation, nor a key. Those that want to know
(metrics, the ledger, the live page, traces) are *observers*: each is called with the record once
the request has ended, and must neither wait nor fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.lease import Attempt, AttemptHistory, Lease, Span, summary
from nexus_gateway.wire.usage import TokenUsage, completion_tokens, count, parse_usage

LONGEST_WHY = 1000  # in our words, of several attempts; here, in records and in spans


class Trace(Protocol):
    """Follows one request.

    Attributes:
        trace_id: of the trace, in hexadecimal; "" where it is not sampled.
    """

    trace_id: str

    def attempt(self, lease: Lease, stream: bool) -> Span:
        """Begin to follow one of its attempts."""


@dataclass(slots=True)
class RequestState:
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
    trail: AttemptHistory = field(default_factory=AttemptHistory)
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
        told = [part for part in (summary(failed), self.nobody) if part]
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


LONGEST_MODEL = 200
HIGHEST_USD = 1_000_000


class AttemptRecord(NamedTuple):
    """One attempt.

    Args:
        instance: who was asked.
        provider: whose instance that is.
        outcome: how it ended, see `classify.Outcome`.
        reason: why it failed, in our words; "" where it did not.
        status: the upstream's HTTP status, 0 when unknown; 200 where it began to answer.
        duration_ms: to its first content, its whole answer or its failure, which is the break where
            it broke in the middle of its answer.
    """

    instance: str
    provider: str
    outcome: str
    reason: str
    status: int
    duration_ms: float


class RequestRecord(NamedTuple):
    """One request.

    Args:
        id: as in `X-Request-Id`.
        ended_s: when it ended, in Unix seconds.
        endpoint: which door it came by: `chat`, `messages`, …
        asked_model: what the caller wrote, None where nothing was.
        stream: whether the answer was streamed.
        policy: the way to route.
        caller: which gateway key it came with, `key-2`; "" where none was needed.
        instance: who answered, or was asked last; "" where nobody was.
        provider: whose instance that is.
        model: the upstream's name of the model.
        attempts: all that were made, in turn; a hedge that was beaten is left out.
        hedged: whether two were asked at a time.
        resumed: how often another instance went on with it.
        status: the HTTP status that the caller got, 499 where he left.
        outcome: how it ended: `success`, `failure`, `cancelled`, or an error's code.
        first_ms: from its coming to the first content or the whole answer.
        upstream_ms: how much of that the last attempt took.
        total_ms: from its coming to its end.
        tokens: what was used.
        billed_usd: what the upstream itself says that it asks for; None where it does not, and
            where several answered, of whom only the last could say.
        why: who failed and how, and why nobody else could be asked; None where it went well at
            once, and where nothing is known but the outcome.
    """

    id: str
    ended_s: float
    endpoint: str
    asked_model: str | None
    stream: bool
    policy: str
    caller: str
    instance: str
    provider: str
    model: str
    attempts: tuple[AttemptRecord, ...]
    hedged: bool
    resumed: int
    status: int
    outcome: str
    first_ms: float
    upstream_ms: float
    total_ms: float
    tokens: TokenUsage
    billed_usd: float | None
    why: str | None = None

    @property
    def answered(self) -> bool:
        """Whether the last attempt had its first content, or its whole answer."""
        return bool(self.attempts) and self.attempts[-1].status == 200

    @property
    def began(self) -> bool:
        """Whether an answer began, also where nobody could go on with it when it broke."""
        return any(attempt.status == 200 for attempt in self.attempts)

    @property
    def moves(self) -> list[AttemptRecord]:
        """The attempts after which another instance was asked: each is a fail-over.

        A second attempt at the same instance is none.
        """
        if len(self.attempts) < 2:  # as nearly always
            return []
        return [made for made, after in pairwise(self.attempts) if made.instance != after.instance]


Observer = Callable[[RequestRecord], None]


def record_of(
    report: RequestState,
    *,
    id: str,
    endpoint: str,
    caller: str,
    status: int,
    ended_s: float,
    total_ms: float,
) -> RequestRecord:
    """Put together what is known of a request that has ended.

    Args:
        report: the relay's.
        id: the request's.
        endpoint: which door.
        caller: which gateway key.
        status: what the caller got.
        ended_s: in Unix seconds.
        total_ms: from its coming to its end.
    """
    asked = report.asked_model
    who = report.instance
    return RequestRecord(
        id=id,
        ended_s=ended_s,
        endpoint=endpoint,
        asked_model=None if asked is None else asked[:LONGEST_MODEL],
        stream=report.stream,
        policy=report.policy,
        caller=caller,
        instance="" if who is None else who.name,
        provider="" if who is None else who.provider_name,
        model=report.model[:LONGEST_MODEL],
        attempts=tuple(_attempts(report)),
        hedged=report.hedged,
        resumed=report.resumed,
        status=status,
        outcome=report.outcome,
        first_ms=report.total_ms,
        upstream_ms=report.upstream_ms,
        total_ms=total_ms,
        tokens=parse_usage(report.usage),
        billed_usd=None if report.resumed else _bill(report.usage.get("cost")),
        why=report.why(),
    )


def _bill(cost: object) -> float | None:
    if isinstance(cost, bool) or not isinstance(cost, int | float):
        return None
    return float(cost) if 0 <= cost < HIGHEST_USD else None


def _attempts(report: RequestState) -> list[AttemptRecord]:
    """Return the attempts; the one that brought the answer is not among those that failed."""
    made = [_failed(attempt) for attempt in report.trail.attempts]
    if report.broken is not None:
        return [*made, _failed(report.broken)]
    who = report.instance
    if who is None or (report.attempts <= len(made) and not report.answering):
        return made
    outcome = report.outcome if report.outcome in ("success", "failure") else "cancelled"
    status, took_ms = (200, report.upstream_ms) if report.answering else (0, 0.0)
    return [*made, AttemptRecord(who.name, who.provider_name, outcome, "", status, took_ms)]


def _failed(attempt: Attempt) -> AttemptRecord:
    who, verdict = attempt.instance, attempt.verdict
    about = (who.name, who.provider_name, verdict.outcome.value, verdict.reason, verdict.status)
    return AttemptRecord(*about, attempt.duration_ms)
