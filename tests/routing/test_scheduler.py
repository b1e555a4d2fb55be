"""Which instance gets the request, in virtual time."""

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
from nexus_gateway.provider import Outcome, Scope, Verdict
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.policies import Fastest, Policy, RoundRobin, Smart
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler
from nexus_gateway.secret import Secret

OK = Verdict(Outcome.SUCCESS, "ok")
FAILED = Verdict(Outcome.FAILURE, "answered 500", 500, scope=Scope.ADDRESS)  # counts at once
LIMITED = Verdict(Outcome.RATE_LIMITED, "rate limited", 429, park_s=7)
REFUSED = Verdict(Outcome.REFUSED, "refused with 404", 404)
BAD_KEY = Verdict(Outcome.BAD_KEY, "the key was refused (401)", 401)
NO_WAIT = Verdict(Outcome.RATE_LIMITED, "rate limited", 429, park_s=0)
LEFT = Verdict(Outcome.CANCELLED, "the caller left")


def fresh() -> dict[str, Policy]:
    return {"smart": Smart(), "fastest": Fastest(), "round-robin": RoundRobin()}


class Pool:
    def __init__(self, count: int = 3, **more: Any) -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(self.clock, random.Random(1), fresh())
        key = Secret("k")
        self.instances = [
            make_instance(clock=self.clock, **{"key": key, **more}) for _ in range(count)
        ]
        for number, instance in enumerate(self.instances, 1):
            instance.name = f"Fake (Key #{number})"
        self.target = RoutingTarget(tuple(i.default for i in self.instances))

    def attempt(
        self, policy: str = "round-robin", history: AttemptHistory | None = None
    ) -> Attempt:
        return self.scheduler.attempt(self.target, policy, history or AttemptHistory())

    def open(self, instance: Instance) -> None:
        for _ in range(3):
            instance.default.breaker.failure(instance.default.breaker.acquire())


@pytest.mark.proves("I-16")
@given(st.data(), st.sampled_from(["smart", "fastest", "round-robin"]))
def test_a_disabled_open_or_parked_instance_is_never_chosen(
    data: st.DataObject, policy: str
) -> None:
    pool = Pool(4)
    running: list[Attempt] = []
    for _ in range(data.draw(st.integers(1, 40))):
        instance = data.draw(st.sampled_from(pool.instances))
        match data.draw(st.sampled_from(["toggle", "time", "begin", "begin", "end", "end"])):
            case "toggle":
                instance.disable() if instance.enabled else instance.enable()
            case "time":
                pool.clock.advance(data.draw(st.sampled_from([0.5, 8.0, 61.0])))
            case "end" if running:
                verdict = data.draw(st.sampled_from([OK, FAILED, FAILED, LIMITED, REFUSED]))
                running.pop(data.draw(st.integers(0, len(running) - 1))).end(verdict)
            case "begin":
                fit = [i for i in pool.instances if i.available_in_s() == 0]
                try:
                    attempt = pool.attempt(policy)
                except NoCandidate:
                    assert not fit
                    continue
                assert attempt.instance.enabled
                assert attempt.instance.default.parked_for_s() == 0
                assert (
                    attempt.instance in fit or not fit
                )  # otherwise probed early, as the last resort
                running.append(attempt)
        assert sum(i.in_flight for i in pool.instances) == len(running)
    for attempt in running:
        attempt.end(OK)
        attempt.end(FAILED)
    assert not any(i.in_flight for i in pool.instances)


@pytest.mark.proves("I-13", "F10")
def test_one_probe_is_sent_after_a_minute() -> None:
    pool = Pool(2)
    pool.open(pool.instances[0])
    pool.clock.advance(60)
    chosen = Counter(pool.attempt(p).instance.name for p in ["smart", "round-robin"] * 100)
    assert chosen["Fake (Key #1)"] == 1


