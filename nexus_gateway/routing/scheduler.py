"""Who gets the request: leases on instances.

A lease spans from the choice to the end of the answer's body and ends with exactly one outcome.
Pure policy: it knows no socket and no task, and takes its clock and its chance as arguments.

How many more attempts may be made than there are requests.

Retries help where somebody is in trouble, and multiply the load where everybody is. So they are a
share of the recent requests, and no more (the idea of Finagle's and Envoy's retry budgets).

How long to wait before going back to a provider that has just failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from nexus_gateway.errors import NoCandidate
from nexus_gateway.provider import CHAT, Outcome
from nexus_gateway.routing import explain
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.lease import AttemptHistory, Lease
from nexus_gateway.routing.policies import Policy, choose, draw

logger = logging.getLogger("nexus_gateway")

STEPS_MS = (100, 200, 400, 800, 1600, 2000)


def delay_s(retry: int, rng: Random) -> float:
    """Return the delay before a retry, in seconds.

    Args:
        retry: 0 for the first.
        rng: chance: the delay is drawn from [half, whole] of its step, so that callers who
            failed together do not return together.
    """
    whole_s = STEPS_MS[min(retry, len(STEPS_MS) - 1)] / 1000
    return rng.uniform(whole_s / 2, whole_s)


RETRY_SHARE = 0.2
RETRY_FLOOR = 10
WINDOW_S = 10
HEDGE_SHARE = 0.05
MOST_HEDGES_SAVED = 10.0


class RetryBudget:
    """Counts requests and retries of the last WINDOW_S seconds.

    Args:
        clock: monotonic seconds.
        share: how many retries there may be for each request.
        floor: how many there may be in any case.

    Attributes:
        denied: how many were not allowed, since the start.
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
        """Count a request's first attempt."""
        self._requests[self._slot()] += 1

    def retry(self) -> None:
        """Count a further attempt."""
        self._retries[self._slot()] += 1

    def allows(self) -> bool:
        """Tell whether one more retry may be made."""
        self._slot()
        return sum(self._retries) < self._floor + self._share * sum(self._requests)

    def _slot(self) -> int:
        """Return the slot of the present second; those that it has passed are emptied."""
        second = int(self._clock())
        for passed in range(self._second + 1, min(second, self._second + WINDOW_S) + 1):
            self._requests[passed % WINDOW_S] = self._retries[passed % WINDOW_S] = 0
        self._second = max(self._second, second)
        return self._second % WINDOW_S


class HedgeBudget:
    """Saves up for hedges: each request brings HEDGE_SHARE of one."""

    def __init__(self) -> None:
        self._saved = 0.0

    def request(self) -> None:
        """Save for a request that may be hedged."""
        self._saved = min(self._saved + HEDGE_SHARE, MOST_HEDGES_SAVED)

    def take(self) -> bool:
        """Take one, if there is one."""
        # A sum of twentieths is never quite whole.
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        return True


EARLY_PROBE_EVERY_S = 2.0
# Among so many it is as quick to look at everybody.
FULL_SCAN_LIMIT = 8
# The official clients give up on a wait longer than this instead of waiting.
MAX_ADVISED_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class RoutingTarget:
    """Who may serve a request, as far as its model tells.

    Args:
        instances: the ones it may go to.
        model: the upstream's model where the caller named one; None: each instance's own.
        images: whether it holds images.
        kind: what the model is for, see `provider.Model`.
        guessed: whether nobody is known to have that model.
    """

    instances: tuple[Instance, ...]
    model: str | None = None
    images: bool = False
    kind: str = CHAT
    is_fallback: bool = False

    @property
    def chosen_by_us(self) -> bool:
        """Whether it was not the caller who paired a model with these instances."""
        return self.model is None or self.is_fallback

    def model_of(self, instance: Instance) -> str:
        """Return the model that an instance would be asked for."""
        return self.model or instance.model_for(self.kind)

    def capable(self) -> list[Instance]:
        """Return the enabled instances that can take what the request holds."""
        return [i for i in self.instances if self._is_capable(i)]

    def _is_capable(self, instance: Instance) -> bool:
        if self.images and not instance.takes_images_with(self.model_of(instance)):
            return False
        return instance.enabled

    def admits(self, instance: Instance) -> bool:
        """Tell whether one of the instances is a candidate now."""
        return (
            self._is_capable(instance)
            and instance.parked_for_s() == 0
            and instance.breaker.admits()
        )


