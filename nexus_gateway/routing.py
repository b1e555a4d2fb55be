"""The policies: who of the candidates gets a request."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from random import Random
from typing import Protocol

from nexus_gateway.instance import Instance


class Policy(Protocol):
    """A way to choose."""

    name: str

    def choose(self, candidates: Sequence[Instance], rng: Random) -> Instance:
        """Choose one of the candidates, of which there is at least one."""


class Smart:
    """At random, weighted by score and discounted by requests in flight: no herd forms."""

    name = "smart"

    def choose(self, candidates: Sequence[Instance], rng: Random) -> Instance:
        """Choose by weight."""
        weights = [c.health.score() / (1 + c.in_flight) for c in candidates]
        return rng.choices(candidates, weights)[0]


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


class Fastest:
    """The highest score; among equals the least busy, then whoever waited longest."""

    name = "fastest"

    def __init__(self) -> None:
        self._turns = _Turns()

    def choose(self, candidates: Sequence[Instance], rng: Random) -> Instance:
        """Choose the best."""
        best = max(
            candidates, key=lambda c: (c.health.score(), -c.in_flight, -self._turns.since(c))
        )
        return self._turns.take(best)


class RoundRobin:
    """Whoever was chosen longest ago: a cycle, and fair also when the set changes."""

    name = "round-robin"

    def __init__(self) -> None:
        self._turns = _Turns()

    def choose(self, candidates: Sequence[Instance], rng: Random) -> Instance:
        """Choose the next."""
        return self._turns.take(min(candidates, key=self._turns.since))


def policies() -> dict[str, Policy]:
    """Return the policies by name, the default first."""
    every: tuple[Policy, ...] = (Smart(), Fastest(), RoundRobin())
    return {policy.name: policy for policy in every}
