"""Events in any order: the scheduler and its instances against a plain model."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from clock import FakeClock
from fakes import make_instance
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nexus_gateway.errors import NoCandidate
from nexus_gateway.provider import Outcome, Scope, Verdict
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance, ModelState
from nexus_gateway.routing.policies import Fastest, RoundRobin, Smart
from nexus_gateway.routing.scheduler import EARLY_PROBE_EVERY_S, RoutingTarget, Scheduler
from nexus_gateway.secret import Secret

POLICIES = ("smart", "fastest", "round-robin")
SUCCESS = Verdict(Outcome.SUCCESS, "ok")
FAILURE = Verdict(Outcome.FAILURE, "answered 500", 500, scope=Scope.ADDRESS)  # counts at once
BAD_KEY = Verdict(Outcome.BAD_KEY, "the key was refused (401)", 401)
REFUSED = Verdict(Outcome.REFUSED, "refused with 400", 400)
LEFT = Verdict(Outcome.CANCELLED, "the caller left")
NEVER = float("-inf")


def limited(park_s: float | None) -> Verdict:
    return Verdict(Outcome.RATE_LIMITED, "rate limited", 429, park_s=park_s)


VERDICTS = st.sampled_from(
    [SUCCESS, FAILURE, FAILURE, FAILURE, BAD_KEY, REFUSED, LEFT, limited(7), limited(90)]
)
TIMES = st.sampled_from([0.5, 2.0, 7.0, 30.0, 60.0, 600.0])


def scheduler_of(clock: FakeClock, seed: int = 1) -> Scheduler:
    policies = {"smart": Smart(), "fastest": Fastest(), "round-robin": RoundRobin()}
    return Scheduler(clock, random.Random(seed), policies)


def instances_of(clock: FakeClock, count: int) -> list[Instance]:
    instances = [
        make_instance(clock=clock, number=n, key=Secret(f"k{n}")) for n in range(1, count + 1)
    ]
    assert len({i.name for i in instances}) == count
    return instances


@dataclass
class Model:
    """The expected state of an instance, as simple as possible."""

    state: State = State.CLOSED
    era: int = 0
    failures: int = 0
    opened_s: float = NEVER
    turn: tuple[float, bool] = (0.0, False)
    limited_until_s: float = NEVER
    resting_until_s: float = NEVER
    refused_until_s: float = NEVER
    refused_in_a_row: int = 0
    enabled: bool = True
    in_flight: int = 0
    probe_out: bool = False

    def move(self, state: State, failures: int = 0) -> None:
        self.state, self.failures, self.probe_out = state, failures, False
        self.era += 1

    def turned(self, now: float, opened: bool, failures: int = 0) -> None:
        self.turn = (now, opened)
        if opened:
            self.opened_s = now
        self.move(State.OPEN if opened else State.CLOSED, failures)

    def parked_for_s(self, now: float) -> float:
        until_s = max(self.limited_until_s, self.resting_until_s, self.refused_until_s)
        return max(0.0, until_s - now)

    def admits(self) -> bool:
        return self.state is State.CLOSED or (self.state is State.HALF_OPEN and not self.probe_out)


@dataclass
class Running:
    attempt: Attempt
    model: Model
    era: int
    probe: bool


class Interleavings(RuleBasedStateMachine):
    """Requests, time, toggles and state from other processes, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.scheduler = scheduler_of(self.clock)
        self.instances = instances_of(self.clock, 2)
        self.models = {i.name: Model() for i in self.instances}
        self.target = RoutingTarget(tuple(i.default for i in self.instances))
        self.running: list[Running] = []
        self.early_s = NEVER

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for model in self.models.values():
            if model.state is State.OPEN and self.clock() - model.opened_s >= 60:
                model.move(State.HALF_OPEN)

    @rule(policy=st.sampled_from(POLICIES), count=st.integers(1, 3))
    def begin(self, policy: str, count: int) -> None:
        for _ in range(count):
            self.begin_one(policy)

    def begin_one(self, policy: str) -> None:
        now = self.clock()
        usable = {n: m for n, m in self.models.items() if m.enabled and not m.parked_for_s(now)}
        fit = {name for name, model in usable.items() if model.admits()}
        shut = {n: m.opened_s for n, m in usable.items() if m.state is State.OPEN}
        last_resort = bool(shut) and now - self.early_s >= EARLY_PROBE_EVERY_S
        try:
            attempt = self.scheduler.attempt(self.target, policy, AttemptHistory())
        except NoCandidate as error:
            assert not fit
            assert not last_resort
            self.check_refusal(error)
            return
        name = attempt.instance.name
        model = self.models[name]
        if fit:
            assert name in fit
        else:
            assert last_resort
            assert model.opened_s == min(shut.values())
            self.early_s = now
            model.move(State.HALF_OPEN)
        probe = model.state is State.HALF_OPEN
        model.probe_out = model.probe_out or probe
        model.in_flight += 1
        self.running.append(Running(attempt, model, model.era, probe))

    def check_refusal(self, error: NoCandidate) -> None:
        now = self.clock()
        enabled = [m for m in self.models.values() if m.enabled]
        waits = [
            max(
                m.parked_for_s(now),
                min(m.opened_s + 60, self.early_s + 2) - now
                if m.state is State.OPEN
                else float(m.probe_out),
            )
            for m in enabled
            if m.refused_until_s <= now
        ]
        limited = [m.limited_until_s > now >= m.refused_until_s for m in enabled]
        assert error.status == (429 if enabled and all(limited) else 503)
        returning = [m for m in enabled if m.refused_until_s <= now]
        assert ("Retry-After" in error.headers) == bool(returning)
        if returning:
            retry_after_s = int(error.headers["Retry-After"])
            assert retry_after_s - 1 < max(min(waits), 1) <= retry_after_s

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        running = data.draw(self.any_of_them())
        running.attempt.first_content(8000, stream=True)
        if running.probe and running.era == running.model.era:
            running.model.turned(self.clock(), False, failures=2)
            running.era, running.probe = running.model.era, False

    @precondition(lambda self: self.running)
    @rule(data=st.data(), verdict=VERDICTS, count=st.integers(1, 3))
    def end(self, data: st.DataObject, verdict: Verdict, count: int) -> None:
        for running in self.running[:count] if count > 1 else [data.draw(self.any_of_them())]:
            self.end_one(running, verdict)

    def any_of_them(self) -> st.SearchStrategy[Running]:
        return st.sampled_from(self.running)

    def end_one(self, running: Running, verdict: Verdict) -> None:
        self.running.remove(running)
        running.attempt.end(verdict)
        running.attempt.end(FAILURE)  # a second end changes nothing
        model, now = running.model, self.clock()
        model.in_flight -= 1
        if verdict.outcome is Outcome.SUCCESS:
            model.refused_in_a_row = 0
        elif verdict.outcome is Outcome.RATE_LIMITED:
            model.limited_until_s = max(model.limited_until_s, now + (verdict.park_s or 0))
        elif verdict.outcome is Outcome.BAD_KEY and model.refused_until_s <= now:
            model.refused_until_s = now + min(600 * 2**model.refused_in_a_row, 3600)
            model.refused_in_a_row += 1
        if running.era == model.era:
            self.judge(running, verdict.outcome)

    def judge(self, running: Running, outcome: Outcome) -> None:
        """Record an outcome in the model; attempts from before the last turn are left out."""
        model = running.model
        if outcome is Outcome.SUCCESS:
            model.failures = 0
            if model.state is State.HALF_OPEN:
                model.turned(self.clock(), False)
        elif outcome is Outcome.FAILURE:
            model.failures += 1
            if model.state is State.HALF_OPEN or model.failures == 3:
                model.turned(self.clock(), True)
        elif running.probe:
            model.probe_out = False

    @rule(number=st.integers(0, 1), enabled=st.booleans())
    def toggle(self, number: int, enabled: bool) -> None:
        instance = self.instances[number]
        model = self.models[instance.name]
        instance.enable() if enabled else instance.disable()
        model.enabled = enabled
        if enabled:
            model.refused_until_s, model.refused_in_a_row = NEVER, 0

    @rule(number=st.integers(0, 1), seconds=st.sampled_from([0.0, 3.0, 45.0]))
    def parked_elsewhere(self, number: int, seconds: float) -> None:
        instance = self.instances[number]
        until_s = self.clock() + seconds
        instance.default.merge_state(ModelState({"rate_limited": [until_s]}))
        model = self.models[instance.name]
        model.limited_until_s = max(model.limited_until_s, until_s)

    @rule(number=st.integers(0, 1), seconds=st.sampled_from([0.0, 3.0, 45.0]))
    def rests(self, number: int, seconds: float) -> None:
        instance = self.instances[number]
        instance.default.cool_down(seconds)
        model = self.models[instance.name]
        model.resting_until_s = max(model.resting_until_s, self.clock() + seconds)

    @rule(number=st.integers(0, 1), opened=st.booleans(), ago_s=st.sampled_from([0.0, 1.0, 20.0]))
    def turned_elsewhere(self, number: int, opened: bool, ago_s: float) -> None:
        instance = self.instances[number]
        model = self.models[instance.name]
        turn = (self.clock() - ago_s, opened)
        instance.default.merge_state(ModelState({"circuit": [*turn, False]}))
        instance.default.merge_state(
            ModelState({"circuit": [*turn, False]})
        )  # merging twice is merging once
        if turn > model.turn:
            model.turned(*turn)

    @invariant()
    def each_instance_agrees_with_its_model(self) -> None:
        now = self.clock()
        for instance in self.instances:
            model = self.models[instance.name]
            assert instance.default.breaker.state() is model.state
            assert instance.default.breaker.admits() == model.admits()
            assert instance.in_flight == model.in_flight
            assert instance.enabled == model.enabled
            assert instance.default.parked_for_s() == pytest.approx(
                model.parked_for_s(now), abs=1e-6
            )

    @invariant()
    def a_half_open_circuit_has_at_most_one_probe(self) -> None:
        for model in self.models.values():
            out = [r for r in self.running if r.model is model and r.probe and r.era == model.era]
            assert len(out) == (model.state is State.HALF_OPEN and model.probe_out)

    def teardown(self) -> None:
        """Once all have ended and time has passed, every instance is available."""
        while self.running:
            self.running.pop().attempt.end(LEFT)
        self.clock.advance(3600)
        for instance in self.instances:
            assert instance.in_flight == 0
            instance.enable()
            assert instance.available_in_s() == 0