@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=40, max_size=80))
def test_round_robin_is_fair_when_the_set_changes(sets: list[set[int]]) -> None:
    pool = Pool(4)
    waited = Counter[int]()
    for present in sets:
        for number, instance in enumerate(pool.instances):
            instance.enabled = number in present
        chosen = pool.instances.index(pool.attempt().instance)
        waited[chosen] = 0
        for number in present - {chosen}:
            waited[number] += 1
        assert max(waited.values()) <= 3  # each instance waits at most one turn of each other


def test_smart_shares_follow_the_scores() -> None:
    pool = Pool(3)
    for instance, successes in zip(pool.instances, (4, 3, 1), strict=True):
        for n in range(4):
            (instance.health.success if n < successes else instance.health.failure)()
    counts = Counter[str]()
    for _ in range(4000):
        attempt = pool.attempt("smart")
        counts[attempt.instance.name] += 1
        attempt.end(REFUSED)  # neutral: the scores stay
    shares = [counts[i.name] / 4000 for i in pool.instances]
    assert shares == pytest.approx([4 / 8, 3 / 8, 1 / 8], abs=0.03)


def test_smart_spreads_a_burst() -> None:
    pool = Pool(4)
    for _ in range(200):
        pool.attempt("smart")
    assert all(35 <= i.in_flight <= 65 for i in pool.instances)


def test_fastest_takes_the_highest_score() -> None:
    pool = Pool(3)
    for instance, latency_ms in zip(pool.instances, (900, 100, 500), strict=True):
        instance.health.observe_latency(latency_ms, 8000)
    assert {pool.attempt("fastest").instance.name for _ in range(9)} == {"Fake (Key #2)"}


@pytest.mark.proves("I-23", "I-25")
def test_an_untried_instance_is_next_and_preferably_of_another_provider() -> None:
    pool = Pool(3)
    pool.instances[2].provider_name = "other"
    history = AttemptHistory()
    add_ended(history, pool.instances[0], FAILED)
    first = pool.attempt(history=history)
    assert first.instance is pool.instances[2]
    assert pool.scheduler.backoff_s(first, history) == 0
    add_ended(history, pool.instances[2], FAILED)
    second = pool.attempt(history=history)
    assert second.instance is pool.instances[1]
    assert 0.05 <= pool.scheduler.backoff_s(second, history) <= 0.1
    add_ended(history, pool.instances[1], REFUSED)
    assert pool.attempt(history=history).instance is not pool.instances[1]


def test_after_a_rate_limit_there_is_no_pause() -> None:
    pool = Pool(2)
    history = AttemptHistory()
    add_ended(history, pool.instances[0], LIMITED)
    assert pool.scheduler.backoff_s(pool.attempt(history=history), history) == 0


@pytest.mark.proves("I-12")
def test_the_last_resort_is_probed_early_and_rarely() -> None:
    pool = Pool(1)
    pool.open(pool.instances[0])
    probe = pool.attempt()
    with pytest.raises(NoCandidate):
        pool.attempt()
    probe.end(FAILED)
    with pytest.raises(NoCandidate) as raised:
        pool.attempt()
    assert raised.value.status == 503
    assert raised.value.headers == {"Retry-After": "2", "x-should-retry": "true"}
    pool.clock.advance(2)
    pool.attempt().end(OK)
    assert pool.instances[0].default.breaker.state() is State.CLOSED


@pytest.mark.proves("I-12")
def test_a_parked_instance_is_not_probed_early() -> None:
    pool = Pool(1)
    pool.open(pool.instances[0])
    pool.instances[0].default.park(30)
    with pytest.raises(NoCandidate):
        pool.attempt()


def test_all_rate_limited_is_a_429_with_the_earliest_return() -> None:
    pool = Pool(2)
    pool.instances[0].default.park(20.2)
    pool.instances[1].default.park(9)
    with pytest.raises(NoCandidate) as raised:
        pool.attempt()
    assert raised.value.status == 429
    assert raised.value.headers == {"Retry-After": "9", "x-should-retry": "true"}
    pool.clock.advance(9)
    assert pool.attempt().instance is pool.instances[1]


