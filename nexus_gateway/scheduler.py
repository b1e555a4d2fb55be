"""Who gets the request: leases on instances.

A lease spans from the choice to the end of the answer's body and ends with exactly one outcome.
Pure policy: it knows no socket and no task, and takes its clock and its chance as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from nexus_gateway import backoff
from nexus_gateway.breaker import Permit, State
from nexus_gateway.classify import RATE_LIMIT_PARK_S, Outcome, Verdict
from nexus_gateway.errors import NoCandidate
from nexus_gateway.instance import Instance
from nexus_gateway.provider import CHAT
from nexus_gateway.routing import Policy, choose, draw

EARLY_PROBE_EVERY_S = 2.0
# Among so many it is as quick to look at everybody.
FEW = 8
# The official clients give up on a wait longer than this instead of waiting.
LONGEST_WAIT_S = 120.0
_TROUBLES = (Outcome.FAILURE, Outcome.RATE_LIMITED, Outcome.BAD_KEY)


@dataclass(frozen=True, slots=True)
class Target:
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
    guessed: bool = False

    @property
    def chosen_by_us(self) -> bool:
        """Whether it was not the caller who paired a model with these instances."""
        return self.model is None or self.guessed

    def model_of(self, instance: Instance) -> str:
        """Return the model that an instance would be asked for."""
        return self.model or instance.model_for(self.kind)

    def able(self) -> list[Instance]:
        """Return the enabled instances that can take what the request holds."""
        return [i for i in self.instances if self._is_able(i)]

    def _is_able(self, instance: Instance) -> bool:
        if self.images and not instance.takes_images_with(self.model_of(instance)):
            return False
        return instance.enabled

    def admits(self, instance: Instance) -> bool:
        """Tell whether one of the instances is a candidate now."""
        return (
            self._is_able(instance) and instance.parked_for_s() == 0 and instance.breaker.admits()
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try that failed."""

    instance: Instance
    verdict: Verdict
    duration_ms: float


@dataclass(slots=True)
class Trail:
    """What was tried for one request."""

    attempts: list[Attempt] = field(default_factory=list)

    def add(self, instance: Instance, verdict: Verdict, duration_ms: float) -> None:
        """Note a failed attempt."""
        self.attempts.append(Attempt(instance, verdict, duration_ms))

    def tried(self, instance: Instance) -> bool:
        """Tell whether an instance was tried."""
        return any(a.instance is instance for a in self.attempts)

    def last(self, instance: Instance) -> Outcome | None:
        """Return how an instance's last attempt ended, None when there was none."""
        found = (a.verdict.outcome for a in reversed(self.attempts) if a.instance is instance)
        return next(found, None)

    def troubled(self, provider_name: str) -> int:
        """Count a provider's failures; a bad key or a rate limit is its key's, not its own."""
        return sum(
            a.instance.provider_name == provider_name and a.verdict.outcome is Outcome.FAILURE
            for a in self.attempts
        )

    def story(self) -> str:
        """Tell what was tried and why it failed."""
        return "; ".join(f"{a.instance.name}: {a.verdict.reason}" for a in self.attempts)


class Lease:
    """The promise of one instance for one attempt. Made by the scheduler."""

    def __init__(self, instance: Instance, model: str, permit: Permit) -> None:
        self.instance = instance
        self.model = model
        self._permit = permit
        self._ended = False
        instance.in_flight += 1
        instance.total_requests += 1

    def first_token(self, latency_ms: float, limit_ms: float) -> None:
        """Note that the answer has begun, after how long, and what would have been too long."""
        self.instance.health.observe_latency(latency_ms, limit_ms)
        self._permit = self.instance.breaker.proved(self._permit)

    def end(self, verdict: Verdict, tokens_per_s: float | None = None) -> None:
        """End with an outcome; a second one is ignored."""
        if self._ended:
            return
        self._ended = True
        instance, breaker = self.instance, self.instance.breaker
        instance.in_flight -= 1
        if verdict.outcome is Outcome.SUCCESS:
            breaker.success(self._permit)
            self._succeed(tokens_per_s)
        elif verdict.outcome is Outcome.FAILURE:
            breaker.failure(self._permit)
            instance.health.failure()
        else:
            breaker.release(self._permit)
        if verdict.outcome is Outcome.RATE_LIMITED:
            instance.park(RATE_LIMIT_PARK_S if verdict.park_s is None else verdict.park_s)
        elif verdict.outcome is Outcome.BAD_KEY:
            instance.park_bad_key()
        if verdict.outcome in _TROUBLES:
            instance.last_reason = verdict.reason

    def _succeed(self, tokens_per_s: float | None) -> None:
        self.instance.health.success()
        self.instance.good_key()
        self.instance.last_reason = None
        if tokens_per_s is not None:
            self.instance.health.observe_speed(tokens_per_s)


