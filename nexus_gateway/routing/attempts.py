"""One attempt at one deployment, and the attempts of one request.

An `Attempt` lasts from the choice of its deployment to the end of the answer's body and ends
exactly once. Until then the instance counts it as in flight; at its end the deployment's health,
circuit and parks are updated. `AttemptHistory` keeps what was tried for a request, in order: the
scheduler reads it to choose the next deployment, and the request's record is made of it.

A request alone must not take a key or a model away from all others. So a failure that may be the
request's own fault is *pending* until the request's end shows whose fault it was:

- another deployment answered the request: each one that failed gets its mark, one for a request;
- none answered, though there were several: none gets a mark;
- there was only one: it gets its mark, but the circuit that this opens is doubtful.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from nexus_gateway.discovery import prefix
from nexus_gateway.provider import RATE_LIMIT_PARK_S, Outcome, Scope, Verdict
from nexus_gateway.routing.affinity import HIT, MOVED, NONE
from nexus_gateway.routing.breaker import Permit
from nexus_gateway.routing.instance import Deployment, Instance
from nexus_gateway.wire.usage import parse_usage

logger = logging.getLogger("nexus_gateway")

SUCCESS = Verdict(Outcome.SUCCESS, "ok")
CANCELLED = Verdict(Outcome.CANCELLED, "ended without a result")
LOST_RACE = Verdict(Outcome.CANCELLED, "another attempt was faster")
BROKE = "broke in the middle of its answer: "
NO_USAGE: Mapping[str, Any] = {}
_NEUTRAL = (Outcome.SUCCESS, Outcome.CANCELLED)
# As a refused key, they cost the upstream nothing and do not count towards MAX_ATTEMPTS.
_FREE_STATUSES = frozenset({401, 402, 403, 429})
# By status, a refusal of a key may concern this request alone.
_DOUBTFUL_KEY_STATUSES = (402, 403)
_TROUBLES = (Outcome.FAILURE, Outcome.RATE_LIMITED, Outcome.BAD_KEY)


class AttemptFailed(Exception):
    """An attempt ended without an answer; the verdict holds why, and what it means."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


def is_unknown_model(verdict: Verdict) -> bool:
    """Whether the upstream does not serve the model, or not at this address."""
    return verdict.scope in (Scope.DEPLOYMENT, Scope.MODEL) and verdict.status != 403


def advice_on_model(instance: Instance) -> str:
    name = prefix(instance.provider_name)
    return f"check {name}_MODEL and {name}_BASE_URL (it usually ends in /v1)"


class Span(Protocol):
    """Traces one attempt. No method raises.

    Attributes:
        headers: sent to the upstream, so that it can continue the trace.
    """

    headers: Mapping[str, str]

    def first_content(self) -> None: ...

    def end(self, verdict: Verdict, usage: Mapping[str, Any]) -> None: ...


