"""What the end of an attempt records: a circuit that turned, the reason of a failure."""

from __future__ import annotations

import pytest
from clock import FakeClock
from fakes import make_instance

from nexus_gateway.provider import Outcome, Scope, Verdict
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance

OK = Verdict(Outcome.SUCCESS, "ok")
FAILED = Verdict(Outcome.FAILURE, "answered 500", 500, scope=Scope.ADDRESS)  # counts at once
LIMITED = Verdict(Outcome.RATE_LIMITED, "rate limited", 429, park_s=7)
LEFT = Verdict(Outcome.CANCELLED, "the caller left")
Change = tuple[str, int] | None


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def instance(clock: FakeClock) -> Instance:
    return make_instance(clock=clock)


def begin(instance: Instance) -> Attempt:
    permit = instance.default.breaker.acquire()
    return Attempt(instance.default, permit, AttemptHistory(), instance._clock)


def begin_probe(instance: Instance, clock: FakeClock) -> Attempt:
    """Begin the probe of an open circuit, and let its first content come."""
    clock.advance(60)
    probe = begin(instance)
    probe.first_content(1000, stream=True)
    return probe


def circuit_change(attempt: Attempt) -> Change:
    return (attempt.circuit, attempt.failures_in_a_row) if attempt.circuit else None


def end_with(instance: Instance, *verdicts: Verdict) -> list[Change]:
    """End attempts one after the other; return the circuit's change at each."""
    changes = []
    for verdict in verdicts:
        attempt = begin(instance)
        attempt.end(verdict)
        changes.append(circuit_change(attempt))
    return changes


def test_a_success_that_began_before_the_circuit_opened_keeps_the_reason(
    instance: Instance,
) -> None:
    slow = begin(instance)
    end_with(instance, FAILED, FAILED, FAILED)
    slow.end(OK)
    assert instance.default.breaker.state() is State.OPEN
    assert instance.default.last_reason == "answered 500"


def test_a_success_that_began_before_a_park_keeps_the_reason(
    instance: Instance, clock: FakeClock
) -> None:
    slow = begin(instance)
    end_with(instance, LIMITED)
    slow.end(OK)
    assert instance.default.last_reason == "rate limited"
    clock.advance(7)
    end_with(instance, OK)
    assert instance.default.last_reason is None


def test_a_success_that_counts_removes_the_reason(instance: Instance, clock: FakeClock) -> None:
    end_with(instance, FAILED, OK)
    assert instance.default.last_reason is None
    end_with(instance, FAILED, FAILED, FAILED)
    clock.advance(60)
    end_with(instance, OK)
    assert (instance.default.breaker.state(), instance.default.last_reason) == (State.CLOSED, None)


def test_a_circuit_is_reported_when_it_opens_and_when_it_closes(
    instance: Instance, clock: FakeClock
) -> None:
    assert end_with(instance, FAILED, OK, LEFT) == [None] * 3
    assert end_with(instance, FAILED, FAILED, FAILED) == [None, None, ("opened", 3)]
    for _ in range(3):  # a failed probe changes nothing
        clock.advance(60)
        assert end_with(instance, FAILED) == [None]
    clock.advance(60)
    assert end_with(instance, OK, OK) == [("closed", 0), None]
    assert end_with(instance, FAILED, FAILED, FAILED)[-1] == ("opened", 3)


def test_a_probe_that_succeeds_reports_the_closed_circuit_at_its_end(
    instance: Instance, clock: FakeClock
) -> None:
    end_with(instance, FAILED, FAILED, FAILED)
    for verdict, turned in ((FAILED, None), (OK, ("closed", 0))):
        probe = begin_probe(instance, clock)
        assert (instance.default.breaker.state(), circuit_change(probe)) == (State.CLOSED, None)
        probe.end(verdict)
        assert circuit_change(probe) == turned


def test_if_the_probes_caller_leaves_the_next_success_reports_the_closed_circuit(
    instance: Instance, clock: FakeClock
) -> None:
    end_with(instance, FAILED, FAILED, FAILED)
    probe = begin_probe(instance, clock)
    probe.end(LEFT)
    assert (instance.default.breaker.state(), circuit_change(probe)) == (State.CLOSED, None)
    assert end_with(instance, LEFT, OK, OK) == [None, ("closed", 0), None]


def test_a_circuit_that_closed_in_another_process_is_reported_there(
    instance: Instance, clock: FakeClock
) -> None:
    end_with(instance, FAILED, FAILED, FAILED)
    clock.advance(61)
    instance.default.breaker.merge_remote((clock(), False, False))
    assert end_with(instance, OK) == [None]


def test_an_attempt_that_opens_it_again_reports_all_failures_in_a_row(
    instance: Instance, clock: FakeClock
) -> None:
    end_with(instance, FAILED, FAILED, FAILED)
    probe = begin_probe(instance, clock)
    assert end_with(instance, FAILED) == [("opened", 4)]
    probe.end(OK)
    assert circuit_change(probe) is None


def test_a_circuit_that_opened_in_another_process_is_not_reported_here(
    instance: Instance, clock: FakeClock
) -> None:
    slow, failing = begin(instance), begin(instance)
    clock.advance(1)
    instance.default.breaker.merge_remote((clock(), True, False))
    assert instance.default.breaker.state() is State.OPEN
    slow.end(OK)
    failing.end(FAILED)
    assert (circuit_change(slow), circuit_change(failing)) == (None, None)
    clock.advance(60)
    assert end_with(instance, FAILED) == [None]
    clock.advance(60)
    assert end_with(instance, OK) == [("closed", 0)]  # but the successful probe reports it
