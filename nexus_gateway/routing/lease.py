"""The promise of one instance for one attempt; it ends with exactly one outcome.

What was tried for one request, and how it went.

What follows an attempt from its beginning to its end, for traces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from nexus_gateway.provider import RATE_LIMIT_PARK_S, Outcome, Verdict
from nexus_gateway.routing.breaker import Permit
from nexus_gateway.routing.instance import Instance


class Span(Protocol):
    """Follows one attempt. None of its methods raises.

    Attributes:
        headers: what goes to the upstream so that it can go on with the trace.
    """

    headers: Mapping[str, str]

    def first_content(self) -> None:
        """Note that a stream has its first content."""

    def used(self, usage: Mapping[str, Any]) -> None:
        """Note what the answer used, in OpenAI's shape."""

    def end(self, verdict: Verdict) -> None:
        """Note how it ended."""


_TROUBLES = (Outcome.FAILURE, Outcome.RATE_LIMITED, Outcome.BAD_KEY)


class CircuitChange(NamedTuple):
    """What an attempt's end did to its instance's circuit.

    Args:
        opened: whether it opened; else it has closed, and this answer is the first since that was
            good to the end: the probe's, or another's where the probe's caller left.
        since_good: how many have failed since the last good answer, this one included.
    """

    opened: bool
    since_good: int = 0


class Lease:
    """The promise of one instance for one attempt. Made by the scheduler.

    Attributes:
        span: follows the attempt, where the request is traced.
        turned: what its end did to the circuit; None for nothing, and for a probe that failed: that
            one was open, and is again.
    """

    def __init__(self, instance: Instance, model: str, permit: Permit) -> None:
        self.instance = instance
        self.model = model
        self._permit = permit
        self._is_probe = permit.probe
        self._ended = False
        self.span: Span | None = None
        self.turned: CircuitChange | None = None
        instance.in_flight += 1
        instance.total_requests += 1

    def first_token(self, latency_ms: float, limit_ms: float) -> None:
        """Note that a stream has begun, after how long, and what would have been too long."""
        self.instance.health.observe_latency(latency_ms, limit_ms)
        self.instance.health.observe_first_token(latency_ms)
        self._permit = self.instance.breaker.first_token(self._permit)
        if self.span is not None:
            self.span.first_content()

    def answered(self, latency_ms: float, limit_ms: float) -> None:
        """Note that a whole answer has come, after how long, and what would have been too long."""
        self.instance.health.observe_latency(latency_ms, limit_ms)

    def overtaken(self, waited_ms: float, limit_ms: float) -> None:
        """Note that somebody else was quicker, after how long a wait: it would have been longer."""
        self.instance.health.observe_latency(waited_ms, limit_ms)

    def came(self, tokens: int, spent_s: float) -> None:
        """Note how many tokens, thought ones left out, came after the first, and in what time."""
        self.instance.health.observe_speed(tokens, spent_s)

    def used(self, usage: Mapping[str, Any]) -> None:
        """Note what the answer used, in OpenAI's shape."""
        if self.span is not None:
            self.span.used(usage)

    def end(self, verdict: Verdict) -> None:
        """End with an outcome; a second one is ignored."""
        if self._ended:
            return
        self._ended = True
        instance, breaker = self.instance, self.instance.breaker
        instance.in_flight -= 1
        if verdict.outcome is Outcome.SUCCESS:
            self._succeed()
        elif verdict.outcome is Outcome.FAILURE:
            since_good = breaker.failure(self._permit)
            if since_good and not self._is_probe:
                self.turned = CircuitChange(True, since_good)
            instance.health.failure()
            if verdict.park_s is not None:
                instance.cool_down(verdict.park_s)
        else:
            breaker.release(self._permit)
        if verdict.outcome is Outcome.RATE_LIMITED:
            instance.park(RATE_LIMIT_PARK_S if verdict.park_s is None else verdict.park_s)
        elif verdict.outcome is Outcome.BAD_KEY:
            instance.park_bad_key()
        if verdict.outcome in _TROUBLES:
            instance.last_reason = verdict.reason
        if self.span is not None:
            self.span.end(verdict)

    def _succeed(self) -> None:
        instance = self.instance
        awaited = instance.breaker.awaits_success
        counts = instance.breaker.success(self._permit)
        if counts and awaited:
            self.turned = CircuitChange(False)
        instance.health.success()
        instance.good_key()
        # What began before the circuit opened, or before the park, says nothing of why it did.
        if instance.last_reason is not None and counts and not instance.parked_for_s():
            instance.last_reason = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try that failed."""

    instance: Instance
    verdict: Verdict
    duration_ms: float


@dataclass(slots=True)
class AttemptHistory:
    """What was tried for one request.

    Attributes:
        attempts: those that failed.
        running: who is being asked now, where that is more than one.
        id: the request's, for the log.
        trace_id: its trace's, for the log; "" where that is not sampled.
        explanations: why each choice was made, where somebody wants to know it; else None.
    """

    attempts: list[Attempt] = field(default_factory=list)
    running: list[Instance] = field(default_factory=list)
    id: str = ""
    trace_id: str = ""
    explanations: list[str] | None = None
    _past: int = 0

    def log_fields(self) -> dict[str, str | None]:
        """Return by which names the log's lines about the request go."""
        names: dict[str, str | None] = {"id": self.id or None}
        if self.trace_id:
            names["trace_id"] = self.trace_id
        return names

    @property
    def made(self) -> int:
        """How many attempts were begun."""
        return len(self.attempts) + len(self.running)

    @property
    def _present(self) -> list[Attempt]:
        past, present = self.attempts[: self._past], self.attempts[self._past :]
        return [a for a in past if a.verdict.outcome is Outcome.REFUSED] + present

    def new_round(self) -> None:
        """Let by-gones be by-gones: after a wait whoever failed may do well.

        Whoever has refused will say the same.
        """
        self._past = len(self.attempts)

    def add(self, instance: Instance, verdict: Verdict, duration_ms: float) -> None:
        """Note a failed attempt."""
        self.attempts.append(Attempt(instance, verdict, duration_ms))

    def tried(self, instance: Instance) -> bool:
        """Tell whether an instance was tried, or is."""
        return instance in self.running or any(a.instance is instance for a in self._present)

    def last(self, instance: Instance) -> Outcome | None:
        """Return how an instance's last attempt ended, None when there was none."""
        found = (a.verdict.outcome for a in reversed(self._present) if a.instance is instance)
        return next(found, None)

    def failures_of(self, provider_name: str) -> int:
        """Count a provider's failures; a bad key or a rate limit is its key's, not its own."""
        return sum(
            a.instance.provider_name == provider_name and a.verdict.outcome is Outcome.FAILURE
            for a in self._present
        )

    def summary(self) -> str:
        """Tell what was tried and why it failed."""
        return summary(self.attempts)


def summary(attempts: Iterable[Attempt]) -> str:
    """Tell who was asked and why he failed."""
    return "; ".join(f"{a.instance.name}: {a.verdict.reason}" for a in attempts)
