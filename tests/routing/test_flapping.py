"""One upstream that fails half of the time, and two that always work."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest
from clock import FakeClock
from fakes import HELLO, KEYS, make_instance, serving

from nexus_gateway.errors import NoCandidate
from nexus_gateway.provider import Outcome, Scope, Verdict
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.policies import Fastest, RoundRobin, Smart
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

SUCCESS = Verdict(Outcome.SUCCESS, "ok")
FAILURE = Verdict(Outcome.FAILURE, "answered 500", 500, scope=Scope.ADDRESS)  # counts at once
POLICIES = ("smart", "fastest", "round-robin")
MOST_ATTEMPTS = 3
Fails = Callable[[float, random.Random], bool]


def by_chance(now: float, rng: random.Random) -> bool:
    return rng.random() < 0.5


def by_turns(now: float, rng: random.Random) -> bool:
    return now % 30 < 15


class Simulation:
    """Ten minutes of requests in virtual time: their attempts, latencies and outcomes."""

    def __init__(self, policy: str, fails: Fails) -> None:
        self.clock = FakeClock(0.0)
        self.rng = random.Random(38)
        policies = {"smart": Smart(), "fastest": Fastest(), "round-robin": RoundRobin()}
        self.scheduler = Scheduler(self.clock, self.rng, policies)
        self.instances = [make_instance(number=n, clock=self.clock) for n in (1, 2, 3)]
        self.flapper = self.instances[0]
        self.target = RoutingTarget(tuple(i.default for i in self.instances))
        self.policy, self.fails = policy, fails
        self.outcomes = Counter[str]()
        self.attempts = Counter[str]()
        self.turns: list[State] = []
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), do))

    def run(self, seconds: int, per_s: int) -> None:
        for n in range(seconds * per_s):
            self.at(n / per_s, lambda: self.attempt(AttemptHistory()))
        while self._agenda:
            self.clock.now, _, do = heapq.heappop(self._agenda)
            do()
            state = self.flapper.default.breaker.state()
            if not self.turns or self.turns[-1] is not state:
                self.turns.append(state)

    def attempt(self, history: AttemptHistory) -> None:
        try:
            attempt = self.scheduler.attempt(self.target, self.policy, history)
        except NoCandidate:
            self.outcomes["error"] += 1
            return
        self.attempts[attempt.instance.name] += 1
        latency_s = self.rng.uniform(0.2, 0.6)
        if attempt.instance is self.flapper and self.fails(self.clock(), self.rng):
            self.at(self.clock() + latency_s, lambda: self.fail(attempt, history))
        else:
            self.at(self.clock() + latency_s, lambda: attempt.first_content(8000, stream=True))
            self.at(self.clock() + latency_s + 1, lambda: self.succeed(attempt))

    def succeed(self, attempt: Attempt) -> None:
        attempt.end(SUCCESS)
        self.outcomes["success"] += 1

    def fail(self, attempt: Attempt, history: AttemptHistory) -> None:
        attempt.end(FAILURE)
        if len(history.attempts) < MOST_ATTEMPTS:
            self.attempt(history)
        else:
            self.outcomes["error"] += 1


@pytest.mark.unmeasured
@pytest.mark.proves("F38")
@pytest.mark.parametrize("fails", [by_chance, by_turns])
@pytest.mark.parametrize("policy", POLICIES)
def test_requests_succeed_beside_a_flapper_and_its_load_falls(policy: str, fails: Fails) -> None:
    simulation = Simulation(policy, fails)
    simulation.run(seconds=600, per_s=5)
    outcomes, attempts = simulation.outcomes, simulation.attempts
    assert outcomes.total() == 3000
    assert outcomes["success"] >= 2970
    share = attempts[simulation.flapper.name] / attempts.total()
    assert 0 < share < 0.15  # an equal share is a third
    assert [i.in_flight for i in simulation.instances] == [0, 0, 0]
    if policy == "fastest":
        return  # it keeps choosing the best instance
    turned = Counter(simulation.turns)
    assert turned[State.OPEN] >= 3
    assert turned[State.CLOSED] + turned[State.HALF_OPEN] >= 3
    others = [attempts[i.name] for i in simulation.instances[1:]]
    assert min(others) > 0.8 * max(others)


def recovers(now: float, rng: random.Random) -> bool:
    return now < 120 and rng.random() < 0.5


@pytest.mark.unmeasured
@pytest.mark.parametrize("policy", ["smart", "round-robin"])
def test_a_flapper_that_has_recovered_gets_its_share_again(policy: str) -> None:
    simulation = Simulation(policy, recovers)
    simulation.run(seconds=900, per_s=5)
    assert simulation.flapper.default.breaker.state() is State.CLOSED
    assert simulation.flapper.health.success_rate() > 0.95
    assert simulation.attempts[simulation.flapper.name] > 0.2 * simulation.attempts.total()


def open_circuits(instances: list[Instance]) -> list[str]:
    return [i.name for i in instances if i.default.breaker.state() is not State.CLOSED]


@pytest.mark.unmeasured
@pytest.mark.proves("F38")
async def test_over_a_socket_no_caller_sees_a_flappers_errors(upstream: FakeUpstream) -> None:
    clock = FakeClock()
    instances = [make_instance(upstream, n, clock) for n in (1, 2, 3)]
    rng = random.Random(38)
    upstream.script(*[Reply(status=rng.choice((200, 500))) for _ in range(500)], key=KEYS[0])
    hits: list[int] = []
    async with serving(*instances, clock=clock, first_token_timeout_ms=20_000) as gateway:
        for number in range(200):
            conversation = {**HELLO, "user": f"user-{number}"}
            assert (await gateway.chat(conversation))[0] == 200
            hits.append(upstream.hits(KEYS[0]))
            clock.advance(0.5)
    assert open_circuits(instances[1:]) == []
    assert 1 <= hits[-1] < 0.2 * 200
    assert upstream.hits() <= 1.2 * 200