Interleavings.TestCase.settings = settings(stateful_step_count=50)
PROVES = pytest.mark.proves("I-10", "I-12", "I-13", "I-14", "I-16", "I-17", "I-06")
TestInterleavings = pytest.mark.unmeasured(PROVES(Interleavings.TestCase))


@pytest.mark.proves("I-13")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("count", [5, 20])
def test_circuits_that_are_half_open_together_get_one_probe_each(policy: str, count: int) -> None:
    clock = FakeClock()
    scheduler, instances = scheduler_of(clock), instances_of(clock, count)
    for instance in instances:
        for _ in range(3):
            instance.default.breaker.failure(instance.default.breaker.acquire())
    clock.advance(60)
    target = RoutingTarget(tuple(i.default for i in instances))
    probes = [scheduler.attempt(target, policy, AttemptHistory()) for _ in range(count)]
    assert {probe.instance.name for probe in probes} == {i.name for i in instances}
    for _ in range(100):
        with pytest.raises(NoCandidate):
            scheduler.attempt(target, policy, AttemptHistory())
    for probe in probes:
        probe.first_content(8000, stream=True)
    assert len([scheduler.attempt(target, policy, AttemptHistory()) for _ in range(100)]) == 100


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("count", [5, 20])
def test_requests_are_spread_evenly_when_all_parks_end_at_once(policy: str, count: int) -> None:
    clock = FakeClock()
    scheduler, instances = scheduler_of(clock), instances_of(clock, count)
    target = RoutingTarget(tuple(i.default for i in instances))
    for n, instance in enumerate(instances):
        clock.advance(0.5)
        instance.default.park(60 - 0.5 * n)  # parked at different times, until the same one
    clock.advance(60 - 0.5 * count)
    with pytest.raises(NoCandidate) as raised:
        scheduler.attempt(target, policy, AttemptHistory())
    assert raised.value.status == 429
    clock.advance(0.5)
    attempts = [scheduler.attempt(target, policy, AttemptHistory()) for _ in range(40 * count)]
    shares = Counter(attempt.instance.name for attempt in attempts)
    assert len(shares) == count
    assert min(shares.values()) >= 20
    assert max(shares.values()) <= 65
