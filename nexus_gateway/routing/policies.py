"""The policies: who of the candidates gets a request. They are plugins, ours like any other.

A policy is a class and an entry point in the group `nexus_gateway.policies`, whose name is what
callers write in `X-Routing-Mode`:

    [options.entry_points]
    nexus_gateway.policies =
        least-busy = nexus_acme:LeastBusy

What it may ask of a candidate: `name`, `provider_name`, `model`, `in_flight`, `health.score()`,
`health.success_rate()`, `health.latency_ms()`, `health.tokens_per_s()` and `quota_left()`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from random import Random
from typing import ClassVar

from nexus_gateway.discovery import PluginKind, version_error
from nexus_gateway.provider import API_VERSION
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.quotas import quota_factor

logger = logging.getLogger("nexus_gateway")

DEFAULT_POLICY = "smart"
# How often one is drawn before everybody is looked at after all.
DRAWS = 16
OUR_POLICIES = (DEFAULT_POLICY, "fastest", "round-robin")


class Policy(ABC):
    """A way to choose. One object serves all requests; it is made without arguments.

    Attributes:
        api_version: the version of the plugin contract that it was written for.
    """

    api_version: ClassVar[int] = API_VERSION

    @abstractmethod
    def choose(self, candidates: Sequence[Instance], rng: Random) -> Instance:
        """Choose one of the candidates, of which there is at least one.

        Args:
            candidates: who may serve the request now.
            rng: chance; take no other, so that tests can repeat what you do.
        """

    def draw(
        self, instances: Sequence[Instance], admits: Callable[[Instance], bool], rng: Random
    ) -> Instance | None:
        """Choose without looking at everybody, where that can be done; for large pools.

        Args:
            instances: all that serve the model, in whatever state.
            admits: whether one of them is a candidate.
            rng: chance.

        Returns:
            A candidate; None to be asked by `choose`.
        """
        return None


class Smart(Policy):
    """At random, weighted by score and discounted by requests in flight: no herd forms."""

    def choose(self, candidates: Sequence[Instance], rng: Random) -> Instance:
        """Choose by weight."""
        if len(candidates) == 1:
            return candidates[0]
        return rng.choices(candidates, [_weight(c) for c in candidates])[0]

    def draw(
        self, instances: Sequence[Instance], admits: Callable[[Instance], bool], rng: Random
    ) -> Instance | None:
        """Choose by weight as well: rejection sampling (von Neumann, 1951).

        Take anybody, and keep him with a chance of his weight, which is at most 1; else again.
        """
        for _ in range(DRAWS):
            drawn = instances[int(rng.random() * len(instances))]
            if admits(drawn) and rng.random() < _weight(drawn):
                return drawn
        return None


def _weight(instance: Instance) -> float:
    return effective_score(instance) / (1 + instance.in_flight)


def effective_score(instance: Instance) -> float:
    """Return an instance's score, less where it is near to its rate limit."""
    return instance.health.score() * quota_factor(instance.quota_left())


class _Turns:
    """Whose turn it is: of those asked about, who was chosen longest ago."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._last: dict[str, int] = {}

    def since(self, instance: Instance) -> int:
        return self._last.get(instance.name, 0)

    def take(self, instance: Instance) -> Instance:
        self._last[instance.name] = next(self._numbers)
        return instance


class Fastest(Policy):
    """The highest score; among equals the least busy, then whoever waited longest."""

    def __init__(self) -> None:
        self._turns = _Turns()

    def choose(self, candidates: Sequence[Instance], rng: Random) -> Instance:
        """Choose the best."""
        best = max(
            candidates, key=lambda c: (effective_score(c), -c.in_flight, -self._turns.since(c))
        )
        return self._turns.take(best)


class RoundRobin(Policy):
    """Whoever was chosen longest ago: a cycle, and fair also when the set changes."""

    def __init__(self) -> None:
        self._turns = _Turns()

    def choose(self, candidates: Sequence[Instance], rng: Random) -> Instance:
        """Choose the next."""
        return self._turns.take(min(candidates, key=self._turns.since))


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
    instances: Sequence[Instance],
    admits: Callable[[Instance], bool],
    rng: Random,
) -> Instance | None:
    """Let a policy draw; None where it does not, where a plugin's fails, or draws nobody's."""
    try:
        drawn = policy.draw(instances, admits, rng)
        return drawn if drawn is None or (admits(drawn) and drawn in instances) else None
    except Exception:
        logger.exception("the policy %s failed", type(policy).__qualname__)
        return None


def choose(policy: Policy, candidates: Sequence[Instance], rng: Random) -> Instance:
    """Let a policy choose; where a plugin's fails, or chooses nobody, the first one is taken."""
    try:
        chosen = policy.choose(candidates, rng)
    except Exception:
        logger.exception("the policy %s failed", type(policy).__qualname__)
        return candidates[0]
    if any(chosen is candidate for candidate in candidates):
        return chosen
    logger.error("the policy %s chose something else", type(policy).__qualname__)
    return candidates[0]
