"""One attempt at one instance, and the attempts of one request.

An `Attempt` lasts from the choice of its instance to the end of the answer's body and ends exactly
once. Until then the instance counts it as in flight; at its end the instance's health, circuit and
parks are updated. `AttemptHistory` keeps what was tried for a request, in order: the scheduler
reads it to choose the next instance, and the request's record is made of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from nexus_gateway.provider import RATE_LIMIT_PARK_S, Outcome, Verdict
from nexus_gateway.routing.breaker import Permit
from nexus_gateway.routing.instance import Instance
from nexus_gateway.wire.usage import parse_usage

logger = logging.getLogger("nexus_gateway")

SUCCESS = Verdict(Outcome.SUCCESS, "ok")
CANCELLED = Verdict(Outcome.CANCELLED, "ended without a result")
LOST_RACE = Verdict(Outcome.CANCELLED, "another attempt was faster")
BROKE = "broke in the middle of its answer: "
NO_USAGE: Mapping[str, Any] = {}
_NEUTRAL = (Outcome.SUCCESS, Outcome.CANCELLED)
_TROUBLES = (Outcome.FAILURE, Outcome.RATE_LIMITED, Outcome.BAD_KEY)


class AttemptFailed(Exception):
    """An attempt ended without an answer; the verdict holds why, and what it means."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class Span(Protocol):
    """Traces one attempt. No method raises.

    Attributes:
        headers: sent to the upstream, so that it can continue the trace.
    """

    headers: Mapping[str, str]

    def first_content(self) -> None: ...

    def end(self, verdict: Verdict, usage: Mapping[str, Any]) -> None: ...