class Scheduler:
    """Give leases.

    Args:
        clock: monotonic seconds.
        rng: chance.
        policies: the policies by name, the default first.
    """

    def __init__(
        self, clock: Callable[[], float], rng: Random, policies: Mapping[str, Policy]
    ) -> None:
        self.clock = clock
        self.policies = policies
        self._rng = rng
        self._early_probe_s = float("-inf")

    def lease(self, target: Target, policy: str, trail: Trail) -> Lease:
        """Choose an instance for the next attempt.

        Args:
            target: who may serve it.
            policy: the name of one of `policies`.
            trail: what was tried for this request before.

        Raises:
            NoCandidate: nobody is left.
        """
        if len(target.instances) > FEW and not trail.attempts:
            drawn = draw(self.policies[policy], target.instances, target.admits, self._rng)
            if drawn is not None:
                return Lease(drawn, target.model_of(drawn), drawn.breaker.acquire())
        able = target.able()
        candidates = [i for i in able if i.parked_for_s() == 0 and i.breaker.admits()]
        best = _untried_first(candidates, trail)
        if best:
            chosen = choose(self.policies[policy], best, self._rng)
            return Lease(chosen, target.model_of(chosen), chosen.breaker.acquire())
        early = self._nearest_to_its_probe(able, trail)
        if early is None:
            raise self.no_candidate(target, trail)
        self._early_probe_s = self.clock()
        return Lease(early, target.model_of(early), early.breaker.acquire_early())

    def _nearest_to_its_probe(self, able: list[Instance], trail: Trail) -> Instance | None:
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

    def backoff_s(self, lease: Lease, trail: Trail) -> float:
        """Return how long to wait before a lease's attempt: 0 unless its provider has failed."""
        failures = trail.troubled(lease.instance.provider_name)
        return backoff.delay_s(failures - 1, self._rng) if failures else 0.0

    def no_candidate(self, target: Target, trail: Trail) -> NoCandidate:
        """Say why nobody is left, when somebody will be, and whether to ask again."""
        able = target.able()
        story = f" Tried: {trail.story()}." if trail.attempts else ""
        if not able:
            return _nobody_able(target)
        waits = [wait for i in able if (wait := i.available_in_s()) is not None]
        soonest_s = min(waits)
        if all(
            i.park_reason() == "rate_limited" or trail.last(i) is Outcome.RATE_LIMITED for i in able
        ):
            return NoCandidate(
                f"Every instance that could serve this is rate limited.{story}",
                rate_limited=True,
                retry_after_s=soonest_s,
                should_retry=True,
            )
        return NoCandidate(
            f"No instance could serve this; GET /health tells why.{story}",
            retry_after_s=soonest_s,
            should_retry=not trail.attempts and soonest_s <= LONGEST_WAIT_S,
        )


def _nobody_able(target: Target) -> NoCandidate:
    if any(i.enabled for i in target.instances):
        return NoCandidate(
            "The request holds an image, and none of the enabled models that `model` may mean "
            "takes images; remove it, name another model, or configure a multimodal one.",
            code="no_capable_model",
        )
    return NoCandidate(
        "No provider is enabled; configure a key or enable an instance.", code="no_providers"
    )


def _untried_first(candidates: list[Instance], trail: Trail) -> list[Instance]:
    """Return the best of the candidates that there are.

    First those not tried yet, at providers that have not failed in this request; then any not
    tried yet; then those that failed before and may have come round.
    """
    if not trail.attempts:
        return candidates
    untried = [i for i in candidates if not trail.tried(i)]
    elsewhere = [i for i in untried if not trail.troubled(i.provider_name)]
    # Only a failure may pass by itself: a refusal, a limit or a bad key says the same at once.
    return elsewhere or untried or [i for i in candidates if trail.last(i) is Outcome.FAILURE]
