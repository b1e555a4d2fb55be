"""Who gets the request, in virtual time."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from clock import FakeClock
from fakes import Fake, Other, make_instance
from hypothesis import given
from hypothesis import strategies as st
from records import add_ended

from nexus_gateway.errors import NoCandidate
from nexus_gateway.provider import Outcome, Verdict
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.policies import Fastest, Policy, RoundRobin, Smart
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler
from nexus_gateway.secret import Secret

OK = Verdict(Outcome.SUCCESS, "ok")
FAILED = Verdict(Outcome.FAILURE, "answered 500", 500)
LIMITED = Verdict(Outcome.RATE_LIMITED, "rate limited", 429, park_s=7)
REFUSED = Verdict(Outcome.REFUSED, "refused with 404", 404)
BAD_KEY = Verdict(Outcome.BAD_KEY, "the key was refused (401)", 401)
NO_WAIT = Verdict(Outcome.RATE_LIMITED, "rate limited", 429, park_s=0)
LEFT = Verdict(Outcome.CANCELLED, "the caller left")


def fresh() -> dict[str, Policy]:
    return {"smart": Smart(), "fastest": Fastest(), "round-robin": RoundRobin()}


class House:
    def __init__(self, count: int = 3, **more: Any) -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(self.clock, random.Random(1), fresh())
        key = Secret("k")
        self.instances = [
            make_instance(clock=self.clock, **{"key": key, **more}) for _ in range(count)
        ]
        for number, instance in enumerate(self.instances, 1):
            instance.name = f"Fake (Key #{number})"
        self.target = RoutingTarget(tuple(self.instances))

    def attempt(self, policy: str = "round-robin", trail: AttemptHistory | None = None) -> Attempt:
        return self.scheduler.attempt(self.target, policy, trail or AttemptHistory())

    def open(self, instance: Instance) -> None:
        for _ in range(3):
            instance.breaker.failure(instance.breaker.acquire())


@pytest.mark.proves("I-16")
@given(st.data(), st.sampled_from(["smart", "fastest", "round-robin"]))
def test_never_a_disabled_open_or_parked_one(data: st.DataObject, policy: str) -> None:
    house = House(4)
    running: list[Attempt] = []
    for _ in range(data.draw(st.integers(1, 40))):
        instance = data.draw(st.sampled_from(house.instances))
        match data.draw(st.sampled_from(["toggle", "time", "lease", "lease", "end", "end"])):
            case "toggle":
                instance.disable() if instance.enabled else instance.enable()
            case "time":
                house.clock.advance(data.draw(st.sampled_from([0.5, 8.0, 61.0])))
            case "end" if running:
                verdict = data.draw(st.sampled_from([OK, FAILED, FAILED, LIMITED, REFUSED]))
                running.pop(data.draw(st.integers(0, len(running) - 1))).end(verdict)
            case "lease":
                fit = [i for i in house.instances if i.available_in_s() == 0]
                try:
                    lease = house.attempt(policy)
                except NoCandidate:
                    assert not fit
                    continue
                assert lease.instance.enabled
                assert lease.instance.parked_for_s() == 0
                assert lease.instance in fit or not fit  # else probed early, as the last resort
                running.append(lease)
        assert sum(i.in_flight for i in house.instances) == len(running)
    for lease in running:
        lease.end(OK)
        lease.end(FAILED)
    assert not any(i.in_flight for i in house.instances)


@pytest.mark.proves("I-13", "F10")
def test_one_probe_after_a_minute() -> None:
    house = House(2)
    house.open(house.instances[0])
    house.clock.advance(60)
    chosen = Counter(house.attempt(p).instance.name for p in ["smart", "round-robin"] * 100)
    assert chosen["Fake (Key #1)"] == 1


@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=40, max_size=80))
def test_round_robin_is_fair_when_the_set_changes(sets: list[set[int]]) -> None:
    house = House(4)
    waited = Counter[int]()
    for present in sets:
        for number, instance in enumerate(house.instances):
            instance.enabled = number in present
        chosen = house.instances.index(house.attempt().instance)
        waited[chosen] = 0
        for number in present - {chosen}:
            waited[number] += 1
        assert max(waited.values()) <= 3  # nobody is passed over longer than the others' turn


def test_smarts_shares_follow_the_scores() -> None:
    house = House(3)
    for instance, successes in zip(house.instances, (4, 3, 1), strict=True):
        for n in range(4):
            (instance.health.success if n < successes else instance.health.failure)()
    counts = Counter[str]()
    for _ in range(4000):
        lease = house.attempt("smart")
        counts[lease.instance.name] += 1
        lease.end(REFUSED)  # neutral: the scores stay
    shares = [counts[i.name] / 4000 for i in house.instances]
    assert shares == pytest.approx([4 / 8, 3 / 8, 1 / 8], abs=0.03)


def test_smart_spreads_a_burst() -> None:
    house = House(4)
    for _ in range(200):
        house.attempt("smart")
    assert all(35 <= i.in_flight <= 65 for i in house.instances)


def test_fastest_takes_the_best() -> None:
    house = House(3)
    for instance, latency_ms in zip(house.instances, (900, 100, 500), strict=True):
        instance.health.observe_latency(latency_ms, 8000)
    assert {house.attempt("fastest").instance.name for _ in range(9)} == {"Fake (Key #2)"}


@pytest.mark.proves("I-23", "I-25")
def test_the_untried_come_first_and_other_providers_before_them() -> None:
    house = House(3)
    house.instances[2].provider_name = "other"
    trail = AttemptHistory()
    add_ended(trail, house.instances[0], FAILED)
    first = house.attempt(trail=trail)
    assert first.instance is house.instances[2]
    assert house.scheduler.backoff_s(first, trail) == 0
    add_ended(trail, house.instances[2], FAILED)
    second = house.attempt(trail=trail)
    assert second.instance is house.instances[1]
    assert 0.05 <= house.scheduler.backoff_s(second, trail) <= 0.1
    add_ended(trail, house.instances[1], REFUSED)
    assert house.attempt(trail=trail).instance is not house.instances[1]


def test_a_key_trouble_needs_no_pause() -> None:
    house = House(2)
    trail = AttemptHistory()
    add_ended(trail, house.instances[0], LIMITED)
    assert house.scheduler.backoff_s(house.attempt(trail=trail), trail) == 0


@pytest.mark.proves("I-12")
def test_the_last_resort_is_probed_early_and_seldom() -> None:
    house = House(1)
    house.open(house.instances[0])
    probe = house.attempt()
    with pytest.raises(NoCandidate):
        house.attempt()
    probe.end(FAILED)
    with pytest.raises(NoCandidate) as raised:
        house.attempt()
    assert raised.value.status == 503
    assert raised.value.headers == {"Retry-After": "60", "x-should-retry": "true"}
    house.clock.advance(2)
    house.attempt().end(OK)
    assert house.instances[0].breaker.state() is State.CLOSED


@pytest.mark.proves("I-12")
def test_no_early_probe_where_a_park_stands_in_the_way() -> None:
    house = House(1)
    house.open(house.instances[0])
    house.instances[0].park(30)
    with pytest.raises(NoCandidate):
        house.attempt()


def test_all_rate_limited_is_a_429_with_the_soonest_return() -> None:
    house = House(2)
    house.instances[0].park(20.2)
    house.instances[1].park(9)
    with pytest.raises(NoCandidate) as raised:
        house.attempt()
    assert raised.value.status == 429
    assert raised.value.headers == {"Retry-After": "9", "x-should-retry": "true"}
    house.clock.advance(9)
    assert house.attempt().instance is house.instances[1]


def test_a_park_only_gets_longer_and_a_bad_key_longer_each_time() -> None:
    house = House(1)
    (instance,) = house.instances
    instance.park(30)
    instance.park(5)
    assert instance.parked_for_s() == 30
    waits = []
    for _ in range(5):
        instance.park_bad_key()
        waits.append(instance.parked_for_s())
        house.clock.advance(waits[-1])
    assert waits == [600, 1200, 2400, 3600, 3600]
    instance.park_bad_key()
    instance.enable()
    assert instance.parked_for_s() == 0


def test_images_go_only_where_they_are_taken() -> None:
    house = House(1)
    text = make_instance(clock=house.clock, provider=Other)
    target = RoutingTarget((text, *house.instances), images=True)
    for _ in range(5):
        assert (
            house.scheduler.attempt(target, "smart", AttemptHistory()).instance
            is house.instances[0]
        )
    with pytest.raises(NoCandidate) as raised:
        house.scheduler.attempt(RoutingTarget((text,), images=True), "smart", AttemptHistory())
    assert raised.value.code == "no_capable_model"
    named = RoutingTarget((text,), model="unlisted", images=True)
    assert house.scheduler.attempt(named, "smart", AttemptHistory()).model == "unlisted"
    own = make_instance(clock=house.clock, model="unlisted", takes_images=True)
    assert own.takes_images_with("unlisted")
    assert not make_instance(model="unlisted").takes_images_with("unlisted")


def test_a_repr_shows_no_key() -> None:
    instance = make_instance()
    assert repr(instance) == "<Instance Fake (Key #1)>"
    assert instance.key.reveal() not in f"{instance.key} {instance.key!r} {instance.key:>9}"
    assert Fake.needs_key


@pytest.mark.proves("F11", "I-13")
@pytest.mark.parametrize("verdict", [LIMITED, REFUSED, BAD_KEY, LEFT])
def test_what_is_nobodys_failure_frees_the_probes_place(verdict: Verdict) -> None:
    house = House(1)
    (instance,) = house.instances
    house.open(instance)
    house.clock.advance(60)
    house.attempt().end(verdict)
    assert instance.breaker.state() is State.HALF_OPEN
    assert instance.breaker.admits()


def test_a_probes_first_token_lets_the_others_in() -> None:
    house = House(1)
    house.open(house.instances[0])
    house.clock.advance(60)
    probe = house.attempt()
    with pytest.raises(NoCandidate):
        house.attempt()
    probe.first_content(8000, stream=True)
    house.attempt()
    probe.end(FAILED)  # still on probation
    assert house.instances[0].breaker.state() is State.OPEN


@pytest.mark.parametrize("verdict", [REFUSED, BAD_KEY, NO_WAIT])
def test_only_a_failure_is_tried_again(verdict: Verdict) -> None:
    house = House(1)
    trail = AttemptHistory()
    add_ended(trail, house.instances[0], FAILED)
    assert house.attempt(trail=trail).instance is house.instances[0]
    add_ended(trail, house.instances[0], verdict)
    with pytest.raises(NoCandidate):
        house.attempt(trail=trail)


@pytest.mark.proves("I-12")
def test_the_last_resort_is_the_nearest_and_never_tried_before() -> None:
    house = House(2)
    first, second = house.instances
    house.open(second)
    house.clock.advance(10)
    house.open(first)
    trail = AttemptHistory()
    add_ended(trail, first, FAILED)
    add_ended(trail, second, FAILED)
    with pytest.raises(NoCandidate) as raised:
        house.attempt(trail=trail)
    assert raised.value.headers == {"Retry-After": "50", "x-should-retry": "false"}
    assert house.attempt().instance is second


@pytest.mark.proves("I-24")
def test_a_wait_too_long_for_the_clients_is_not_advised() -> None:
    house = House(1)
    house.instances[0].park_bad_key()
    for passed_s, wait, retry in ((0, "600", "false"), (500, "100", "true")):
        house.clock.advance(passed_s)
        with pytest.raises(NoCandidate) as raised:
            house.attempt()
        assert raised.value.headers == {"Retry-After": wait, "x-should-retry": retry}


@pytest.mark.proves("I-17")
def test_nobody_enabled_is_said_so() -> None:
    house = House(1)
    house.instances[0].disable()
    with pytest.raises(NoCandidate) as raised:
        house.attempt()
    assert (raised.value.status, raised.value.code) == (503, "no_providers")
    assert raised.value.headers == {"x-should-retry": "false"}


def test_in_a_large_pool_shares_follow_the_scores_as_in_a_small_one() -> None:
    house = House(20)
    for number, instance in enumerate(house.instances):
        if number % 2:
            instance.health.observe_latency(6000, 8000)  # a score of a quarter
    house.instances[0].disable()
    house.instances[2].park(60)
    for _ in range(3):
        house.instances[4].breaker.failure(house.instances[4].breaker.acquire())

    chosen: Counter[str] = Counter()
    for _ in range(8000):
        lease = house.attempt("smart")
        chosen[lease.instance.name] += 1
        lease.end(LEFT)

    assert not any(chosen[house.instances[out].name] for out in (0, 2, 4))
    good = [chosen[i.name] for i in house.instances[6::2]]
    slow = [chosen[i.name] for i in house.instances[1::2]]
    expected = 8000 / (len(good) + len(slow) / 4)
    assert all(abs(count - expected) < expected / 5 for count in good)
    assert all(abs(count - expected / 4) < expected / 10 for count in slow)


def test_in_a_large_pool_the_last_candidate_is_found() -> None:
    house = House(50)
    for instance in house.instances[1:]:
        instance.park(60)
    assert {house.attempt("smart").instance for _ in range(20)} == {house.instances[0]}


@pytest.mark.parametrize("fault", ["raises", "draws a stranger", "draws one who is parked"])
def test_a_policy_that_draws_badly_is_asked_to_choose(fault: str) -> None:
    house = House(20)
    house.instances[3].park(60)

    class Odd(Smart):
        def draw(self, *args: Any) -> Instance | None:
            if fault == "raises":
                raise RuntimeError("no")
            return make_instance() if fault == "draws a stranger" else house.instances[3]

    house.scheduler.policies = {"smart": Odd()}
    assert house.attempt("smart").instance in house.instances
    assert house.attempt("smart").instance is not house.instances[3]
