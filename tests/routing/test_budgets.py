"""The budgets of retries and hedges, in virtual time."""

from __future__ import annotations

import pytest
from clock import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.routing.scheduler import HedgeBudget, RetryBudget


def test_a_few_retries_are_always_allowed() -> None:
    budget = RetryBudget(FakeClock())
    for _ in range(10):
        assert budget.allows()
        budget.retry()
    assert not budget.allows()


def test_retries_leave_the_budget_after_ten_seconds() -> None:
    clock = FakeClock()
    budget = RetryBudget(clock)
    for _ in range(10):
        budget.retry()
    clock.advance(9)
    assert not budget.allows()
    clock.advance(1)
    assert budget.allows()
    clock.advance(1e9)  # a laptop that was suspended
    assert budget.allows()


@pytest.mark.proves("I-20")
@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 40), st.integers(0, 40)), max_size=30))
def test_retries_never_exceed_a_fifth_of_requests_and_the_floor(
    steps: list[tuple[float, int, int]],
) -> None:
    """Check the budget before each retry against a list of all events, in any window."""
    clock = FakeClock()
    budget = RetryBudget(clock)
    events: list[tuple[int, str]] = []
    for pause_s, requests, retries in steps:
        clock.advance(pause_s)
        now = int(clock())
        for _ in range(requests):
            budget.request()
            events.append((now, "request"))
        for _ in range(retries):
            recent = [kind for at, kind in events if at > now - 10]
            allowed = recent.count("retry") < 10 + 0.2 * recent.count("request")
            assert budget.allows() == allowed
            if allowed:
                budget.retry()
                events.append((now, "retry"))


@given(st.lists(st.booleans(), max_size=400))
def test_there_is_at_most_one_hedge_for_twenty_requests(wanted: list[bool]) -> None:
    budget = HedgeBudget()
    hedges = 0
    for number, want in enumerate(wanted, 1):
        budget.request()
        hedges += want and budget.take()
        assert hedges <= number * 0.05 + 1e-6


def test_the_twentieth_request_may_be_hedged() -> None:
    budget = HedgeBudget()
    assert [budget.take() for _ in range(20) if budget.request() is None] == [False] * 19 + [True]
