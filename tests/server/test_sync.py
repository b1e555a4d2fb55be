"""Workers share state through the hub; in virtual time."""

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
    """A worker's instance, which publishes and applies state as JSON."""

    numbers = itertools.count()

    def __init__(self, hub: Hub, clock: FakeClock, **more: Any) -> None:
        self.number = next(self.numbers)
        self.hub = hub
        self.instance = make_instance(clock=clock, **more)
        self.sync = InstanceSync([self.instance], SALT)

    def publish(self) -> None:
        message = json.loads(json.dumps(self.sync.local_state().as_json()))
        self.hub.merge(self.number, WorkerState.from_json(message))

    def apply(self) -> Instance:
        self.sync.apply(self.hub.state_for(self.number))
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


def test_the_latest_toggle_applies_to_all_workers(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    one.instance.disable()
    one.publish()
    assert not other.apply().enabled
    clock.advance(0.1)
    other.instance.enable()
    one.publish()  # repeats its state, which is older
    other.publish()
    assert other.apply().enabled
    assert one.apply().enabled


def test_a_park_reaches_all_workers_and_is_never_shortened(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    one.instance.default.park(30)
    other.instance.default.park(5)
    for worker in pair:
        worker.publish()
    assert [w.apply().default.parked_for_s() for w in pair] == [30, 30]
    assert other.instance.default.park_reason() == "rate_limited"
    clock.advance(31)
    assert other.apply().default.parked_for_s() == 0


def test_a_refused_key_is_parked_in_all_workers_until_it_is_enabled(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    for worker in pair:
        worker.instance.park_bad_key()
        worker.publish()
    assert [w.apply().bad_keys_in_a_row for w in pair] == [1, 1]
    clock.advance(1)
    other.instance.enable()
    other.publish()
    one.publish()
    assert [w.apply().default.park_reason() for w in pair] == [None, None]
    clock.advance(1)
    one.instance.park_bad_key()
    one.publish()
    assert other.apply().default.park_reason() == "bad_key"


@pytest.mark.proves("F56")
def test_the_state_of_a_model_is_shared_and_leaves_others_alone(
    pair: tuple[Worker, Worker],
) -> None:
    one, other = pair
    for worker in pair:
        worker.instance.on("a model")
    one.instance.on("a model").park(30)
    one.instance.on("a model").health.failure()
    one.instance.on("gone").park_unknown_model()
    one.publish()
    instance = other.apply()
    assert instance.on("a model").parked_for_s() == 30
    assert instance.on("a model").health.success_rate() == 0
    assert instance.default.is_available
    assert instance.default.health.success_rate() == 1
    assert not instance.on("gone").is_unknown, "it was never requested here"
    assert other.apply().on("gone").is_unknown
    one.instance.enable()
    one.publish()
    assert not other.apply().on("gone").is_unknown


def test_a_doubt_about_a_key_is_shared_as_a_doubt(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    for request in ("one", "two"):
        one.instance.suspect_key(request)
    one.publish()
    assert other.apply().default.park_reason() == "bad_key"
    assert other.instance.default.is_last_resort, "its other requests may be answered"
    clock.advance(1)
    other.instance.accept_key(clock())
    one.publish()
    assert other.apply().default.park_reason() is None, "it knows better"
    one.instance.park_bad_key()
    clock.advance(700)
    one.instance.park_bad_key()
    one.publish()
    assert not other.apply().default.is_last_resort


def test_a_reload_unparks_only_refused_keys_and_unknown_models(
    pair: tuple[Worker, Worker], hub: Hub, clock: FakeClock
) -> None:
    one, _other = pair
    one.instance.default.park_unknown_model()
    one.publish()
    assert _other.apply().default.park_reason() == "unknown_model"
    one.instance.park_bad_key()
    one.instance.default.park(700)
    one.instance.disable()
    one.publish()
    clock.advance(1)
    hub.unpark(clock())
    for worker in pair:
        assert worker.apply().default.park_reason() == "rate_limited"
        assert not worker.instance.enabled


def test_a_circuit_opens_and_closes_in_all_workers(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    late = other.instance.default.breaker.acquire()
    for _ in range(3):
        one.instance.default.breaker.failure(one.instance.default.breaker.acquire())
    one.publish()
    clock.advance(0.5)
    breaker = other.apply().default.breaker
    assert breaker.state() is State.OPEN
    assert breaker.ready_in_s() == 59.5
    breaker.success(late)
    assert breaker.state() is State.OPEN
    clock.advance(59.5)
    assert [w.instance.default.breaker.state() for w in pair] == [State.HALF_OPEN] * 2
    other.publish()
    assert one.apply().default.breaker.state() is State.HALF_OPEN
    breaker.success(breaker.acquire())
    other.publish()
    assert one.apply().default.breaker.state() is State.CLOSED


def test_a_failed_probe_in_another_worker_restarts_the_pause(
    pair: tuple[Worker, Worker], clock: FakeClock
) -> None:
    one, other = pair
    for _ in range(3):
        one.instance.default.breaker.failure(one.instance.default.breaker.acquire())
    one.publish()
    other.apply()
    clock.advance(60)
    one.instance.default.breaker.failure(one.instance.default.breaker.acquire())
    one.publish()
    assert other.apply().default.breaker.ready_in_s() == 60


def test_the_latest_reason_is_shared(pair: tuple[Worker, Worker], clock: FakeClock) -> None:
    one, other = pair
    one.instance.default.last_reason = "500"
    one.publish()
    assert other.apply().default.last_reason == "500"
    clock.advance(1)
    other.instance.default.last_reason = None
    other.publish()
    assert one.apply().default.last_reason is None


def test_figures_are_summed_once(pair: tuple[Worker, Worker], clock: FakeClock) -> None:
    one, other = pair
    serve(one.instance, 3)
    other.instance.total_requests = 1
    other.instance.health.failure()
    one.instance.in_flight = 2
    for _ in range(5):
        for worker in pair:
            worker.publish()
        for worker in pair:
            worker.apply()
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


def test_a_new_worker_gets_the_figures_of_a_removed_one(
    pair: tuple[Worker, Worker], hub: Hub, clock: FakeClock
) -> None:
    one, _other = pair
    serve(one.instance, 3)
    one.instance.in_flight = 2
    one.instance.disable()
    one.publish()
    hub.remove(one.number)
    hub.remove(one.number)
    instance = Worker(hub, clock).apply()
    assert (instance.enabled, instance.elsewhere.total_requests) == (False, 3)
    assert instance.elsewhere.in_flight == 0
    assert instance.health.latency_ms() == 100


def test_another_key_of_the_same_name_gets_only_the_toggle(hub: Hub, clock: FakeClock) -> None:
    old = Worker(hub, clock)
    serve(old.instance)
    old.instance.park_bad_key()
    old.instance.disable()
    old.publish()
    new = Worker(hub, clock, key=Secret("another-key-secret")).apply()
    assert new.name == old.instance.name
    assert (new.enabled, new.default.park_reason(), new.elsewhere.total_requests) == (
        False,
        None,
        0,
    )


def test_the_shared_state_contains_no_key(hub: Hub, clock: FakeClock) -> None:
    worker = Worker(hub, clock)
    serve(worker.instance)
    worker.instance.default.park(5)
    state = worker.sync.local_state()
    assert len(state.marks) == 1
    assert KEYS[0] not in str(state)


MARKS = st.dictionaries(
    st.sampled_from("abc"),
    st.lists(st.integers(0, 3), min_size=2, max_size=2),
)


@given(st.lists(MARKS, max_size=5), st.randoms())
def test_order_and_repetition_of_marks_do_not_matter(
    updates: list[dict[str, list[int]]], rng: Any
) -> None:
    once, again = WorkerState(), WorkerState()
    for marks in updates:
        once.merge_marks(marks)
    for marks in rng.sample(updates * 2, len(updates) * 2):
        again.merge_marks(marks)
    assert once.marks == again.marks


def test_samples_of_different_ages_are_added_with_their_decay() -> None:
    old, new = Sample(0.0, 2.0, 2.0), Sample(120.0, 1.0, 0.0)
    assert old.plus(new) == new.plus(old) == Sample(120.0, 2.0, 1.0)
