"""Chooses the deployment, an instance and its model, for the next attempt of a request.

Pure policy: no socket, no task; clock and randomness are arguments.

- A `RoutingTarget` is what a request may go to, as far as its `model` decides.
- `Scheduler.attempt` takes the candidates among them, prefers those that were not tried for this
  request, and lets the policy choose. If there is none, those are the last resort that only
  doubtful evidence keeps away; then, if only open circuits are in the way, the one closest to its
  probe, which is probed early.
- `RetryBudget` bounds further attempts to a share of the recent requests: retries help if one
  instance is in trouble and multiply the load if all are (Finagle's and Envoy's retry budgets).
- `HedgeBudget` bounds attempts beside a running one.
- `Scheduler.backoff_s` is the pause before an attempt at a provider that has just failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from nexus_gateway.errors import NoCandidate, NoCapableModel
from nexus_gateway.provider import CHAT, Outcome, Scope
from nexus_gateway.routing import explain
from nexus_gateway.routing.affinity import RoutingView
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Deployment
from nexus_gateway.routing.policies import Policy, choose, draw

logger = logging.getLogger("nexus_gateway")

STEPS_MS = (100, 200, 400, 800, 1600, 2000)
# If the same deployment is asked again, as no other is left: a hiccup needs time to pass.
STEPS_SKIPPED = 2
RETRY_SHARE = 0.2
RETRY_FLOOR = 10
WINDOW_S = 10
HEDGE_SHARE = 0.05
MAX_HEDGES_SAVED = 10.0
EARLY_PROBE_EVERY_S = 2.0
# Among so few a full scan costs no more than drawing one.
FULL_SCAN_LIMIT = 8
# Parks that do not pass by waiting: a refused key, and a model that the provider does not serve.
_LASTING = ("bad_key", "unknown_model")


@dataclass(frozen=True, slots=True)
class RoutingTarget:
    """What a request may go to.

    Args:
        deployments: those that its `model` may mean.
        model: the upstream's model if the caller named one; None: each instance's own.
        images: whether the request holds images.
        images_may_go: whether models that take none may be asked without them if there is no other.
        kind: what the model is for, see `provider.Model`.
        is_fallback: no instance is known to have that model, so any may be asked.
        tiers: the same for each tier of the instances, the lowest first; empty if there is only
            one.
    """

    deployments: tuple[Deployment, ...]
    model: str | None = None
    images: bool = False
    kind: str = CHAT
    is_fallback: bool = False
    images_may_go: bool = False
    tiers: tuple[RoutingTarget, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        numbers = sorted({d.instance.tier for d in self.deployments})
        if len(numbers) > 1:
            tiers = (
                tuple(d for d in self.deployments if d.instance.tier == number)
                for number in numbers
            )
            # A tier alone does not know whether another one takes images.
            own = tuple(replace(self, deployments=d, images_may_go=False) for d in tiers)
            object.__setattr__(self, "tiers", own)

    @property
    def chosen_by_us(self) -> bool:
        """Whether the gateway, not the caller, paired the model with these instances."""
        return self.model is None or self.is_fallback

    def current(self) -> Sequence[Deployment]:
        """Return the deployments; of a default model that is gone, its successor."""
        for deployment in self.deployments:  # a loop, as this runs for each request
            if deployment.unknown_until_s and self.model is None:
                return [d.current() for d in self.deployments]
        return self.deployments

    def is_capable(self, deployment: Deployment) -> bool:
        """Whether a deployment is enabled and takes what the request holds."""
        takes_it = not self.images or deployment.takes_images or self._goes_without_images()
        return deployment.instance.enabled and takes_it

    def _goes_without_images(self) -> bool:
        taking = (d for d in self.current() if d.takes_images and d.instance.enabled)
        return self.images_may_go and not any(taking)

    def capable(self) -> list[Deployment]:
        return [d for d in self.current() if self.is_capable(d)]

    def admits(self, deployment: Deployment) -> bool:
        """Whether a deployment is a candidate now."""
        return (
            (self.is_capable(deployment) if self.images else deployment.instance.enabled)
            and deployment.parked_for_s() == 0
            and deployment.breaker.admits()
        )


class RetryBudget:
    """Counts the requests and the retries of the last WINDOW_S seconds.

    Args:
        clock: monotonic seconds.
        share: retries allowed for each request.
        floor: retries allowed in any case.

    Attributes:
        denied: retries that were not allowed since the start.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        share: float = RETRY_SHARE,
        floor: int = RETRY_FLOOR,
    ) -> None:
        self._clock = clock
        self._share = share
        self._floor = floor
        self._second = int(clock())
        self._requests = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S
        self.denied = 0

    def request(self) -> None:
        self._requests[self._slot()] += 1

    def retry(self) -> None:
        self._retries[self._slot()] += 1

    def allows(self) -> bool:
        self._slot()
        return sum(self._retries) < self._floor + self._share * sum(self._requests)

    def _slot(self) -> int:
        """Return the slot of the current second; slots that have expired are emptied."""
        second = int(self._clock())
        if second > self._second:
            for expired in range(self._second + 1, min(second, self._second + WINDOW_S) + 1):
                self._requests[expired % WINDOW_S] = self._retries[expired % WINDOW_S] = 0
            self._second = second
        return self._second % WINDOW_S