class Scheduler:
    """Give leases.

    Args:
        clock: monotonic seconds.
        rng: chance.
        policies: the policies by name, the default first.

    Attributes:
        retries: how many further attempts may be made.
        hedges: how many attempts beside a running one.
    """

    def __init__(
        self, clock: Callable[[], float], rng: Random, policies: Mapping[str, Policy]
    ) -> None:
        self.clock = clock
        self.policies = policies
        self.retries = RetryBudget(clock)
        self.hedges = HedgeBudget()
        self._rng = rng
        self._early_probe_s = float("-inf")

    def lease(self, target: RoutingTarget, policy: str, trail: AttemptHistory) -> Lease:
        """Choose an instance for the next attempt.

        Args:
            target: who may serve it.
            policy: the name of one of `policies`.
            trail: what was tried for this request before.

        Raises:
            NoCandidate: nobody is left.
        """
        if trail.explanations is None and not logger.isEnabledFor(logging.DEBUG):
            return self._lease(target, policy, trail)
        scene = self._decision(target, policy, trail)
        try:
            lease = self._lease(target, policy, trail)
        except NoCandidate:
            _explain(trail, "no lease", scene.explain_unavailable())
            raise
        _explain(trail, "lease", scene.chosen(lease.instance.name))
        return lease

    def explain_unavailable(self, target: RoutingTarget, policy: str, trail: AttemptHistory) -> str:
        """Tell in one line why nobody could be chosen; whom the trail tells of is left out."""
        return explain.explain_unavailable(policy, target.instances, target.capable(), trail)

    def _decision(
        self, target: RoutingTarget, policy: str, trail: AttemptHistory
    ) -> explain.Decision:
        """Look at what `_lease` chooses from, changing nothing."""
        able = target.capable()
        best = _by_history([i for i in able if target.admits(i)], trail)
        if trail.attempts and not self.retries.allows():
            best = [i for i in best if i.breaker.is_healthy]
        return explain.capture_decision(policy, target.instances, able, best, trail)

    def _lease(self, target: RoutingTarget, policy: str, trail: AttemptHistory) -> Lease:
        again = bool(trail.attempts)
        if len(target.instances) > FULL_SCAN_LIMIT and not again:
            drawn = draw(self.policies[policy], target.instances, target.admits, self._rng)
            if drawn is not None:
                self.retries.request()
                return Lease(drawn, target.model_of(drawn), drawn.breaker.acquire())
        able = target.capable()
        candidates = [i for i in able if i.parked_for_s() == 0 and i.breaker.admits()]
        best = _by_history(candidates, trail)
        affordable = self.retries.allows() if again else True
        if not affordable:
            best = self._healthy(best)
        if best:
            chosen = choose(self.policies[policy], best, self._rng)
            lease = Lease(chosen, target.model_of(chosen), chosen.breaker.acquire())
        else:
            early = self._nearest_to_its_probe(able, trail) if affordable else None
            if early is None:
                raise self.no_candidate(target, trail)
            self._early_probe_s = self.clock()
            lease = Lease(early, target.model_of(early), early.breaker.acquire_early())
        self.retries.retry() if again else self.retries.request()
        return lease

    def _healthy(self, candidates: list[Instance]) -> list[Instance]:
        """Return whom a retry may go to when there have been too many.

        One that goes to somebody who is well is what a gateway is for, and multiplies nothing.
        """
        well = [i for i in candidates if i.breaker.is_healthy]
        if not well:
            self.retries.denied += 1
        return well

    def hedge(self, target: RoutingTarget, policy: str, trail: AttemptHistory) -> Lease | None:
        """Choose whom to ask beside somebody who lets himself be waited for.

        Args:
            target: who may serve it.
            policy: the name of one of `policies`.
            trail: what was tried, and is being tried.

        Returns:
            A lease on somebody who is well and was not asked yet; None where there is nobody, or
            where too many requests were hedged of late.
        """
        others = [
            i
            for i in target.capable()
            if i.parked_for_s() == 0
            and i.breaker.is_healthy
            and not trail.tried(i)
            and has_quota_left(i)
        ]
        if not others or not self.hedges.take():
            return None
        if trail.explanations is not None or logger.isEnabledFor(logging.DEBUG):
            scene = explain.capture_decision(
                policy, target.instances, target.capable(), others, trail
            )
        else:
            scene = None
        chosen = choose(self.policies[policy], others, self._rng)
        if scene is not None:
            _explain(trail, "hedge", scene.chosen(chosen.name))
        return Lease(chosen, target.model_of(chosen), chosen.breaker.acquire())

    def _nearest_to_its_probe(self, able: list[Instance], trail: AttemptHistory) -> Instance | None:
        """Return whom to probe before its time, when circuits alone stand in the way.

        A pool of one key must not answer 503 for a minute after a hiccup.
        """
        if self.clock() - self._early_probe_s < EARLY_PROBE_EVERY_S:
            return None
        shut = [
            i
            for i in able
            if i.parked_for_s() == 0 and i.breaker.state() is State.OPEN and not trail.tried(i)
        ]
        return min(shut, key=lambda i: i.breaker.ready_in_s(), default=None)

    def backoff_s(self, lease: Lease, trail: AttemptHistory) -> float:
        """Return how long to wait before a lease's attempt: 0 unless its provider has failed."""
        failures = trail.failures_of(lease.instance.provider_name)
        return delay_s(failures - 1, self._rng) if failures else 0.0

    def no_candidate(self, target: RoutingTarget, trail: AttemptHistory) -> NoCandidate:
        """Say why nobody is left, when somebody will be, and whether to ask again."""
        able = target.capable()
        story = f" Tried: {trail.summary()}." if trail.attempts else ""
        if not able:
            return _none_capable(target)
        refused = [i for i in able if trail.last(i) is Outcome.REFUSED]
        waits = [i.available_in_s() or 0.0 for i in able if i not in refused]
        if not waits:  # nor will anybody be, for this request
            return NoCandidate(f"No instance could serve this; GET /health tells why.{story}")
        soonest_s = min(waits)
        if all(
            i.park_reason() == "rate_limited" or trail.last(i) is Outcome.RATE_LIMITED for i in able
        ):
            return NoCandidate(
                f"Every instance that could serve this is rate limited.{story}",
                rate_limited=True,
                retry_after_s=soonest_s,
                should_retry=soonest_s <= MAX_ADVISED_WAIT_S,
            )
        return NoCandidate(
            f"No instance could serve this; GET /health tells why.{story}",
            retry_after_s=soonest_s,
            should_retry=not trail.attempts and soonest_s <= MAX_ADVISED_WAIT_S,
        )


