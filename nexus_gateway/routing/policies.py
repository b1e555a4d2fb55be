"""Policies choose one of the candidates for a request. They are plugins, ours like any other.

A policy is a class and an entry point in the group `nexus_gateway.policies`. The entry point's
name is the value of `X-Routing-Mode`:

    [options.entry_points]
    nexus_gateway.policies =
        least-busy = nexus_acme:LeastBusy

A candidate is a deployment: one model of one instance. What a policy may read of it: `name` (the
instance's), `provider_name`, `model`, `in_flight`, `health.score()`, `health.success_rate()`,
`health.latency_ms()`, `health.tokens_per_s()`, `quota_left()` and `seed`, a number of its own that
is the same in every process. A policy that regards the request as well defines `choose_for`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from math import log2
from random import Random
from typing import ClassVar
from weakref import WeakKeyDictionary

from nexus_gateway.discovery import PluginKind, version_error
from nexus_gateway.provider import API_VERSION
from nexus_gateway.routing.affinity import RepeatableRandom, RoutingView, distance
from nexus_gateway.routing.instance import Deployment
from nexus_gateway.routing.quotas import quota_factor

logger = logging.getLogger("nexus_gateway")

DEFAULT_POLICY = "smart"
DRAWS = 16  # rejected draws before all candidates are weighed after all
FEW = 8  # requests in flight at an instance that move no conversation away
HYSTERESIS = 1.3  # by which factor a weight changes before conversations move
OUR_POLICIES = (DEFAULT_POLICY, "fastest", "round-robin")


class Policy(ABC):
    """A way to choose. One object serves all requests; it is constructed without arguments.

    Attributes:
        api_version: the version of the plugin contract that it was written for.
        keeps_conversations: whether it chooses the same deployment for all requests of a
            conversation, as long as it can.
    """

    api_version: ClassVar[int] = API_VERSION
    keeps_conversations: ClassVar[bool] = False

    @abstractmethod
    def choose(self, candidates: Sequence[Deployment], rng: Random) -> Deployment:
        """Return one of the candidates.

        Args:
            candidates: the deployments that can serve the request now, at least one.
            rng: the only source of randomness to use, so that tests are reproducible.
        """

    def draw(
        self, deployments: Sequence[Deployment], admits: Callable[[Deployment], bool], rng: Random
    ) -> Deployment | None:
        """Return a candidate without examining all deployments, for large pools.

        Args:
            deployments: all that serve the model, in any state.
            admits: returns whether one of them is a candidate.
            rng: as in `choose`.

        Returns:
            A candidate, or None: then `choose` is called.
        """
        return None

    def choose_for(
        self, request: RoutingView, candidates: Sequence[Deployment], rng: Random
    ) -> Deployment:
        """As `choose`, for a policy that regards the request."""
        return self.choose(candidates, rng)

    def draw_for(
        self,
        request: RoutingView,
        deployments: Sequence[Deployment],
        admits: Callable[[Deployment], bool],
        rng: Random,
    ) -> Deployment | None:
        """As `draw`, for a policy that regards the request."""
        return self.draw(deployments, admits, rng)


class Smart(Policy):
    """Random, weighted by score and divided by requests in flight: avoids herding.

    A conversation stays where it is, see `affinity`. Its weights change in steps, and requests in
    flight count only if they are many: else each of them would move conversations.
    """

    keeps_conversations = True

    def choose(self, candidates: Sequence[Deployment], rng: Random) -> Deployment:
        """Return a candidate drawn by weight."""
        if len(candidates) == 1:
            return candidates[0]
        return rng.choices(candidates, [_weight(c) for c in candidates])[0]

    def draw(
        self, deployments: Sequence[Deployment], admits: Callable[[Deployment], bool], rng: Random
    ) -> Deployment | None:
        """Draw by the same weights: rejection sampling (von Neumann, 1951).

        Draw a deployment and accept it with probability equal to its weight (at most 1), else
        repeat.
        """
        return _drawn(deployments, admits, rng, _weight)

    def choose_for(
        self, request: RoutingView, candidates: Sequence[Deployment], rng: Random
    ) -> Deployment:
        """Return the conversation's candidate; without a conversation, one drawn by weight."""
        conversation = request.conversation
        if conversation is None or len(candidates) == 1:
            return self.choose(candidates, rng)
        return min(candidates, key=lambda c: distance(conversation, c.seed) / _steady_weight(c))

    def draw_for(
        self,
        request: RoutingView,
        deployments: Sequence[Deployment],
        admits: Callable[[Deployment], bool],
        rng: Random,
    ) -> Deployment | None:
        """As `draw`, but for a conversation with the same numbers each time."""
        if request.conversation is None:
            return self.draw(deployments, admits, rng)
        return _drawn(deployments, admits, RepeatableRandom(request.conversation), _steady_weight)


