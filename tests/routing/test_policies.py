"""The policies: shares in proportion to the scores, the best instance, and a fair cycle."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from clock import FakeClock
from fakes import Other, make_instance
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.discovery import load
from nexus_gateway.routing.instance import Deployment
from nexus_gateway.routing.policies import POLICIES, Fastest, RoundRobin, Smart

INSTALLED = load(POLICIES)[0]


def make_pool() -> list[Deployment]:
    clock = FakeClock()
    fakes = [make_instance(number=n, clock=clock).default for n in (1, 2, 3)]
    others = [
        make_instance(number=n, clock=clock, provider=Other, name="other").default
        for n in (1, 2, 3)
    ]
    return [*fakes, *others]


def slow(deployment: Deployment, latency_ms: float) -> None:
    deployment.health.observe_latency(latency_ms, 8000.0)


def test_the_policies_have_their_names() -> None:
    policies, _ = load(POLICIES)
    assert list(policies) == ["smart", "fastest", "round-robin"]


def test_smart_shares_follow_the_scores_and_the_load() -> None:
    pool = make_pool()[:3]
    slow(pool[1], 4000.0)  # scores 1, 0.5 and, for one in flight, 1 / 2
    pool[2].instance.in_flight = 1
    rng = Random(42)
    shares = Counter(Smart().choose(pool, rng).name for _ in range(8000))
    assert shares[pool[0].name] / 8000 == pytest.approx(0.5, abs=0.02)
    assert shares[pool[1].name] / 8000 == pytest.approx(0.25, abs=0.02)
    assert shares[pool[2].name] / 8000 == pytest.approx(0.25, abs=0.02)


def test_smart_gives_the_worst_instance_a_chance() -> None:
    good, bad = make_pool()[:2]
    bad.health.failure()
    rng = Random(3)
    chosen = Counter(Smart().choose([good, bad], rng).name for _ in range(4000))
    assert chosen[bad.name] / 4000 == pytest.approx(0.05 / 1.05, abs=0.015)


def test_fastest_takes_the_highest_score() -> None:
    pool = make_pool()
    for n, instance in enumerate(pool):
        slow(instance, 500.0 + 100 * ((n + 3) % 6))
    pool[3].instance.in_flight = 50
    assert {Fastest().choose(pool, Random(n)).name for n in range(20)} == {pool[3].name}


def test_fastest_breaks_ties_by_load_and_then_by_turns() -> None:
    pool = make_pool()[:3]
    pool[0].instance.in_flight = 1
    fastest = Fastest()
    chosen = [fastest.choose(pool, Random(1)) for _ in range(6)]
    assert chosen == [pool[1], pool[2]] * 3


def test_round_robin_cycles_through_the_pool() -> None:
    pool = make_pool()
    policy = RoundRobin()
    assert [policy.choose(pool, Random(1)) for _ in range(18)] == pool * 3


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=60))
def test_round_robin_is_fair_when_the_set_changes(sets: list[set[int]]) -> None:
    """The instance chosen least recently is next: against a plain queue."""
    pool = make_pool()
    policy = RoundRobin()
    queue = list(range(6))
    for present in sets:
        expected = next(n for n in queue if n in present)
        assert policy.choose([pool[n] for n in sorted(present)], Random(1)) is pool[expected]
        queue.remove(expected)
        queue.append(expected)


@given(st.sampled_from(["smart", "fastest", "round-robin"]), st.sets(st.integers(0, 5), min_size=1))
def test_a_choice_is_always_one_of_the_candidates(name: str, present: set[int]) -> None:
    pool = make_pool()
    candidates = [pool[n] for n in present]
    assert INSTALLED[name].choose(candidates, Random(7)) in candidates
