"""The promise of one instance for one attempt; it ends with exactly one outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nexus_gateway.breaker import Permit
from nexus_gateway.classify import RATE_LIMIT_PARK_S, Outcome, Verdict
from nexus_gateway.instance import Instance
from nexus_gateway.span import Span

_TROUBLES = (Outcome.FAILURE, Outcome.RATE_LIMITED, Outcome.BAD_KEY)


class Turned(NamedTuple):
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
        self.turned: Turned | None = None
        instance.in_flight += 1
        instance.total_requests += 1

    def first_token(self, latency_ms: float, limit_ms: float) -> None:
        """Note that a stream has begun, after how long, and what would have been too long."""
        self.instance.health.observe_latency(latency_ms, limit_ms)
        self.instance.health.observe_first_token(latency_ms)
        self._permit = self.instance.breaker.proved(self._permit)
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
                self.turned = Turned(True, since_good)
            instance.health.failure()
            if verdict.park_s is not None:
                instance.rest(verdict.park_s)
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
        awaited = instance.breaker.awaits_good
        counts = instance.breaker.success(self._permit)
        if counts and awaited:
            self.turned = Turned(False)
        instance.health.success()
        instance.good_key()
        # What began before the circuit opened, or before the park, says nothing of why it did.
        if instance.last_reason is not None and counts and not instance.parked_for_s():
            instance.last_reason = None
