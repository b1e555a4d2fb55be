"""A conversation stays at its deployment: where to, what moves it, and what does not."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from clock import FakeClock
from fakes import make_instance
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.routing.affinity import HIT, MOVED, NONE, RoutingView, distance, seed_of
from nexus_gateway.routing.attempts import AttemptHistory
from nexus_gateway.routing.instance import Deployment
from nexus_gateway.routing.policies import Fastest, RoundRobin, Smart
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler
from nexus_gateway.secret import Secret

SMART = Smart()
RNG = Random(1)


def make_pool(count: int) -> list[Deployment]:
    clock = FakeClock()
    return [
        make_instance(number=n, key=Secret(f"key-{n}"), clock=clock).default
        for n in range(1, count + 1)
    ]


def place(conversation: int, candidates: list[Deployment]) -> Deployment:
    return SMART.choose_for(RoutingView(conversation), candidates, RNG)


def drawn(conversation: int, pool: list[Deployment]) -> Deployment:
    def admits(deployment: Deployment) -> bool:
        return deployment.instance.enabled

    found = SMART.draw_for(RoutingView(conversation), pool, admits, RNG)
    assert found is not None
    return found


def test_a_deployments_seed_depends_on_its_key_its_address_and_its_model_alone() -> None:
    one, same = (make_instance(number=n, key=Secret("key-1")).default for n in (1, 2))
    assert one.seed == same.seed
    others = [
        make_instance(key=Secret("key-2")).default,
        one.instance.on("another-model"),
    ]
    assert len({one.seed, *(d.seed for d in others)}) == 3
    assert one.seed == seed_of("fake", "key-1", one.instance.account.base_url, one.model)


def test_the_same_in_every_process() -> None:
    assert seed_of("groq", "gsk-1", "https://a/v1", "m") == 736212952745779210
    assert distance(1, 2) == pytest.approx(1.389731, abs=1e-5)


@given(st.integers(0, 2**40), st.integers(2, 8), st.data())
def test_only_what_leaves_moves_and_it_returns(
    conversation: int, count: int, data: st.DataObject
) -> None:
    pool = make_pool(count)
    home = place(conversation, pool)
    gone = data.draw(st.sampled_from(pool))
    left = [d for d in pool if d is not gone]
    moved = place(conversation, left)
    assert (moved is home) == (gone is not home)
    assert place(conversation, [*reversed(pool)]) is home


@pytest.mark.parametrize("choose", [place, drawn])
def test_conversations_are_shared_by_weight(choose: object) -> None:
    pool = make_pool(3)
    pool[0].health.observe_latency(4000.0, 8000.0)  # score 1/2, which is a step
    counts = Counter(
        choose(c, pool).instance.number  # type: ignore[operator]
        for c in range(10_000)
    )
    assert [counts[n] / 10_000 for n in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.4], abs=0.02)


def test_a_large_pool_moves_only_the_conversations_of_what_leaves() -> None:
    pool = make_pool(40)
    homes = {c: drawn(c, pool) for c in range(2000)}
    pool[7].instance.disable()
    for conversation, home in homes.items():
        assert (drawn(conversation, pool) is home) == (home is not pool[7])
    pool[7].instance.enable()
    assert all(drawn(c, pool) is home for c, home in homes.items())


def test_small_changes_of_score_and_load_move_nothing() -> None:
    pool = make_pool(4)
    homes = {c: place(c, pool) for c in range(500)}
    for deployment in pool:
        deployment.instance.in_flight = RNG.randrange(8)
        deployment.health.observe_latency(RNG.uniform(0, 1600), 8000.0)
    assert all(place(c, pool) is home for c, home in homes.items())


def test_a_score_at_the_border_of_a_step_moves_nothing_to_and_fro() -> None:
    deployment, other = make_pool(2)
    weights = set()
    for number in range(50):
        deployment.instance.in_flight = 15 + number % 2  # 1/2, and a little less
        place(1, [deployment, other])
        weights.add(deployment.steady_weight)
    assert len(weights) == 1


def test_an_instance_that_is_overloaded_sheds_conversations() -> None:
    pool = make_pool(4)
    before = Counter(place(c, pool) for c in range(2000))[pool[0]]
    pool[0].instance.in_flight = 79
    after = Counter(place(c, pool) for c in range(2000))[pool[0]]
    assert after < before / 4


def test_without_a_conversation_it_is_drawn_as_before() -> None:
    pool = make_pool(3)
    chosen = [SMART.choose_for(RoutingView(), pool, Random(n)) for n in range(50)]
    assert chosen == [SMART.choose(pool, Random(n)) for n in range(50)]


def attempted(scheduler: Scheduler, pool: list[Deployment], policy: str = "smart") -> str:
    history = AttemptHistory(conversation=1)
    with scheduler.attempt(RoutingTarget(tuple(pool)), policy, history):
        return history.affinity


@pytest.mark.parametrize("count", [3, 20])
def test_the_history_knows_whether_a_conversation_was_moved(count: int) -> None:
    policies = {"smart": Smart(), "fastest": Fastest(), "round-robin": RoundRobin()}
    scheduler = Scheduler(FakeClock(), Random(1), policies)
    pool = make_pool(count)
    home = place(1, pool) if count == 3 else drawn(1, pool)
    assert attempted(scheduler, pool) == HIT
    other = next(d for d in pool if d is not home)
    other.park(10)
    assert attempted(scheduler, pool) == HIT
    home.park(10)
    assert attempted(scheduler, pool) == MOVED
    home.instance.disable()  # it has another home for as long as that
    assert attempted(scheduler, [d for d in pool if d is not other]) == HIT
    assert attempted(scheduler, pool, "fastest") == NONE
    assert attempted(scheduler, pool, "round-robin") == NONE


def test_one_deployment_is_every_conversations_home() -> None:
    scheduler = Scheduler(FakeClock(), Random(1), {"smart": Smart(), "fastest": Fastest()})
    pool, history = make_pool(1), AttemptHistory()
    assert attempted(scheduler, pool) == HIT
    assert attempted(scheduler, pool, "fastest") == NONE
    scheduler.attempt(RoutingTarget(tuple(pool)), "smart", history)
    assert history.affinity == NONE