class Attempt:
    """One try at one instance, begun by the scheduler.

    Used as a context manager, an attempt that has not ended yet ends with SUCCESS if the block
    raises nothing, with the verdict of an AttemptFailed, else with CANCELLED: a caller that leaves
    and a fault of the gateway are no failures of the instance.

    Attributes:
        started_s: when its request was sent; until then, when the instance was chosen.
        first_content_s: when the first content of a stream, or a full response, had come.
        verdict: how it ended; None while it runs.
        usage: of the answer, in OpenAI's shape; empty if unknown.
        span: traces it if the request is traced.
        circuit: "opened" or "closed" if its end did that to the instance's circuit. A failed probe
            did neither: the circuit was open, and is again.
        failures_in_a_row: how many, if this attempt opened the circuit; else 0.
    """

    def __init__(
        self,
        instance: Instance,
        model: str,
        permit: Permit,
        history: AttemptHistory,
        clock: Callable[[], float],
    ) -> None:
        self.instance = instance
        self.model = model
        self.started_s = clock()
        self.first_content_s: float | None = None
        self.ended_s = 0.0
        self.verdict: Verdict | None = None
        self.usage = NO_USAGE
        self.span: Span | None = None
        self.circuit = ""
        self.failures_in_a_row = 0
        self._permit = permit
        self._is_probe = permit.probe
        self._is_stream = False
        self._history = history
        self._clock = clock
        instance.in_flight += 1
        instance.total_requests += 1
        history.begun += 1
        history.latest = self
        history.running.append(self)

    def first_content(self, limit_ms: float, *, stream: bool) -> None:
        """Record the first content of a stream, or a full response.

        Args:
            limit_ms: what would have been too late.
            stream: whether the rest of the answer follows.
        """
        self.first_content_s = self._clock()
        history = self._history
        history.latest = self
        if history.answer is None:
            history.answer = self
        latency_ms = (self.first_content_s - self.started_s) * 1000
        health = self.instance.health
        health.observe_latency(latency_ms, limit_ms)
        if stream:
            self._is_stream = True
            health.observe_first_token(latency_ms)
            self._permit = self.instance.breaker.first_token(self._permit)
            if self.span is not None:
                self.span.first_content()

    def lose(self, limit_ms: float) -> None:
        """End it because another attempt was faster; its latency is at least the time so far."""
        self.instance.health.observe_latency((self._clock() - self.started_s) * 1000, limit_ms)
        self.withdraw(LOST_RACE)

    def withdraw(self, verdict: Verdict) -> None:
        """End it as if it had not been made: the history does not keep it."""
        if self.verdict is None:
            self.end(verdict)
            history = self._history
            history.attempts.remove(self)
            if history.latest is self:
                history.latest = next(iter(reversed((*history.attempts, *history.running))), None)

    def end(self, verdict: Verdict) -> None:
        """End it; a second end is ignored."""
        if self.verdict is not None:
            return
        self.verdict = verdict
        self.ended_s = self._clock()
        self._history.running.remove(self)
        self._history.attempts.append(self)
        instance, outcome = self.instance, verdict.outcome
        instance.in_flight -= 1
        if outcome is Outcome.SUCCESS:
            self._succeed()
        else:
            self._fail(verdict)
        if self.span is not None:
            self.span.end(verdict, self.usage)

    def _succeed(self) -> None:
        instance = self.instance
        closes = instance.breaker.awaits_success
        counts = instance.breaker.success(self._permit)
        if counts and closes:
            self.circuit = "closed"
            logger.info("circuit closed", extra={"fields": self._log_fields()})
        instance.health.success()
        instance.bad_keys_in_a_row = 0
        # A success that began before the circuit opened or the park began does not show that the
        # reason has passed.
        if instance.last_reason is not None and counts and not instance.parked_for_s():
            instance.last_reason = None
        if self._is_stream and self.first_content_s is not None:
            tokens = parse_usage(self.usage).output_without_reasoning or 0
            if tokens > 1:
                instance.health.observe_speed(tokens - 1, self.ended_s - self.first_content_s)

    def _fail(self, verdict: Verdict) -> None:
        instance, outcome = self.instance, verdict.outcome
        if outcome in _TROUBLES:
            instance.last_reason = verdict.reason
        if outcome is Outcome.FAILURE:
            self._fail_circuit(verdict)
        else:
            instance.breaker.release(self._permit)
        if outcome is Outcome.RATE_LIMITED:
            instance.park(RATE_LIMIT_PARK_S if verdict.park_s is None else verdict.park_s)
        elif outcome is Outcome.BAD_KEY:
            instance.park_bad_key()
            warn_once(instance, f"{instance.name} is parked: {verdict.reason}")
        if outcome is not Outcome.CANCELLED and self.first_content_s is None:
            logger.debug(
                "attempt failed", extra={"fields": {**self._log_fields(), "why": verdict.reason}}
            )

    def _fail_circuit(self, verdict: Verdict) -> None:
        instance = self.instance
        failures = instance.breaker.failure(self._permit)
        instance.health.failure()
        if verdict.park_s is not None:
            instance.cool_down(verdict.park_s)
        if not failures or self._is_probe:
            return
        self.circuit, self.failures_in_a_row = "opened", failures
        fields = {
            **self._log_fields(),
            "failures": failures,
            "probe_in_s": round(instance.available_in_s() or 0),
            "why": verdict.reason,
        }
        logger.warning("circuit opened", extra={"fields": fields})

    def _log_fields(self) -> dict[str, object]:
        return {**self._history.log_fields(), "on": self.instance.name}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        match error:
            case None:
                self.end(SUCCESS)
            case AttemptFailed(verdict=verdict):
                self.end(verdict)
            case _:
                self.end(CANCELLED)

    @property
    def outcome(self) -> Outcome:
        return Outcome.CANCELLED if self.verdict is None else self.verdict.outcome

    @property
    def reason(self) -> str:
        """Why it failed; "" if it did not."""
        verdict = self.verdict
        return "" if verdict is None or verdict.outcome in _NEUTRAL else verdict.reason

    @property
    def status(self) -> int:
        """The upstream's HTTP status; 200 once it had its first content, 0 if unknown."""
        if self.first_content_s is not None:
            return 200
        return 0 if self.verdict is None else self.verdict.status

    @property
    def latency_ms(self) -> float:
        """To its first content or full response, else to its failure; 0 if cancelled before."""
        if self.first_content_s is not None:
            return (self.first_content_s - self.started_s) * 1000
        return (self.ended_s - self.started_s) * 1000 if self.reason else 0.0

    @property
    def duration_ms(self) -> float:
        """As `latency_ms`; if it broke in the middle of its answer, until then."""
        if self.first_content_s is not None and self.reason:
            return (self.ended_s - self.started_s) * 1000
        return self.latency_ms