def test_a_park_only_gets_longer_and_a_bad_keys_park_longer_each_time() -> None:
    pool = Pool(1)
    (instance,) = pool.instances
    instance.default.park(30)
    instance.default.park(5)
    assert instance.default.parked_for_s() == 30
    waits = []
    for _ in range(5):
        instance.park_bad_key()
        waits.append(instance.default.parked_for_s())
        pool.clock.advance(waits[-1])
    assert waits == [600, 1200, 2400, 3600, 3600]
    instance.park_bad_key()
    instance.enable()
    assert instance.default.parked_for_s() == 0


def test_images_go_only_to_instances_that_accept_them() -> None:
    pool = Pool(1)
    text = make_instance(clock=pool.clock, provider=Other)
    target = RoutingTarget(tuple(i.default for i in (text, *pool.instances)), images=True)
    for _ in range(5):
        assert (
            pool.scheduler.attempt(target, "smart", AttemptHistory()).instance is pool.instances[0]
        )
    with pytest.raises(NoCandidate) as raised:
        pool.scheduler.attempt(
            RoutingTarget((text.default,), images=True), "smart", AttemptHistory()
        )
    assert raised.value.code == "no_capable_model"
    named = RoutingTarget((text.on("unlisted"),), model="unlisted", images=True)
    assert pool.scheduler.attempt(named, "smart", AttemptHistory()).model == "unlisted"
    configured = make_instance(clock=pool.clock, model="unlisted", takes_images=True)
    assert configured.takes_images_with("unlisted")
    assert not make_instance(model="unlisted").takes_images_with("unlisted")


def test_a_repr_shows_no_key() -> None:
    instance = make_instance()
    assert repr(instance) == "<Instance Fake (Key #1)>"
    assert instance.key.reveal() not in f"{instance.key} {instance.key!r} {instance.key:>9}"
    assert Fake.needs_key


@pytest.mark.proves("F11", "I-13")
@pytest.mark.parametrize("verdict", [LIMITED, REFUSED, BAD_KEY, LEFT])
def test_a_neutral_outcome_frees_the_probes_place(verdict: Verdict) -> None:
    pool = Pool(1)
    (instance,) = pool.instances
    pool.open(instance)
    pool.clock.advance(60)
    pool.attempt().end(verdict)
    assert instance.default.breaker.state() is State.HALF_OPEN
    assert instance.default.breaker.admits()


def test_a_probes_first_token_admits_other_requests() -> None:
    pool = Pool(1)
    pool.open(pool.instances[0])
    pool.clock.advance(60)
    probe = pool.attempt()
    with pytest.raises(NoCandidate):
        pool.attempt()
    probe.first_content(8000, stream=True)
    pool.attempt()
    probe.end(FAILED)  # still on probation
    assert pool.instances[0].default.breaker.state() is State.OPEN


@pytest.mark.parametrize("verdict", [REFUSED, BAD_KEY, NO_WAIT])
def test_only_a_failed_instance_is_tried_again(verdict: Verdict) -> None:
    pool = Pool(1)
    history = AttemptHistory()
    add_ended(history, pool.instances[0], FAILED)
    assert pool.attempt(history=history).instance is pool.instances[0]
    add_ended(history, pool.instances[0], verdict)
    with pytest.raises(NoCandidate):
        pool.attempt(history=history)


@pytest.mark.proves("I-12")
def test_the_last_resort_opened_first_and_was_not_tried_before() -> None:
    pool = Pool(2)
    first, second = pool.instances
    pool.open(second)
    pool.clock.advance(10)
    pool.open(first)
    history = AttemptHistory()
    add_ended(history, first, FAILED)
    add_ended(history, second, FAILED)
    with pytest.raises(NoCandidate) as raised:
        pool.attempt(history=history)
    assert raised.value.headers == {"Retry-After": "1", "x-should-retry": "true"}
    assert pool.attempt().instance is second


