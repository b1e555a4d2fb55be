"""What became of a request, in one object, for whoever keeps count of it.

A record says who asked for what, who was asked in turn and why each of them failed, who answered,
and what it took. It never holds a word of the conversation, nor a key. Those that want to know
(metrics, the ledger, the live page, traces) are *observers*: each is called with the record once
the request has ended, and must neither wait nor fail.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from nexus_gateway.errand import Report
from nexus_gateway.tokens import Tokens, tokens_of
from nexus_gateway.trail import Attempt

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
    tokens: Tokens
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
    report: Report,
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
        tokens=tokens_of(report.usage),
        billed_usd=None if report.resumed else _bill(report.usage.get("cost")),
        why=report.why(),
    )


def _bill(cost: object) -> float | None:
    if isinstance(cost, bool) or not isinstance(cost, int | float):
        return None
    return float(cost) if 0 <= cost < HIGHEST_USD else None


def _attempts(report: Report) -> list[AttemptRecord]:
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
