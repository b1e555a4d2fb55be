"""What workers tell each other, in virtual time."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from clock import FakeClock
from fakes import KEYS, make_instance
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.health import Sample
from nexus_gateway.routing.instance import Instance
from nexus_gateway.secret import Secret
from nexus_gateway.server.sync import Hub, InstanceSync
from nexus_gateway.telemetry.shared import WorkerState

SALT = b"a salt"


class Worker:
    """One worker's instance, and what it says through JSON."""

    numbers = itertools.count()

    def __init__(self, hub: Hub, clock: FakeClock, **more: Any) -> None:
        self.number = next(self.numbers)
        self.hub = hub
        self.instance = make_instance(clock=clock, **more)
        self.names = InstanceSync([self.instance], SALT)

    def say(self) -> None:
        state = json.loads(json.dumps(self.names.local_state().as_json()))
        self.hub.merge(self.number, WorkerState.from_json(state))

    def hear(self) -> Instance:
        self.names.apply(self.hub.state_for(self.number))
        return self.instance


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def pair(hub: Hub, clock: FakeClock) -> tuple[Worker, Worker]:
    return Worker(hub, clock), Worker(hub, clock)


def serve(instance: Instance, times: int = 1) -> None:
    for _ in range(times):
        instance.total_requests += 1
        instance.health.observe_latency(100, 1000)
        instance.health.success()


def test_a_toggle_reaches_the_other_and_the_later_one_holds(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    one.instance.disable()
    one.say()
    assert not other.hear().enabled
    clock.advance(0.1)
    other.instance.enable()
    one.say()  # it repeats what it knows, which is older
    other.say()
    assert other.hear().enabled
    assert one.hear().enabled


def test_a_park_reaches_the_other_and_never_gets_shorter(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    one.instance.park(30)
    other.instance.park(5)
    for worker in pair:
        worker.say()
    assert [w.hear().parked_for_s() for w in pair] == [30, 30]
    assert other.instance.park_reason() == "rate_limited"
    clock.advance(31)
    assert other.hear().parked_for_s() == 0


def test_a_refused_key_is_parked_everywhere_until_somebody_enables_it(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    for worker in pair:
        worker.instance.park_bad_key()
        worker.say()
    assert [w.hear().bad_keys_in_a_row for w in pair] == [1, 1]
    clock.advance(1)
    other.instance.enable()
    other.say()
    one.say()
    assert [w.hear().park_reason() for w in pair] == [None, None]
    clock.advance(1)
    one.instance.park_bad_key()
    one.say()
    assert other.hear().park_reason() == "bad_key"


def test_a_reload_frees_refused_keys_and_nothing_else(
    pair: tuple[Worker, Worker], hub: Hub, clock: FakeClock
) -> None:
    one, _other = pair
    one.instance.park_bad_key()
    one.instance.park(700)
    one.instance.disable()
    one.say()
    clock.advance(1)
    hub.free_bad_keys(clock())
    for worker in pair:
        assert worker.hear().park_reason() == "rate_limited"
        assert not worker.instance.enabled


def test_a_circuit_opens_and_closes_everywhere(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    late = other.instance.breaker.acquire()
    for _ in range(3):
        one.instance.breaker.failure(one.instance.breaker.acquire())
    one.say()
    clock.advance(0.5)
    breaker = other.hear().breaker
    assert breaker.state() is State.OPEN
    assert breaker.ready_in_s() == 59.5
    breaker.success(late)
    assert breaker.state() is State.OPEN
    clock.advance(59.5)
    assert [w.instance.breaker.state() for w in pair] == [State.HALF_OPEN] * 2
    other.say()
    assert one.hear().breaker.state() is State.HALF_OPEN
    breaker.success(breaker.acquire())
    other.say()
    assert one.hear().breaker.state() is State.CLOSED


def test_a_failed_probe_elsewhere_begins_the_pause_anew(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    for _ in range(3):
        one.instance.breaker.failure(one.instance.breaker.acquire())
    one.say()
    other.hear()
    clock.advance(60)
    one.instance.breaker.failure(one.instance.breaker.acquire())
    one.say()
    assert other.hear().breaker.ready_in_s() == 60


def test_the_last_reason_is_the_latest_ones(pair: tuple[Worker, Worker], clock: FakeClock) -> None:
    one, other = pair
    one.instance.last_reason = "500"
    one.say()
    assert other.hear().last_reason == "500"
    clock.advance(1)
    other.instance.last_reason = None
    other.say()
    assert one.hear().last_reason is None


def test_figures_are_summed_and_nothing_is_counted_twice(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    serve(one.instance, 3)
    other.instance.total_requests = 1
    other.instance.health.failure()
    one.instance.in_flight = 2
    for _ in range(5):
        for worker in pair:
            worker.say()
        for worker in pair:
            worker.hear()
    for worker in pair:
        instance = worker.instance
        assert instance.total_requests + instance.elsewhere.total_requests == 4
        assert instance.in_flight + instance.elsewhere.in_flight == 2
        assert instance.health.success_rate() == pytest.approx(0.75)
        assert instance.health.latency_ms() == pytest.approx(100)
        assert instance.health.score() == pytest.approx(0.75 * 0.9)
    clock.advance(120)
    one.instance.health.failure()
    assert one.instance.health.success_rate() == pytest.approx(1.5 / 3)


def test_what_the_gone_counted_stays_and_the_new_one_knows_all(
    pair: tuple[Worker, Worker], hub: Hub, clock: FakeClock
) -> None:
    one, _other = pair
    serve(one.instance, 3)
    one.instance.in_flight = 2
    one.instance.disable()
    one.say()
    hub.remove(one.number)
    hub.remove(one.number)
    heard = Worker(hub, clock).hear()
    assert (heard.enabled, heard.elsewhere.total_requests) == (False, 3)
    assert heard.elsewhere.in_flight == 0
    assert heard.health.latency_ms() == 100


def test_another_key_of_the_same_name_begins_anew_but_for_the_toggle(
    hub: Hub, clock: FakeClock
) -> None:
    old = Worker(hub, clock)
    serve(old.instance)
    old.instance.park_bad_key()
    old.instance.disable()
    old.say()
    new = Worker(hub, clock, key=Secret("another-key-secret")).hear()
    assert new.name == old.instance.name
    assert (new.enabled, new.park_reason(), new.elsewhere.total_requests) == (False, None, 0)


def test_no_key_is_in_it(hub: Hub, clock: FakeClock) -> None:
    worker = Worker(hub, clock)
    serve(worker.instance)
    worker.instance.park(5)
    said = worker.names.local_state()
    assert len(said.marks) == 1
    assert KEYS[0] not in str(said)


MARKS = st.dictionaries(
    st.sampled_from("abc"),
    st.lists(st.integers(0, 3), min_size=2, max_size=2),
)


@given(st.lists(MARKS, max_size=5), st.randoms())
def test_neither_order_nor_repetition_of_marks_counts(
    said: list[dict[str, list[int]]], rng: Any
) -> None:
    once, again = WorkerState(), WorkerState()
    for marks in said:
        once.merge_marks(marks)
    for marks in rng.sample(said * 2, len(said) * 2):
        again.merge_marks(marks)
    assert once.marks == again.marks


def test_means_of_different_ages_are_added_as_old_as_they_are() -> None:
    old, new = Sample(0.0, 2.0, 2.0), Sample(120.0, 1.0, 0.0)
    assert old.plus(new) == new.plus(old) == Sample(120.0, 2.0, 1.0)