@pytest.mark.proves("I-24")
def test_clients_are_not_advised_to_retry_after_a_wait_too_long() -> None:
    pool = Pool(1)
    pool.instances[0].default.park(600)
    for passed_s, wait, retry in ((0, "600", "false"), (500, "100", "true")):
        pool.clock.advance(passed_s)
        with pytest.raises(NoCandidate) as raised:
            pool.attempt()
        assert raised.value.headers == {"Retry-After": wait, "x-should-retry": retry}


@pytest.mark.parametrize("is_doubtful", [False, True])
def test_no_wait_is_advised_for_refused_keys(is_doubtful: bool) -> None:
    pool = Pool(2)
    for instance in pool.instances:
        instance.park_bad_key(is_doubtful=is_doubtful)
    history = AttemptHistory()
    for instance in pool.instances if is_doubtful else ():
        add_ended(history, instance, BAD_KEY)
    with pytest.raises(NoCandidate) as raised:
        pool.attempt(history=history)
    assert raised.value.headers == {"x-should-retry": "false"}
    pool.instances[0].enable()
    pool.open(pool.instances[0])
    with pytest.raises(NoCandidate) as raised:  # one of them is only broken
        raise pool.scheduler.no_candidate(pool.target, history)
    assert raised.value.headers == {"Retry-After": "1", "x-should-retry": "true"}


def test_the_same_instance_again_is_asked_after_a_longer_pause() -> None:
    pool = Pool(2)
    pool.instances[1].disable()
    history = AttemptHistory()
    add_ended(history, pool.instances[0], FAILED)
    pauses = [pool.scheduler.backoff_s(pool.attempt(history=history), history) for _ in range(20)]
    assert all(0.2 <= pause_s <= 0.4 for pause_s in pauses)


@pytest.mark.proves("I-17")
def test_no_enabled_instance_is_a_503() -> None:
    pool = Pool(1)
    pool.instances[0].disable()
    with pytest.raises(NoCandidate) as raised:
        pool.attempt()
    assert (raised.value.status, raised.value.code) == (503, "no_providers")
    assert raised.value.headers == {"x-should-retry": "false"}


def test_in_a_large_pool_shares_follow_the_scores_as_in_a_small_one() -> None:
    pool = Pool(20)
    for number, instance in enumerate(pool.instances):
        if number % 2:
            instance.health.observe_latency(6000, 8000)  # a score of a quarter
    pool.instances[0].disable()
    pool.instances[2].default.park(60)
    for _ in range(3):
        pool.instances[4].default.breaker.failure(pool.instances[4].default.breaker.acquire())

    chosen: Counter[str] = Counter()
    for _ in range(8000):
        attempt = pool.attempt("smart")
        chosen[attempt.instance.name] += 1
        attempt.end(LEFT)

    assert not any(chosen[pool.instances[out].name] for out in (0, 2, 4))
    good = [chosen[i.name] for i in pool.instances[6::2]]
    slow = [chosen[i.name] for i in pool.instances[1::2]]
    expected = 8000 / (len(good) + len(slow) / 4)
    assert all(abs(count - expected) < expected / 5 for count in good)
    assert all(abs(count - expected / 4) < expected / 10 for count in slow)


def test_in_a_large_pool_a_single_candidate_is_found() -> None:
    pool = Pool(50)
    for instance in pool.instances[1:]:
        instance.default.park(60)
    assert {pool.attempt("smart").instance for _ in range(20)} == {pool.instances[0]}


@pytest.mark.parametrize("fault", ["raises", "draws a stranger", "draws a parked instance"])
def test_a_policy_that_fails_to_draw_is_asked_to_choose(fault: str) -> None:
    pool = Pool(20)
    pool.instances[3].default.park(60)

    class Odd(Smart):
        def draw(self, *args: Any) -> Instance | None:
            if fault == "raises":
                raise RuntimeError("no")
            return make_instance() if fault == "draws a stranger" else pool.instances[3]

    pool.scheduler.policies = {"smart": Odd()}
    assert pool.attempt("smart").instance in pool.instances
    assert pool.attempt("smart").instance is not pool.instances[3]