def _drawn(
    deployments: Sequence[Deployment],
    admits: Callable[[Deployment], bool],
    rng: Random,
    weight: Callable[[Deployment], float],
) -> Deployment | None:
    for _ in range(DRAWS):
        drawn, accepted = deployments[int(rng.random() * len(deployments))], rng.random()
        if admits(drawn) and accepted < weight(drawn):
            return drawn
    return None


def _steady_weight(deployment: Deployment) -> float:
    """Return the weight for conversations: a power of the square root of 2, with hysteresis."""
    load, weight = deployment.instance.in_flight + 1, effective_score(deployment)
    if load > FEW:
        weight *= FEW / load
    kept = deployment.steady_weight
    if not kept / HYSTERESIS <= weight <= kept * HYSTERESIS:
        kept = deployment.steady_weight = 2.0 ** (round(2 * log2(weight)) / 2)
    return kept


def _weight(deployment: Deployment) -> float:
    return effective_score(deployment) / (1 + deployment.instance.in_flight)


def effective_score(deployment: Deployment) -> float:
    """Return a deployment's health score, reduced if it is near its rate limit."""
    return deployment.health.score() * quota_factor(deployment.quota_left())


class _LeastRecentlyUsed:
    """Numbers the choices."""

    def __init__(self) -> None:
        self._choices = 0
        self._last: WeakKeyDictionary[Deployment, int] = WeakKeyDictionary()

    def last_use(self, deployment: Deployment) -> int:
        return self._last.get(deployment, 0)

    def use(self, deployment: Deployment) -> Deployment:
        self._choices += 1
        self._last[deployment] = self._choices
        return deployment


class Fastest(Policy):
    """The highest score; among equals the least busy, then the least recently used."""

    def __init__(self) -> None:
        self._lru = _LeastRecentlyUsed()

    def choose(self, candidates: Sequence[Deployment], rng: Random) -> Deployment:
        """Return the best candidate."""
        return self._lru.use(
            max(
                candidates, key=lambda c: (effective_score(c), -c.in_flight, -self._lru.last_use(c))
            )
        )


class RoundRobin(Policy):
    """The least recently used: a cycle that stays fair when the set of candidates changes."""

    def __init__(self) -> None:
        self._lru = _LeastRecentlyUsed()

    def choose(self, candidates: Sequence[Deployment], rng: Random) -> Deployment:
        """Return the next candidate."""
        return self._lru.use(min(candidates, key=self._lru.last_use))


def _contract_errors(cls: object) -> Iterator[str]:
    if not (isinstance(cls, type) and issubclass(cls, Policy)):
        yield "it is not a subclass of nexus_gateway.routing.Policy"
        return
    yield from version_error(cls)
    if getattr(cls, "__abstractmethods__", None):
        yield "it does not define choose"


POLICIES: PluginKind[Policy] = PluginKind(
    "policy", "nexus_gateway.policies", _contract_errors, default=DEFAULT_POLICY
)


def draw(
    policy: Policy,
    request: RoutingView,
    deployments: Sequence[Deployment],
    admits: Callable[[Deployment], bool],
    rng: Random,
) -> Deployment | None:
    """Return what a policy draws; None if it draws nothing, draws no candidate, or fails."""
    try:
        drawn = policy.draw_for(request, deployments, admits, rng)
        return drawn if drawn is None or (admits(drawn) and drawn in deployments) else None
    except Exception:
        logger.exception("the policy %s failed", type(policy).__qualname__)
        return None


def choose(
    policy: Policy, request: RoutingView, candidates: Sequence[Deployment], rng: Random
) -> Deployment:
    """Return what a policy chooses; the first candidate if it chooses no candidate, or fails."""
    try:
        chosen = policy.choose_for(request, candidates, rng)
    except Exception:
        logger.exception("the policy %s failed", type(policy).__qualname__)
        return candidates[0]
    for candidate in candidates:
        if chosen is candidate:
            return chosen
    logger.error("the policy %s chose no candidate", type(policy).__qualname__)
    return candidates[0]
