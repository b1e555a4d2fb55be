from __future__ import annotations

import random

import pytest
from clock import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.routing.health import FLOOR, Health
from nexus_gateway.routing.scheduler import delay_s


def test_the_documented_example_has_its_score() -> None:
    health = Health(FakeClock())
    for n in range(150):
        (health.success if n < 147 else health.failure)()
    health.observe_latency(450, 8000)
    assert f"{health.success_rate():.1%} {health.score():.1%}" == "98.0% 92.5%"
    assert health.latency_ms() == 450


def test_an_untried_instance_scores_100_and_samples_decay() -> None:
    clock = FakeClock()
    health = Health(clock)
    assert (health.score(), health.latency_ms(), health.tokens_per_s()) == (1, None, None)
    health.failure()
    assert health.score() == FLOOR
    clock.advance(120)
    health.success()
    assert health.success_rate() == pytest.approx(2 / 3)
    clock.advance(3600)
    assert health.score() == 1


def test_responses_without_a_stream_are_scored_by_their_own_limit() -> None:
    health = Health(FakeClock())
    health.observe_latency(12_000, 120_000)
    assert health.score() == pytest.approx(0.9)


def test_speed_is_tokens_per_second_and_not_a_mean_of_means() -> None:
    clock = FakeClock()
    health, other = Health(clock), Health(clock)
    for burst_s in (0.0, 0.0008, 0.0499):
        health.observe_speed(100, burst_s)
    assert health.tokens_per_s() is None, "tokens that came at once give no speed"
    health.observe_speed(300, 10.0)
    health.observe_speed(100, 0.05)
    assert health.tokens_per_s() == pytest.approx(400 / 10.05)
    clock.advance(120)
    health.observe_speed(1000, 5.0)
    assert health.tokens_per_s() == pytest.approx((200 + 1000) / (5.025 + 5))
    other.observe_speed(500, 5.0)
    other.merge_remote(health.local())
    assert other.tokens_per_s() == pytest.approx((200 + 1000 + 500) / (5.025 + 5 + 5))
    clock.advance(3600)
    assert other.tokens_per_s() is None


def test_an_untried_instance_is_not_judged() -> None:
    """A success rate of 100 % then means nothing."""
    clock = FakeClock()
    health, elsewhere = Health(clock), Health(clock)
    health.observe_latency(10, 8000)
    assert (health.is_judged, health.success_rate()) == (False, 1.0)
    elsewhere.failure()
    health.merge_remote(elsewhere.local())
    assert (health.is_judged, health.success_rate()) == (True, 0.0)
    clock.advance(3600)
    assert (health.is_judged, health.success_rate()) == (False, 1.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["success", "failure", "slow", "fast"]), st.floats(0, 1000, width=32)
        )
    )
)
def test_scores_stay_within_their_bounds(events: list[tuple[str, float]]) -> None:
    clock = FakeClock()
    health = Health(clock)
    for kind, pause_s in events:
        clock.advance(pause_s)
        if kind in ("success", "failure"):
            getattr(health, kind)()
        else:
            health.observe_latency(20_000 if kind == "slow" else 10, 8000)
        assert FLOOR <= health.score() <= 1
        assert 0 <= health.success_rate() <= 1


def test_delays_double_up_to_two_seconds() -> None:
    rng = random.Random(3)
    for retry, whole_ms in enumerate([100, 200, 400, 800, 1600, 2000, 2000]):
        delays = [delay_s(retry, rng) * 1000 for _ in range(200)]
        assert whole_ms / 2 <= min(delays) <= max(delays) <= whole_ms


def test_reading_a_score_changes_nothing() -> None:
    read_clock, unread_clock = FakeClock(), FakeClock()
    read, unread = Health(read_clock), Health(unread_clock)
    for health in (read, unread):
        health.failure()
        health.success()
        health.observe_latency(800, 8000)
    for _ in range(60):
        read_clock.advance(1)
        read.score()
    unread_clock.advance(60)
    for health in (read, unread):
        health.success()
    assert read.score() == pytest.approx(unread.score())
    assert read.success_rate() == pytest.approx((1 + 0.5**0.5) / (1 + 2 * 0.5**0.5))
