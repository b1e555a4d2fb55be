"""The circuit breaker against a simple model, in virtual time."""

from __future__ import annotations

import pytest
from clock import FakeClock
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nexus_gateway.routing.breaker import Breaker, Permit, State


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker(clock)


def fail(breaker: Breaker, times: int = 3) -> None:
    for _ in range(times):
        breaker.failure(breaker.acquire())


@pytest.mark.proves("I-10")
def test_three_failures_in_a_row_open_the_circuit(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.success(breaker.acquire())
    fail(breaker, 2)
    assert breaker.state() is State.CLOSED
    fail(breaker, 1)
    assert breaker.state() is State.OPEN
    with pytest.raises(RuntimeError):
        breaker.acquire()


@pytest.mark.proves("F09", "F10", "F11", "I-11", "I-13")
def test_after_a_minute_one_probe_is_admitted(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker)
    clock.advance(59.9)
    assert not breaker.admits()
    assert breaker.ready_in_s() == pytest.approx(0.1)
    clock.advance(0.1)
    assert breaker.state() is State.HALF_OPEN
    probe = breaker.acquire()
    assert not any(breaker.admits() for _ in range(200))
    assert breaker.ready_in_s() > 0
    breaker.release(probe)
    assert breaker.admits()
    breaker.failure(breaker.acquire())
    assert breaker.state() is State.OPEN
    clock.advance(60)
    breaker.success(breaker.acquire())
    assert breaker.state() is State.CLOSED


@pytest.mark.proves("I-14")
def test_late_outcomes_are_dropped(breaker: Breaker, clock: FakeClock) -> None:
    late = [breaker.acquire() for _ in range(10)]
    fail(breaker)
    clock.advance(30)
    for permit in late[:5]:
        breaker.failure(permit)
    assert breaker.ready_in_s() == 30
    clock.advance(30)
    breaker.acquire()
    for permit in late[5:]:
        breaker.success(permit)
        breaker.release(permit)
    assert breaker.state() is State.HALF_OPEN
    assert not breaker.admits()


def test_a_probes_first_token_closes_the_circuit_on_probation(
    breaker: Breaker, clock: FakeClock
) -> None:
    fail(breaker)
    clock.advance(60)
    permit = breaker.first_token(breaker.acquire())
    assert breaker.state() is State.CLOSED
    breaker.failure(permit)
    assert breaker.state() is State.OPEN
    clock.advance(60)
    breaker.success(breaker.first_token(breaker.acquire()))
    fail(breaker, 2)
    assert breaker.state() is State.CLOSED


def test_an_early_probe_closes_the_circuit(breaker: Breaker) -> None:
    fail(breaker)
    permit = breaker.acquire_early()
    assert permit.probe
    with pytest.raises(RuntimeError):
        breaker.acquire_early()
    breaker.success(permit)
    assert breaker.state() is State.CLOSED


class BreakerMachine(RuleBasedStateMachine):
    """Attempts begin and end in any order; the model counts by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.breaker = Breaker(self.clock)
        self.running: list[tuple[Permit, int]] = []
        self.era = 0
        self.model = State.CLOSED
        self.failures = 0
        self.open_until = 0.0
        self.probes = 0

    def move(self, state: State, failures: int = 0) -> None:
        self.model, self.failures, self.probes = state, failures, 0
        self.era += 1

    @rule(seconds=st.sampled_from([1.0, 29.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        if self.model is State.OPEN and self.clock() >= self.open_until:
            self.move(State.HALF_OPEN)

    @rule()
    def begin(self) -> None:
        free = self.model is State.CLOSED or (self.model is State.HALF_OPEN and not self.probes)
        assert self.breaker.admits() == free
        if free:
            self.probes += self.model is State.HALF_OPEN
            self.running.append((self.breaker.acquire(), self.era))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(["success", "failure", "release", "proved"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        permit, era = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if outcome == "proved":
            after = self.breaker.first_token(permit)
            if era == self.era and self.model is State.HALF_OPEN:
                self.move(State.CLOSED, failures=2)
                era = self.era
            self.running.append((after, era))
            return
        getattr(self.breaker, outcome)(permit)
        if era == self.era:
            self.count(outcome)

    def count(self, outcome: str) -> None:
        if outcome == "release":
            self.probes = 0
        elif outcome == "success":
            if self.model is State.HALF_OPEN:
                self.move(State.CLOSED)
            self.failures = 0
        else:
            self.failures += 1
            if self.model is State.HALF_OPEN or self.failures == 3:
                self.open_until = self.clock() + 60
                self.move(State.OPEN)

    @invariant()
    def states_agree(self) -> None:
        assert self.breaker.state() is self.model
        current = [p for p, era in self.running if p.probe and era == self.era]
        assert len(current) <= 1


TestBreakerMachine = pytest.mark.unmeasured(BreakerMachine.TestCase)
