"""One key of one provider: its name, models and parks."""

from __future__ import annotations

from typing import Any

import pytest
from clock import FakeClock
from fakes import KEYS, Fake, Other, make_instance
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.routing.breaker import State
from nexus_gateway.telemetry.metrics.definitions import AVAILABLE, MODEL_AVAILABLE
from nexus_gateway.telemetry.metrics.gauges import state_of
from nexus_gateway.web.handlers.health import status_of


class Keyless(Fake):
    title = "Local"
    needs_key = False


def test_a_name_has_the_providers_title_and_the_keys_number() -> None:
    assert make_instance(number=2).name == "Fake (Key #2)"
    assert make_instance(provider=Keyless).name == "Local"


@pytest.mark.proves("S-06")
def test_the_key_is_never_shown() -> None:
    instance = make_instance()
    for shown in (repr(instance), str(instance), f"{instance}", repr(vars(instance))):
        assert KEYS[0] not in shown
    assert repr(instance) == "<Instance Fake (Key #1)>"


def test_it_serves_its_own_model_and_its_providers_models() -> None:
    instance = make_instance(model="mine")
    assert all(instance.serves(m) for m in ("mine", "fake-large", "fake-small"))
    assert not instance.serves("fake")


@pytest.mark.parametrize(
    ("settings", "model", "takes"),
    [
        ({}, "fake-large", True),
        ({}, "fake-small", False),
        ({}, "unlisted", True),  # the caller named it
        ({"model": "unlisted"}, "unlisted", False),  # the gateway's choice
        ({"model": "unlisted", "takes_images": True}, "unlisted", True),
        ({"takes_images": False}, "fake-large", False),
        ({"takes_images": False}, "unlisted", True),  # does not concern other models
        ({"provider": Other}, "other-text", False),
    ],
)
def test_images_are_accepted_as_declared(settings: dict[str, Any], model: str, takes: bool) -> None:
    assert make_instance(**settings).takes_images_with(model) is takes


@pytest.mark.proves("I-06")
@given(st.lists(st.tuples(st.floats(0, 3600), st.floats(0, 100)), max_size=20))
def test_a_park_only_gets_longer(parks: list[tuple[float, float]]) -> None:
    clock = FakeClock()
    instance = make_instance(clock=clock)
    for park_s, passed_s in parks:
        before_s = instance.default.parked_for_s()
        instance.default.park(park_s)
        after_s = instance.default.parked_for_s()
        assert after_s >= before_s
        assert after_s == pytest.approx(max(before_s, park_s), abs=1e-6)
        clock.advance(passed_s)
        assert instance.default.parked_for_s() == pytest.approx(
            max(0.0, after_s - passed_s), abs=1e-6
        )


@pytest.mark.proves("I-04")
def test_a_bad_key_is_parked_longer_each_time() -> None:
    clock = FakeClock()
    instance = make_instance(clock=clock)
    for expected_s in (600.0, 1200.0, 2400.0, 3600.0, 3600.0):
        instance.park_bad_key()
        assert instance.default.parked_for_s() == expected_s
        assert instance.default.park_reason() == "bad_key"
        clock.advance(expected_s)
        assert instance.default.park_reason() is None
    instance.bad_keys_in_a_row = 0
    instance.park_bad_key()
    assert instance.default.parked_for_s() == 600.0


def test_a_key_that_works_after_its_refusal_is_parked_no_more() -> None:
    clock = FakeClock()
    instance = make_instance(clock=clock)
    for request in ("one", "two"):
        instance.suspect_key(request)
    assert instance.default.parked_for_s() == 600.0
    instance.accept_key(clock())
    assert instance.default.park_reason() == "bad_key", "it may have begun before the refusal"
    clock.advance(1)
    instance.accept_key(clock())
    assert instance.default.park_reason() is None


def test_a_burst_of_refusals_parks_once_and_no_park_exceeds_an_hour() -> None:
    clock = FakeClock()
    instance = make_instance(clock=clock)
    for _ in range(50):
        instance.park_bad_key()
    assert instance.default.parked_for_s() == 600.0
    for _ in range(2000):
        clock.advance(3600.0)
        instance.park_bad_key()
    assert instance.default.parked_for_s() == 3600.0


def test_the_worse_reason_of_a_park_is_reported() -> None:
    instance = make_instance(clock=FakeClock())
    instance.default.park(7.0)
    assert instance.default.park_reason() == "rate_limited"
    instance.park_bad_key()
    assert instance.default.park_reason() == "bad_key"


def test_enabling_unparks_a_bad_key_and_changes_nothing_else() -> None:
    clock = FakeClock()
    instance = make_instance(clock=clock)
    for _ in range(3):
        instance.default.breaker.failure(instance.default.breaker.acquire())
    instance.default.park(7.0)
    instance.park_bad_key()
    instance.disable()
    assert instance.available_in_s() is None
    instance.enable()
    assert instance.enabled
    assert instance.default.park_reason() == "rate_limited"
    assert instance.default.breaker.state() is State.OPEN
    instance.park_bad_key()
    assert instance.default.parked_for_s() == 600.0


def test_it_is_available_when_neither_parked_nor_open() -> None:
    clock = FakeClock()
    instance = make_instance(clock=clock)
    assert instance.available_in_s() == 0.0
    instance.default.park(7.0)
    assert instance.available_in_s() == 7.0
    for _ in range(3):
        instance.default.breaker.failure(instance.default.breaker.acquire())
    assert instance.available_in_s() == 60.0
    instance.default.park(90.0)
    assert instance.available_in_s() == 90.0


def test_a_half_open_instance_may_be_chosen_but_does_not_count_as_available() -> None:
    clock = FakeClock()
    instance = make_instance(clock=clock)
    assert instance.is_available
    instance.default.park(7.0)
    assert not instance.is_available
    clock.advance(7.0)
    for _ in range(3):
        instance.default.breaker.failure(instance.default.breaker.acquire())
    clock.advance(60.0)
    assert (instance.available_in_s(), instance.is_available) == (0.0, False)
    instance.default.breaker.success(instance.default.breaker.acquire())
    assert instance.is_available
    instance.disable()
    assert not instance.is_available


def test_if_only_probes_are_possible_the_status_is_degraded() -> None:
    clock = FakeClock()
    first, second = (make_instance(clock=clock, number=number) for number in (1, 2))

    def status() -> str:
        return status_of([first, second])

    assert status() == "healthy"
    for instance in (first, second):
        for _ in range(3):
            instance.default.breaker.failure(instance.default.breaker.acquire())
    assert status() == "unhealthy"
    clock.advance(60.0)
    assert status() == "degraded"
    gauges = state_of([first, second])
    assert [gauges[(AVAILABLE.name, "fake", i.name)] for i in (first, second)] == [0, 0]
    assert gauges[(MODEL_AVAILABLE.name, "fake-large")] == 0
    first.default.breaker.success(first.default.breaker.acquire())
    assert status() == "degraded"
    second.disable()
    assert status() == "healthy"
    first.disable()
    assert status() == "unhealthy"