class HedgeBudget:
    """Saves up for hedges: each request adds HEDGE_SHARE of one."""

    def __init__(self) -> None:
        self._saved = 0.0

    def request(self) -> None:
        self._saved = min(self._saved + HEDGE_SHARE, MAX_HEDGES_SAVED)

    def take(self) -> bool:
        """Take one if one is saved."""
        # A sum of twentieths is never exactly whole.
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        return True


class Scheduler:
    """Chooses an instance for each attempt of a request, and begins it.

    Args:
        clock: monotonic seconds.
        rng: randomness.
        policies: by name, the default first.
        steps_ms: of the backoff; the last one repeats.

    Attributes:
        retries: the budget of further attempts.
        hedges: the budget of attempts beside a running one.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        rng: Random,
        policies: Mapping[str, Policy],
        steps_ms: Sequence[int] = STEPS_MS,
    ) -> None:
        self.clock = clock
        self.policies = policies
        self.retries = RetryBudget(clock)
        self.hedges = HedgeBudget()
        self._rng = rng
        self._steps_ms = steps_ms
        self._early_probe_s = float("-inf")

    def attempt(self, target: RoutingTarget, policy: str, history: AttemptHistory) -> Attempt:
        """Choose an instance for the next attempt.

        Raises:
            NoCandidate: no instance can take it now.
        """
        if history.explanations is None and not logger.isEnabledFor(logging.DEBUG):
            return self._attempt(target, policy, history)
        decision = self._decision(target, policy, history)
        number = history.begun + 1
        try:
            attempt = self._attempt(target, policy, history)
        except NoCandidate:
            _explain(history, number, "no attempt", decision.none())
            raise
        _explain(history, number, "attempt", decision.chosen(attempt.deployment.label))
        return attempt

    def hedge(self, target: RoutingTarget, policy: str, history: AttemptHistory) -> Attempt | None:
        """Choose a second instance while the first token of the first one is overdue.

        Returns:
            An attempt at a healthy instance that was not tried yet; None if there is none, or if
            too many requests were hedged recently.
        """
        others = [
            d
            for d in target.capable()
            if d.parked_for_s() == 0
            and d.breaker.is_healthy
            and not history.tried(d)
            and not history.rules_out(d)
            and has_quota_left(d)
            and (history.latest is None or d.instance.tier <= history.latest.instance.tier)
        ]
        if not others or not self.hedges.take():
            return None
        decision, number = None, history.begun + 1
        if history.explanations is not None or logger.isEnabledFor(logging.DEBUG):
            decision = explain.Decision.capture(
                policy, target.current(), target.capable(), others, history
            )
        chosen = choose(self.policies[policy], _view(target, history), others, self._rng)
        if decision is not None:
            _explain(history, number, "hedge", decision.chosen(chosen.label))
        history.hedged = True
        return Attempt(chosen, chosen.breaker.acquire(), history, self.clock)

    def explain_unavailable(
        self, target: RoutingTarget, policy: str, history: AttemptHistory
    ) -> str:
        """Return in one line why no instance could be chosen, apart from those that were tried."""
        return explain.unavailable(policy, target.current(), target.capable(), history)

    def backoff_s(self, attempt: Attempt, history: AttemptHistory) -> float:
        """Return how long to wait before an attempt: 0 unless its provider has failed."""
        failures = history.failures_of(attempt.instance.provider_name)
        if not failures:
            return 0.0
        is_again = history.last_outcome(attempt.deployment) is not None
        step = failures - 1 + (STEPS_SKIPPED if is_again else 0)
        return delay_s(step, self._rng, self._steps_ms)

    def no_candidate(self, target: RoutingTarget, history: AttemptHistory) -> NoCandidate:
        """Return the error for a request that no instance can take now.

        It says what was tried, and when the first instance returns.
        """
        capable = target.capable()
        tried = f" Tried: {history.summary()}." if history.attempts else ""
        if not capable:
            return _none_capable(target)
        refused = [
            d for d in capable if history.last_outcome(d) is Outcome.REFUSED or history.rules_out(d)
        ]
        returning = [d for d in capable if d not in refused and d.park_reason() not in _LASTING]
        waits_s = [self._tried_in_s(d) for d in returning]
        if not waits_s:
            return NoCandidate(f"No instance could serve this; GET /health shows why.{tried}")
        soonest_s = min(waits_s)
        if all(_is_rate_limited(d, history) for d in capable):
            return NoCandidate(
                f"All instances that could serve this are rate limited.{tried}",
                rate_limited=True,
                retry_after_s=soonest_s,
            )
        return NoCandidate(
            f"No instance could serve this; GET /health shows why.{tried}", retry_after_s=soonest_s
        )

    def _tried_in_s(self, deployment: Deployment) -> float:
        """Return how long until a request may go to a deployment, if only as an early probe."""
        if deployment.breaker.state() is not State.OPEN:
            return deployment.available_in_s() or 0.0
        early_s = self._early_probe_s + EARLY_PROBE_EVERY_S - self.clock()
        return max(deployment.parked_for_s(), min(deployment.breaker.ready_in_s(), early_s))

    def _attempt(self, target: RoutingTarget, policy: str, history: AttemptHistory) -> Attempt:
        is_retry = bool(history.attempts)
        deployments, view = target.current(), _view(target, history)
        lowest = target.tiers[0] if target.tiers else target
        first = None if is_retry else self._first(lowest, policy, view, history)
        if first is not None:
            self.retries.request()
            has_alternative = any(d is not first and target.admits(d) for d in deployments)
            return self._begin(first, target, history, has_alternative=has_alternative)
        best = _best(target, history)
        may_retry = not is_retry or history.attempts[-1].is_free or self.retries.allows()
        if not may_retry:
            best = self._within_budget(best, target, history)
        is_again = is_retry and bool(best) and history.tried(best[0])
        if is_again and may_retry and self._doubtful(target, history):
            best = []  # rather what has not been tried, though it is in doubt
        if best:
            chosen = choose(self.policies[policy], view, best, self._rng)
        else:
            last = self._last_resort(target, history) if may_retry else None
            if last is None:
                raise self.no_candidate(target, history)
            chosen = last
        if not is_retry:
            self.retries.request()
        elif not history.attempts[-1].is_free:
            self.retries.retry()
        has_alternative = len(best) > 1 and not is_again
        return self._begin(chosen, target, history, has_alternative=has_alternative)

    def _first(
        self, target: RoutingTarget, policy: str, view: RoutingView, history: AttemptHistory
    ) -> Deployment | None:
        """Return what a request's first attempt goes to if that needs no look at all candidates.

        A conversation goes to where it belongs if that can serve it now.
        """
        chooser, deployments = self.policies[policy], target.current()
        is_large = len(deployments) > FULL_SCAN_LIMIT
        if view.conversation is not None and chooser.keeps_conversations:
            if len(deployments) == 1:
                history.home = deployments[0]
                return None
            home = None
            if is_large:
                home = draw(chooser, view, deployments, target.is_capable, self._rng)
            if home is None and (capable := target.capable()):
                home = choose(chooser, view, capable, self._rng)
            history.home = home
            if home is not None and target.admits(home) and has_quota_left(home):
                return home
        return draw(chooser, view, deployments, target.admits, self._rng) if is_large else None

    def _begin(
        self,
        chosen: Deployment,
        target: RoutingTarget,
        history: AttemptHistory,
        *,
        has_alternative: bool,
    ) -> Attempt:
        if not has_alternative and len(target.deployments) > 1:
            has_alternative = bool(self._doubtful(target, history, but=chosen))
        breaker = chosen.breaker
        permit = breaker.acquire() if breaker.admits() else breaker.acquire_early()
        return Attempt(chosen, permit, history, self.clock, has_alternative=has_alternative)

    def _decision(
        self, target: RoutingTarget, policy: str, history: AttemptHistory
    ) -> explain.Decision:
        """Capture what `_attempt` chooses from, changing nothing."""
        deployments = target.current()
        best = _best(target, history)
        if history.attempts and not self.retries.allows():
            best = [d for d in best if d.breaker.is_healthy]
        return explain.Decision.capture(policy, deployments, target.capable(), best, history)

    def _within_budget(
        self, candidates: list[Deployment], target: RoutingTarget, history: AttemptHistory
    ) -> list[Deployment]:
        """Return what a retry beyond the budget may go to: candidates, else the last resort.

        A retry on a healthy instance is what a gateway is for, and multiplies no load.
        """
        healthy = [d for d in candidates if d.breaker.is_healthy]
        healthy = healthy or [d for d in self._doubtful(target, history) if d.breaker.is_healthy]
        if not healthy:
            self.retries.denied += 1
        return healthy

    def _doubtful(
        self, target: RoutingTarget, history: AttemptHistory, but: Deployment | None = None
    ) -> list[Deployment]:
        """Return what only doubtful evidence keeps away."""
        return [d for d in _untried(target, history) if d is not but and d.is_last_resort]

    def _last_resort(self, target: RoutingTarget, history: AttemptHistory) -> Deployment | None:
        """Return what to try if there is no candidate.

        First what only doubtful evidence keeps away: one caller's requests must not take the last
        instance away from all others. Then, at most every EARLY_PROBE_EVERY_S, the open circuit
        that is closest to its probe, if open circuits alone are in the way: a pool of one key must
        not answer 503 for a minute after one short outage.
        """
        if doubtful := self._doubtful(target, history):
            return min(doubtful, key=lambda d: (d.is_unknown, d.parked_for_s(), d.in_flight))
        if self.clock() - self._early_probe_s < EARLY_PROBE_EVERY_S:
            return None
        untried = _untried(target, history)
        is_open = [d for d in untried if d.parked_for_s() == 0 and d.breaker.state() is State.OPEN]
        if is_open:
            self._early_probe_s = self.clock()
        return min(is_open, key=lambda d: d.breaker.ready_in_s(), default=None)


def _best(target: RoutingTarget, history: AttemptHistory) -> list[Deployment]:
    """Return the best candidates: those of the lowest tier that has one which was not tried."""
    for tier in target.tiers:
        best = _by_history(list(filter(tier.admits, tier.current())), history)
        if best and has_quota_left(best[0]) and not history.tried(best[0]):
            return best
    best = _by_history(list(filter(target.admits, target.current())), history)
    if best and target.tiers:
        lowest = min(d.instance.tier for d in best)
        return [d for d in best if d.instance.tier == lowest]
    return best


def _view(target: RoutingTarget, history: AttemptHistory) -> RoutingView:
    return RoutingView(history.conversation, target.model, target.images, history.begun + 1)


def _untried(target: RoutingTarget, history: AttemptHistory) -> list[Deployment]:
    return [d for d in target.capable() if not (history.tried(d) or history.rules_out(d))]


def delay_s(retry: int, rng: Random, steps_ms: Sequence[int] = STEPS_MS) -> float:
    """Return the delay before a retry, in seconds.

    Args:
        retry: 0 for the first.
        rng: the delay is drawn from [half, whole] of its step, so that requests that failed
            together do not return together.
        steps_ms: the last one repeats.
    """
    step_s = steps_ms[min(retry, len(steps_ms) - 1)] / 1000
    return rng.uniform(step_s / 2, step_s)


def has_quota_left(deployment: Deployment) -> bool:
    """Whether something is left of a deployment's rate limits, as far as is known."""
    left = deployment.quota_left()
    return left is None or left > 0


