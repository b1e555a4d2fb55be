"""What an attempt's end leaves behind: a circuit that turned, the reason of a failure."""

from __future__ import annotations

import pytest
from clock import FakeClock
from fakes import make_instance

from nexus_gateway.provider import Outcome, Verdict
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance

OK = Verdict(Outcome.SUCCESS, "ok")
FAILED = Verdict(Outcome.FAILURE, "answered 500", 500)
LIMITED = Verdict(Outcome.RATE_LIMITED, "rate limited", 429, park_s=7)
LEFT = Verdict(Outcome.CANCELLED, "the caller left")
Change = tuple[str, int] | None


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def instance(clock: FakeClock) -> Instance:
    return make_instance(clock=clock)


def lease(instance: Instance) -> Attempt:
    permit = instance.breaker.acquire()
    return Attempt(instance, instance.model, permit, AttemptHistory(), instance._clock)


def change(attempt: Attempt) -> Change:
    return (attempt.circuit, attempt.failures_in_a_row) if attempt.circuit else None


def ended(instance: Instance, *verdicts: Verdict) -> list[Change]:
    """End attempts one after the other; return what each did to the circuit."""
    made = []
    for verdict in verdicts:
        one = lease(instance)
        one.end(verdict)
        made.append(change(one))
    return made


def test_a_success_from_before_it_opened_takes_no_reason_away(instance: Instance) -> None:
    slow = lease(instance)
    ended(instance, FAILED, FAILED, FAILED)
    slow.end(OK)
    assert instance.breaker.state() is State.OPEN
    assert instance.last_reason == "answered 500"


def test_nor_does_one_from_before_a_park(instance: Instance, clock: FakeClock) -> None:
    slow = lease(instance)
    ended(instance, LIMITED)
    slow.end(OK)
    assert instance.last_reason == "rate limited"
    clock.advance(7)
    ended(instance, OK)
    assert instance.last_reason is None


def test_one_that_counts_does(instance: Instance, clock: FakeClock) -> None:
    ended(instance, FAILED, OK)
    assert instance.last_reason is None
    ended(instance, FAILED, FAILED, FAILED)
    clock.advance(60)
    ended(instance, OK)
    assert (instance.breaker.state(), instance.last_reason) == (State.CLOSED, None)


def test_a_circuit_is_told_when_it_opens_and_when_it_closes(
    instance: Instance, clock: FakeClock
) -> None:
    assert ended(instance, FAILED, OK, LEFT) == [None] * 3
    assert ended(instance, FAILED, FAILED, FAILED) == [None, None, ("opened", 3)]
    for _ in range(3):  # a probe that fails is no news
        clock.advance(60)
        assert ended(instance, FAILED) == [None]
    clock.advance(60)
    assert ended(instance, OK, OK) == [("closed", 0), None]
    assert ended(instance, FAILED, FAILED, FAILED)[-1] == ("opened", 3)


def test_a_probe_that_begins_to_answer_has_closed_it_when_it_ends_well(
    instance: Instance, clock: FakeClock
) -> None:
    ended(instance, FAILED, FAILED, FAILED)
    for verdict, turned in ((FAILED, None), (OK, ("closed", 0))):
        clock.advance(60)
        probe = lease(instance)
        probe.first_content(1000, stream=True)
        assert (instance.breaker.state(), change(probe)) == (State.CLOSED, None)
        probe.end(verdict)
        assert change(probe) == turned


def test_where_the_probes_caller_leaves_the_next_good_answer_tells_that_it_closed(
    instance: Instance, clock: FakeClock
) -> None:
    ended(instance, FAILED, FAILED, FAILED)
    clock.advance(60)
    probe = lease(instance)
    probe.first_content(1000, stream=True)
    probe.end(LEFT)
    assert (instance.breaker.state(), change(probe)) == (State.CLOSED, None)
    assert ended(instance, LEFT, OK, OK) == [None, ("closed", 0), None]


def test_what_closed_in_another_process_is_told_there(instance: Instance, clock: FakeClock) -> None:
    ended(instance, FAILED, FAILED, FAILED)
    clock.advance(61)
    instance.breaker.merge_remote((clock(), False))
    assert ended(instance, OK) == [None]


def test_whoever_makes_it_open_again_before_that_is_told_with_all_that_failed(
    instance: Instance, clock: FakeClock
) -> None:
    ended(instance, FAILED, FAILED, FAILED)
    clock.advance(60)
    probe = lease(instance)
    probe.first_content(1000, stream=True)
    assert ended(instance, FAILED) == [("opened", 4)]
    probe.end(OK)
    assert change(probe) is None


def test_what_another_process_saw_is_not_told_here(instance: Instance, clock: FakeClock) -> None:
    slow, failing = lease(instance), lease(instance)
    clock.advance(1)
    instance.breaker.merge_remote((clock(), True))
    assert instance.breaker.state() is State.OPEN
    slow.end(OK)
    failing.end(FAILED)
    assert (change(slow), change(failing)) == (None, None)
    clock.advance(60)
    assert ended(instance, FAILED) == [None]
    clock.advance(60)
    assert ended(instance, OK) == [("closed", 0)]  # but who proves it well says so
