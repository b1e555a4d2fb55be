"""Whose fault a failure is: one request alone takes no key or model away from all others."""

from __future__ import annotations

from random import Random

import pytest
from clock import FakeClock
from fakes import make_instance
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.errors import NoCandidate
from nexus_gateway.provider import Outcome, Scope, Verdict
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Deployment
from nexus_gateway.routing.policies import RoundRobin
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler
from nexus_gateway.secret import Secret

OK = Verdict(Outcome.SUCCESS, "ok")
FAILED = Verdict(Outcome.FAILURE, "answered 500", 500)
SLOW = Verdict(Outcome.FAILURE, "no first token in 8000 ms", scope=Scope.TIME)
UNREACHABLE = Verdict(Outcome.FAILURE, "refused the connection", scope=Scope.ADDRESS)
NO_CREDIT = Verdict(Outcome.BAD_KEY, "the account has no credit (402)", 402)
BAD_KEY = Verdict(Outcome.BAD_KEY, "the key was refused (401)", 401)
NO_ACCESS = Verdict(Outcome.REFUSED, "no access", 403, scope=Scope.DEPLOYMENT)
OVERLOADED = Verdict(Outcome.FAILURE, "answered 503", 503, park_s=60)
PAGE = Verdict(Outcome.FAILURE, "refused by something before its API", 403, scope=Scope.EDGE)


class Pool:
    def __init__(self, count: int) -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(self.clock, Random(1), {"round-robin": RoundRobin()})
        instances = [
            make_instance(clock=self.clock, number=n, key=Secret(f"k{n}"))
            for n in range(1, count + 1)
        ]
        self.deployments = [instance.default for instance in instances]
        self.target = RoutingTarget(tuple(self.deployments))
        self.requests = 0

    def request(self) -> AttemptHistory:
        self.requests += 1
        return AttemptHistory(id=f"req-{self.requests}")

    def attempt(self, history: AttemptHistory) -> Attempt:
        return self.scheduler.attempt(self.target, "round-robin", history)

    def serve(self, *verdicts: Verdict) -> AttemptHistory:
        """Serve one request whose attempts end like this, one after the other."""
        history = self.request()
        for verdict in verdicts:
            attempt = self.attempt(history)
            if verdict is OK:
                attempt.first_content(1000, stream=False)
            attempt.end(verdict)
        history.settle()
        return history


def is_clean(deployment: Deployment) -> bool:
    return deployment.is_available and deployment.health.success_rate() == 1.0


@pytest.mark.proves("F54")
@given(
    st.integers(2, 6),
    st.sampled_from([FAILED, SLOW, NO_CREDIT, NO_ACCESS, PAGE, OVERLOADED]),
    st.integers(1, 20),
)
def test_a_request_that_fails_everywhere_changes_nothing(
    count: int, verdict: Verdict, repeats: int
) -> None:
    pool = Pool(count)
    for _ in range(repeats):
        pool.clock.advance(10)  # a new budget of retries
        pool.serve(*[verdict] * count)
        assert all(map(is_clean, pool.deployments))


def test_a_failure_counts_when_another_deployment_has_answered() -> None:
    pool = Pool(2)
    failed, answered = (a.deployment for a in pool.serve(FAILED, OK).attempts)
    assert failed.breaker.failures_in_a_row == 1
    assert failed.health.success_rate() == 0
    assert is_clean(answered)


def test_a_request_marks_a_deployment_once() -> None:
    pool = Pool(1)
    pool.serve(FAILED, FAILED, FAILED)
    assert pool.deployments[0].breaker.failures_in_a_row == 1


@pytest.mark.proves("I-12")
def test_the_only_deployment_still_gets_requests_when_their_failures_have_opened_it() -> None:
    pool = Pool(1)
    (deployment,) = pool.deployments
    for _ in range(3):
        pool.serve(FAILED)
    assert deployment.breaker.state() is State.OPEN
    poison, innocent, other = (pool.attempt(pool.request()) for _ in range(3))
    poison.end(FAILED)
    innocent.end(OK)
    other.end(OK)
    assert pool.attempt(pool.request()).deployment is deployment


def test_a_connection_that_fails_is_no_requests_fault() -> None:
    pool = Pool(1)
    for _ in range(3):
        pool.serve(UNREACHABLE)
    pool.attempt(pool.request())  # the early probe
    with pytest.raises(NoCandidate):
        pool.attempt(pool.request())


def test_silence_for_all_the_time_counts_although_no_other_could_be_tried() -> None:
    pool = Pool(2)
    pool.serve(SLOW)
    assert sum(d.breaker.failures_in_a_row for d in pool.deployments) == 1


@pytest.mark.parametrize(("answer_s", "failures"), [(9.0, 0), (2.0, 1)])
def test_a_deployment_that_was_given_less_time_is_not_slower(
    answer_s: float, failures: int
) -> None:
    pool = Pool(2)
    history = pool.request()
    first = pool.attempt(history)
    pool.clock.advance(8)
    first.end(SLOW)
    second = pool.attempt(history)
    pool.clock.advance(answer_s)
    second.first_content(8000, stream=True)
    assert first.deployment.breaker.failures_in_a_row == failures


def test_a_second_request_parks_a_key_for_long_and_a_success_clears_it() -> None:
    pool = Pool(1)
    (deployment,) = pool.deployments
    parks = []
    for verdict in (NO_CREDIT, NO_CREDIT, OK, NO_CREDIT):
        pool.clock.advance(6)
        pool.serve(verdict)
        parks.append(deployment.parked_for_s())
    assert parks == [5, 600, 0, 5]


def test_a_key_that_is_certainly_bad_is_no_last_resort() -> None:
    for verdict, is_tried in ((BAD_KEY, False), (NO_CREDIT, True)):
        pool = Pool(1)
        pool.serve(verdict)
        try:
            pool.attempt(pool.request())
            assert is_tried
        except NoCandidate:
            assert not is_tried