def _explain(trail: AttemptHistory, what: str, told: str) -> None:
    """Tell of a decision whoever wants to know it."""
    if trail.explanations is not None:
        trail.explanations.append(told)
    fields = {**trail.log_fields(), "attempt": trail.made + 1}
    logger.debug("%s: %s", what, told, extra={"fields": fields})


def _none_capable(target: RoutingTarget) -> NoCandidate:
    if any(i.enabled for i in target.instances):
        return NoCandidate(
            "The request holds an image, and none of the enabled models that `model` may mean "
            "takes images; remove it, name another model, or configure a multimodal one.",
            code="no_capable_model",
        )
    return NoCandidate(
        "No provider is enabled; configure a key or enable an instance.", code="no_providers"
    )


def _by_history(candidates: list[Instance], trail: AttemptHistory) -> list[Instance]:
    """Return the best of the candidates that there are.

    First those not tried yet, at providers that have not failed in this request; then any not
    tried yet; then those that failed before and may have come round. Whose rate limit is used up
    comes last among those not tried.
    """
    if not trail.attempts:
        return _with_quota_left(candidates)
    untried = [i for i in candidates if not trail.tried(i)]
    elsewhere = [i for i in untried if not trail.failures_of(i.provider_name) and has_quota_left(i)]
    # Only a failure may pass by itself: a refusal, a limit or a bad key says the same at once.
    return (
        elsewhere
        or _with_quota_left(untried)
        or [i for i in candidates if trail.last(i) is Outcome.FAILURE]
    )


def _with_quota_left(candidates: list[Instance]) -> list[Instance]:
    """Return those whose rate limit is not used up; all where that is nobody."""
    return [i for i in candidates if has_quota_left(i)] or candidates


def has_quota_left(instance: Instance) -> bool:
    """Tell whether something is left of an instance's rate limits, as far as is known."""
    left = instance.quota_left()
    return left is None or left > 0
