"""What became of a request, in one object.

A record says what a caller asked for, which instances were tried and why they failed, which one
answered, and what it took. It holds no word of the conversation and no key. Log line, metrics,
ledger row, live feed, spans and hook results are made of it; each of their *observers* is called
with the record once the request has ended, and must neither wait nor fail.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol

from nexus_gateway.routing.affinity import NONE
from nexus_gateway.routing.attempts import Attempt, Span
from nexus_gateway.wire.usage import TokenUsage

MAX_MODEL = 200
MAX_WHY = 1000


class RequestRecord(NamedTuple):
    """One request that has ended.

    Args:
        id: as in `X-Request-Id`.
        trace_id: of its trace; "" if it is not sampled.
        ended_s: in Unix seconds.
        endpoint: `chat`, `messages`, …
        asked_model: the model that the caller named, None if none.
        stream: whether the answer was streamed.
        policy: how it was routed.
        caller: the gateway key it came with, `key-2`; "" if none was needed.
        instance: the instance that answered, or was tried last; "" if none was.
        provider: of that instance.
        model: the upstream's name of the model.
        attempts: in order; one that lost a race is left out.
        begun: how many attempts were begun, those that lost a race included.
        hedged: whether two attempts ran at a time.
        status: the HTTP status of the response, 499 if the caller left.
        outcome: `success`, `failure`, `cancelled`, or an error's code.
        first_ms: from its arrival to the first content or full response, else to the last failure.
        upstream_ms: how much of that the attempt took that brought it.
        total_ms: from its arrival to its end.
        tokens: what was used.
        billed_usd: the price that the upstream states; None if it states none, and if several
            attempts answered, as only the last one's price is known then.
        why: which attempts failed and why, and why no other instance was tried; None if it went
            well at once, and if only the outcome is known.
        affinity: whether the conversation was where it belongs, in the words of `affinity`.
    """

    id: str
    trace_id: str
    ended_s: float
    endpoint: str
    asked_model: str | None
    stream: bool
    policy: str
    caller: str
    instance: str
    provider: str
    model: str
    attempts: tuple[Attempt, ...]
    begun: int
    hedged: bool
    status: int
    outcome: str
    first_ms: float
    upstream_ms: float
    total_ms: float
    tokens: TokenUsage
    billed_usd: float | None
    why: str | None = None
    affinity: str = NONE

    @property
    def answered(self) -> bool:
        """Whether the last attempt had its first content, or its full response."""
        return bool(self.attempts) and self.attempts[-1].first_content_s is not None

    @property
    def began(self) -> bool:
        """Whether an answer began, even if it broke later."""
        # The usual case first, as this runs several times for each request.
        return self.answered or any(a.first_content_s is not None for a in self.attempts)

    @property
    def resumed(self) -> int:
        """How many answers broke and were continued by a later attempt."""
        if len(self.attempts) < 2:
            return 0
        continued = 0
        for number, attempt in enumerate(self.attempts[:-1]):
            if attempt.first_content_s is not None and attempt.reason:
                continued += any(not later.reason for later in self.attempts[number + 1 :])
        return continued

    @property
    def failovers(self) -> list[Attempt]:
        """The attempts that were followed by an attempt at another instance."""
        if len(self.attempts) < 2:
            return []
        return [a for a, after in pairwise(self.attempts) if a.instance is not after.instance]


Observer = Callable[[RequestRecord], None]


class Trace(Protocol):
    """Traces one request.

    Attributes:
        trace_id: in hexadecimal; "" if it is not sampled.
    """

    trace_id: str

    def attempt(self, attempt: Attempt, *, stream: bool) -> Span:
        """Start the span of an attempt."""

    def end(self, record: RequestRecord) -> None: ...
