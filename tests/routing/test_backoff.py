"""Delays before a retry at a provider that has just failed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.routing.scheduler import delay_s

FULL_MS = [100, 200, 400, 800, 1600, 2000, 2000, 2000]


@pytest.mark.proves("I-23")
@given(st.integers(0, 7), st.integers())
def test_a_delay_is_between_half_and_all_of_its_maximum(retry: int, seed: int) -> None:
    full_s = FULL_MS[retry] / 1000
    assert full_s / 2 <= delay_s(retry, Random(seed)) <= full_s


def test_delays_are_spread_over_the_whole_range() -> None:
    rng = Random(1)
    drawn = [delay_s(0, rng) for _ in range(2000)]
    assert min(drawn) < 0.051
    assert max(drawn) > 0.099
    assert abs(sum(drawn) / len(drawn) - 0.075) < 0.002


def test_the_longest_delay_never_grows() -> None:
    assert delay_s(10_000, Random(1)) <= 2.0