class Attempt:
    """One try at one deployment, begun by the scheduler.

    Used as a context manager, an attempt that has not ended yet ends with SUCCESS if the block
    raises nothing, with the verdict of an AttemptFailed, else with CANCELLED: a caller that leaves
    and a fault of the gateway are no failures of the instance.

    Attributes:
        instance, model: the deployment's.
        has_alternative: whether another deployment could have been chosen as well.
        started_s: when its request was sent; until then, when the deployment was chosen.
        first_content_s: when the first content of a stream, or a full response, had come.
        verdict: how it ended; None while it runs.
        usage: of the answer, in OpenAI's shape; empty if unknown.
        span: traces it if the request is traced.
        circuit: "opened" or "closed" if it did that to the deployment's circuit. A failed probe
            did neither: the circuit was open, and is again.
        failures_in_a_row: how many, if this attempt opened the circuit; else 0.
    """

    def __init__(
        self,
        deployment: Deployment,
        permit: Permit,
        history: AttemptHistory,
        clock: Callable[[], float],
        *,
        has_alternative: bool = False,
    ) -> None:
        self.deployment = deployment
        self.instance: Instance = deployment.instance
        self.model = deployment.model
        self.has_alternative = has_alternative
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
        self._rests_until_s = 0.0
        self._history = history
        self._clock = clock
        self.instance.in_flight += 1
        self.instance.total_requests += 1
        deployment.total_requests += 1
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
        if history.pending:
            history.settle(latency_ms)
        health = self.deployment.health
        health.observe_latency(latency_ms, limit_ms)
        if stream:
            self._is_stream = True
            health.observe_first_token(latency_ms)
            self._permit = self.deployment.breaker.first_token(self._permit)
            if self.span is not None:
                self.span.first_content()

    def lose(self, limit_ms: float) -> None:
        """End it because another attempt was faster; its latency is at least the time so far."""
        self.deployment.health.observe_latency((self._clock() - self.started_s) * 1000, limit_ms)
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
        self.instance.in_flight -= 1
        if verdict.outcome is Outcome.SUCCESS:
            self._succeed()
        else:
            self._fail(verdict)
        if self.span is not None:
            self.span.end(verdict, self.usage)

    def _succeed(self) -> None:
        deployment = self.deployment
        breaker = deployment.breaker
        closes = breaker.awaits_success
        counts = breaker.success(self._permit)
        if counts and closes:
            self.circuit = "closed"
            logger.info("circuit closed", extra={"fields": self._log_fields()})
        deployment.health.success()
        self.instance.accept_key(self.started_s)
        # A success that began before the circuit opened or the park began does not show that the
        # reason has passed.
        if deployment.last_reason is not None and counts and not deployment.parked_for_s():
            deployment.last_reason = None
            deployment.accept_model()
        if self._is_stream and self.first_content_s is not None:
            tokens = parse_usage(self.usage).output_without_reasoning or 0
            if tokens > 1:
                deployment.health.observe_speed(tokens - 1, self.ended_s - self.first_content_s)

    def _fail(self, verdict: Verdict) -> None:
        deployment, outcome = self.deployment, verdict.outcome
        if outcome in _TROUBLES:
            deployment.last_reason = verdict.reason
        if outcome is Outcome.FAILURE:
            if self.first_content_s is not None or verdict.scope is Scope.ADDRESS:
                self.mark()
            elif self._is_probe:
                self.mark(is_doubtful=True)
            else:
                deployment.breaker.doubt()
                self._history.pending.append(self)
            if verdict.park_s is not None:
                self._rests_until_s = deployment.cool_down(verdict.park_s)
        else:
            deployment.breaker.release(self._permit)
        if outcome is Outcome.RATE_LIMITED:
            deployment.park(RATE_LIMIT_PARK_S if verdict.park_s is None else verdict.park_s)
        elif outcome is Outcome.BAD_KEY:
            self._refuse_key(verdict)
        elif outcome is Outcome.REFUSED and verdict.scope in (Scope.DEPLOYMENT, Scope.MODEL):
            self._history.pending.append(self)
        if outcome is not Outcome.CANCELLED and self.first_content_s is None:
            logger.debug(
                "attempt failed", extra={"fields": {**self._log_fields(), "why": verdict.reason}}
            )

    def _refuse_key(self, verdict: Verdict) -> None:
        if verdict.status in _DOUBTFUL_KEY_STATUSES:
            self._history.pending.append(self)
            if not self.instance.suspect_key(self._history.id):
                return
        else:
            self.instance.park_bad_key()
        warn_once(self.instance, f"{self.name} is parked: {verdict.reason}")

    def withdraw_parks(self) -> None:
        """Take back for how long its failure excludes its deployment and its key."""
        self.instance.withdraw_suspicion(self._history.id)
        self.deployment.withdraw_rest(self._rests_until_s)

    def mark(self, *, is_doubtful: bool = False) -> None:
        """Mark its deployment for a failure that was not the request's own fault."""
        verdict, deployment = self.verdict, self.deployment
        assert verdict is not None
        if verdict.outcome is Outcome.REFUSED:
            deployment.park_unknown_model()
            deployment.last_reason = verdict.reason
        if verdict.outcome is not Outcome.FAILURE:
            return
        failures = deployment.breaker.failure(self._permit, is_doubtful=is_doubtful)
        deployment.health.failure()
        if not failures or self._is_probe:
            return
        self.circuit, self.failures_in_a_row = "opened", failures
        fields = {
            **self._log_fields(),
            "failures": failures,
            "probe_in_s": round(deployment.available_in_s() or 0),
            "why": verdict.reason,
        }
        logger.warning("circuit opened", extra={"fields": fields})

    def _log_fields(self) -> dict[str, object]:
        return {**self._history.log_fields(), "on": self.deployment.label}

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
    def name(self) -> str:
        """The instance's name."""
        return self.instance.name

    @property
    def is_free(self) -> bool:
        """Whether it was refused without any cost for the upstream."""
        verdict = self.verdict
        if verdict is None or verdict.outcome is Outcome.FAILURE:
            return False
        return verdict.outcome is Outcome.BAD_KEY or verdict.status in _FREE_STATUSES

    @property
    def outcome(self) -> Outcome:
        return Outcome.CANCELLED if self.verdict is None else self.verdict.outcome

    @property
    def scope(self) -> Scope:
        return Scope.REQUEST if self.verdict is None else self.verdict.scope

    @property
    def gave_up(self) -> bool:
        """Whether it ended because no content had come in time."""
        return self.scope is Scope.TIME

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
        conversation: see `affinity.RoutingView`.
        home: the deployment where the conversation belongs; None without one.
        explanations: why each choice was made, if that is wanted; else None.
        attempts: those that have ended, in order. One that lost a race is left out.
        running: those that have not.
        begun: how many were begun, those that lost a race included.
        latest: the one that answers, or the last one that was begun.
        answer: the first one that had its first content.
        hedged: whether two ran at a time.
        pending: attempts whose failure has not been counted yet, see above.
    """

    id: str = ""
    trace_id: str = ""
    conversation: int | None = None
    home: Deployment | None = None
    explanations: list[str] | None = None
    attempts: list[Attempt] = field(default_factory=list)
    running: list[Attempt] = field(default_factory=list)
    begun: int = 0
    latest: Attempt | None = None
    answer: Attempt | None = None
    hedged: bool = False
    pending: list[Attempt] = field(default_factory=list)
    _earlier: int = 0

    @property
    def affinity(self) -> str:
        """Whether the latest attempt is where the conversation belongs, by `affinity`'s words."""
        if self.home is None or self.latest is None:
            return NONE
        return HIT if self.latest.deployment is self.home else MOVED

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

    def tried(self, deployment: Deployment) -> bool:
        """Whether a deployment was tried in this round, or is being tried."""
        return any(a.deployment is deployment for a in (*self.running, *self._this_round()))

    def rules_out(self, deployment: Deployment) -> bool:
        """Whether a refusal of another deployment holds for this one as well."""
        return any(
            a.outcome is Outcome.REFUSED
            and a.scope in (Scope.LIMITS, Scope.MODEL)
            and a.instance.provider_name == deployment.provider_name
            and a.model == deployment.model
            for a in self.attempts
        )

    def edge_repeats(self, attempt: Attempt) -> bool:
        """Whether an earlier attempt was refused with the same status by something at the edge."""
        return any(
            a is not attempt
            and a.status == attempt.status
            and a.scope is attempt.scope is Scope.EDGE
            for a in self.attempts
        )

    def last_outcome(self, deployment: Deployment) -> Outcome | None:
        """Return how the last attempt at a deployment ended, None if there was none."""
        outcomes = (a.outcome for a in reversed(self._this_round()) if a.deployment is deployment)
        return next(outcomes, None)

    def counted(self) -> int:
        """Return how many attempts count towards MAX_ATTEMPTS."""
        this_round = self.attempts[self._earlier :]
        return self._earlier + sum(not attempt.is_free for attempt in this_round)

    def settle(self, latency_ms: float | None = None) -> None:
        """Count the pending failures, now that it is known whether another deployment answered.

        Args:
            latency_ms: how long the answer took; None if there is none. A deployment that was given
                less time is not slower.
        """
        pending, self.pending = self.pending, []
        failed = {attempt.deployment: attempt for attempt in pending}  # one mark for each
        # One that was given all the time has left none for the others.
        others = len(failed) > 1 or any(a.has_alternative and not a.gave_up for a in pending)
        if latency_ms is None and others:
            for attempt in pending:
                attempt.withdraw_parks()
            return
        for attempt in failed.values():
            if latency_ms is None:
                if attempt.outcome is Outcome.FAILURE:
                    attempt.mark(is_doubtful=True)
            elif not attempt.gave_up or attempt.duration_ms > latency_ms:
                attempt.mark()

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