@dataclass(slots=True)
class AttemptHistory:
    """What was tried for one request.

    Attributes:
        id: the request's, for the log.
        trace_id: its trace's, for the log; "" if it is not sampled.
        explanations: why each choice was made, if that is wanted; else None.
        attempts: those that have ended, in order. One that lost a race is left out.
        running: those that have not.
        begun: how many were begun, those that lost a race included.
        latest: the one that answers, or the last one that was begun.
        answer: the first one that had its first content.
        hedged: whether two ran at a time.
    """

    id: str = ""
    trace_id: str = ""
    explanations: list[str] | None = None
    attempts: list[Attempt] = field(default_factory=list)
    running: list[Attempt] = field(default_factory=list)
    begun: int = 0
    latest: Attempt | None = None
    answer: Attempt | None = None
    hedged: bool = False
    _earlier: int = 0

    def log_fields(self) -> dict[str, object]:
        """Return the ids of the request, for log lines about it."""
        fields: dict[str, object] = {"id": self.id or None}
        if self.trace_id:
            fields["trace_id"] = self.trace_id
        return fields

    def new_round(self) -> None:
        """Forget earlier failures: after a wait the same instances may be tried again.

        A refusal stays, as the same request would be refused again.
        """
        self._earlier = len(self.attempts)

    def _this_round(self) -> list[Attempt]:
        refused = [a for a in self.attempts[: self._earlier] if a.outcome is Outcome.REFUSED]
        return [*refused, *self.attempts[self._earlier :]]

    def tried(self, instance: Instance) -> bool:
        """Whether an instance was tried in this round, or is being tried."""
        return any(a.instance is instance for a in (*self.running, *self._this_round()))

    def last_outcome(self, instance: Instance) -> Outcome | None:
        """Return how the last attempt at an instance ended, None if there was none."""
        outcomes = (a.outcome for a in reversed(self._this_round()) if a.instance is instance)
        return next(outcomes, None)

    def failures_of(self, provider_name: str) -> int:
        """Count a provider's failures; a bad key or a rate limit concerns one key alone."""
        if not self.attempts:
            return 0
        return sum(
            a.instance.provider_name == provider_name and a.outcome is Outcome.FAILURE
            for a in self._this_round()
        )

    def summary(self) -> str:
        """Return which instances failed and why."""
        return summary(self.attempts)

    def usage(self) -> Mapping[str, Any]:
        """Return what the answer used, in OpenAI's shape.

        If several attempts answered, one after the other, their token counts are added. Details and
        costs are left out then: they are known of each part alone.
        """
        if len(self.attempts) == 1:
            return self.attempts[0].usage
        parts = [attempt.usage for attempt in self.attempts if attempt.usage]
        if len(parts) < 2:
            return parts[0] if parts else NO_USAGE
        total: dict[str, int] = {}
        for part in parts:
            for name, count in part.items():
                if name.endswith("_tokens") and type(count) is int:
                    total[name] = total.get(name, 0) + count
        return total


def summary(attempts: Iterable[Attempt]) -> str:
    return "; ".join(f"{a.instance.name}: {a.reason}" for a in attempts if a.reason)


def warn_once(instance: Instance, warning: str) -> None:
    """Log what only the operator can fix, but not with every request."""
    if warning not in instance.warnings:
        instance.warnings.add(warning)
        logger.warning("%s", warning)