def _by_history(candidates: list[Deployment], history: AttemptHistory) -> list[Deployment]:
    """Return the best candidates that exist.

    First those that were not tried, at providers that have not failed for this request; then others
    that were not tried; then those whose failure may have passed. A deployment whose rate limit is
    used up comes last among those that were not tried; one with a larger context window than those
    that refused the request comes first.
    """
    if not history.attempts:
        return _with_quota_left(candidates)
    open_to_it = [d for d in candidates if not history.rules_out(d)]
    untried = _with_more_context([d for d in open_to_it if not history.tried(d)], history)
    elsewhere = [
        d for d in untried if not history.failures_of(d.provider_name) and has_quota_left(d)
    ]
    return (
        elsewhere or _with_quota_left(untried) or [d for d in open_to_it if _may_pass(d, history)]
    )


def _may_pass(deployment: Deployment, history: AttemptHistory) -> bool:
    """Whether a second try may end better: a limit, a bad key or a refusal stays for now."""
    tries = [a for a in history.attempts if a.deployment is deployment]
    if tries[-1].outcome is Outcome.REFUSED and tries[-1].scope is Scope.ANSWER:
        return len(tries) == 1
    return history.last_outcome(deployment) is Outcome.FAILURE


def _with_more_context(candidates: list[Deployment], history: AttemptHistory) -> list[Deployment]:
    """Return those with a larger context window than what refused the request, else all."""
    refused = [a.deployment.context for a in history.attempts if a.scope is Scope.LIMITS]
    if not refused:
        return candidates
    return [d for d in candidates if d.context > max(refused)] or candidates


def _with_quota_left(candidates: list[Deployment]) -> list[Deployment]:
    """Return the candidates whose rate limit is not used up; all of them if that is none."""
    if len(candidates) < 2:
        return candidates
    return [d for d in candidates if has_quota_left(d)] or candidates


def _is_rate_limited(deployment: Deployment, history: AttemptHistory) -> bool:
    last = history.last_outcome(deployment)
    return deployment.park_reason() == "rate_limited" or last is Outcome.RATE_LIMITED


def _none_capable(target: RoutingTarget) -> NoCandidate:
    if any(d.instance.enabled for d in target.deployments):
        return NoCapableModel()
    return NoCandidate(
        "No provider is enabled: configure a key or enable an instance.", code="no_providers"
    )


def _explain(history: AttemptHistory, number: int, what: str, reason: str) -> None:
    if history.explanations is not None:
        history.explanations.append(reason)
    fields = {**history.log_fields(), "attempt": number}
    logger.debug("%s: %s", what, reason, extra={"fields": fields})
