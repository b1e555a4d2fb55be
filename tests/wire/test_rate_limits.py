"""Rate limits in upstreams' responses, in every form."""

from __future__ import annotations

import email.utils
from typing import Any

import pytest
from clock import FakeClock
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from nexus_gateway.routing.quotas import FLOOR, MAX_LIMITS, Quotas, quota_factor
from nexus_gateway.upstream.failures import classify
from nexus_gateway.wire.rate_limits import LONGEST_PARK_S, Quota, read_quotas, retry_after_s

NOW_S = 1_790_000_000.0


def date(seconds: float) -> str:
    return email.utils.formatdate(NOW_S + seconds, usegmt=True)


@pytest.mark.proves("I-05", "F06")
@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": date(30)}, 30),
        ({"Retry-After": date(-30)}, 0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "abc"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "1e9"}, 3600),
        ({"retry-after-ms": "700", "Retry-After": "9"}, 0.7),
        ({"x-ratelimit-reset-requests": "1m30.5s"}, 90.5),
        ({"x-ratelimit-reset-tokens": "250ms"}, 0.25),
        ({"x-ratelimit-reset-requests": "6m0s", "X-RateLimit-Reset-Tokens": "2h"}, 3600),
        ({"x-ratelimit-reset-tokens": "1d"}, 3600),
        ({"x-ratelimit-reset": "12"}, 12),
        ({"RateLimit-Reset": "12"}, 12),
        ({"anthropic-ratelimit-requests-reset": "2026-09-21T14:14:10Z"}, 50),
        ({"anthropic-ratelimit-requests-reset": "2026-09-21T16:13:30+02:00"}, 10),
        ({"x-ratelimit-reset": str(NOW_S + 20)}, 20),
        ({"x-ratelimit-reset": str((NOW_S + 20) * 1000)}, 20),
        ({"x-ratelimit-reset": "soon"}, None),
        ({"x-ratelimit-reset": "Tomorrow"}, None),
        # Cerebras: much of the day's limit is left, and nothing of the minute's.
        (
            {
                "x-ratelimit-remaining-requests-day": "14000",
                "x-ratelimit-reset-requests-day": "33011.4",
                "x-ratelimit-remaining-tokens-minute": "0",
                "x-ratelimit-reset-tokens-minute": "11.4",
            },
            11.4,
        ),
        # Each limit has something left, so that none of the resets is what to wait for.
        (
            {
                "x-ratelimit-remaining-requests": "20",
                "x-ratelimit-reset-requests": "60s",
                "x-ratelimit-remaining-tokens": "90",
                "x-ratelimit-reset-tokens": "7.5s",
            },
            None,
        ),
        (
            {
                "x-ratelimit-remaining-requests-day": "14000",
                "x-ratelimit-reset-requests-day": "33011.4",
            },
            None,
        ),
    ],
)
def test_the_wait_is_read_from_any_header(headers: dict[str, str], wait_s: float | None) -> None:
    expected = None if wait_s is None else pytest.approx(wait_s)
    assert retry_after_s(CIMultiDict(headers), {}, NOW_S) == expected


@pytest.mark.proves("I-05")
@pytest.mark.parametrize(
    ("error", "wait_s"),
    [
        ({"metadata": {"headers": {"X-RateLimit-Reset": str((NOW_S + 20) * 1000)}}}, 20),
        ({"metadata": {"headers": {"Retry-After": "7"}}}, 7),
        ({"metadata": {"headers": {"X-RateLimit-Remaining": "3", "X-RateLimit-Reset": 9}}}, None),
        ({"metadata": {"headers": ["X-RateLimit-Reset"]}}, None),
        ({"message": "Rate limit reached. Please try again in 7m12.5s. Visit …"}, 432.5),
        ({"message": "Please retry in 250ms"}, 0.25),
        ({"message": "Please try again in a moment"}, None),
    ],
)
def test_the_wait_is_read_from_the_body(error: dict[str, Any], wait_s: float | None) -> None:
    expected = None if wait_s is None else pytest.approx(wait_s)
    assert retry_after_s(CIMultiDict(), error, NOW_S) == expected


def test_googles_wait_is_read_from_the_body() -> None:
    body = b"""[{"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED", "details": [
        {"@type": "type.googleapis.com/google.rpc.Help"},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37.5s"}]}}]"""
    assert classify(429, {}, body, NOW_S).park_s == 37.5


@pytest.mark.proves("I-05")
@given(st.text(), st.sampled_from(["Retry-After", "retry-after-ms", "x-ratelimit-reset-tokens"]))
def test_any_text_of_a_header_is_read_safely(text: str, name: str) -> None:
    wait_s = retry_after_s({name: text}, {}, NOW_S)
    assert wait_s is None or 0 <= wait_s <= LONGEST_PARK_S


@pytest.mark.parametrize(
    ("headers", "quotas"),
    [
        ({"Content-Type": "text/event-stream"}, []),
        (
            {
                "X-RateLimit-Limit-Requests": "60",
                "x-ratelimit-remaining-requests": "7",
                "x-ratelimit-reset-requests": "1s",
            },
            [Quota("requests", 7, 60, 1)],
        ),
        (
            {"x-ratelimit-limit": "20", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"},
            [Quota("", 0, 20, 30)],
        ),
        (
            {
                "anthropic-ratelimit-input-tokens-limit": "50000",
                "anthropic-ratelimit-input-tokens-remaining": "49000",
                "anthropic-ratelimit-input-tokens-reset": "2026-09-21T14:13:50Z",
            },
            [Quota("input-tokens", 49000, 50000, 30)],
        ),
        ({"x-ratelimit-remaining-req-minute": "3"}, [Quota("req-minute", 3)]),
        ({"x-ratelimit-remaining-tokens": "many"}, [Quota("tokens")]),
    ],
)
def test_quotas_are_read_from_any_header(headers: dict[str, str], quotas: list[Quota]) -> None:
    assert read_quotas(CIMultiDict(headers), NOW_S) == quotas


def test_the_nearest_limit_counts() -> None:
    quotas = Quotas(FakeClock())
    assert quotas.share_left(0) is None
    quotas.update([Quota("requests", 30, 60, 60), Quota("tokens", 500, 10_000, 60)], 1)
    assert quotas.share_left(1) == pytest.approx(0.05)
    assert quota_factor(quotas.share_left(1)) == pytest.approx(0.5)


def test_an_exhausted_quota_expires() -> None:
    clock = FakeClock()
    quotas = Quotas(clock)
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9" * 400 + "d"}
    quotas.update(read_quotas(headers, 0), 1)
    assert quotas.share_left(1) == 0
    clock.advance(LONGEST_PARK_S)
    assert quotas.share_left(1) is None


def test_the_number_of_stored_limits_is_bounded() -> None:
    quotas = Quotas(FakeClock())
    for number in range(1000):
        quotas.update([Quota(f"x{number}", 5.0, 10.0, 3600.0)], number)
    assert len(quotas._reports) == MAX_LIMITS


def test_requests_sent_since_a_report_are_subtracted() -> None:
    quotas = Quotas(FakeClock())
    quotas.update([Quota("requests", 4, 40)], 10)
    assert [quotas.share_left(sent) for sent in (10, 12, 14, 15)] == [0.1, 0.05, 0.0, 0.0]
    quotas.update([Quota("requests", 39, 40)], 9)  # this response is older than the last one
    assert quotas.share_left(14) == 0.0
    quotas.update([Quota("requests", 40, 40)], 14)
    assert quotas.share_left(14) == 1.0


def test_a_report_is_valid_until_its_limit_resets() -> None:
    clock = FakeClock()
    quotas = Quotas(clock)
    quotas.update([Quota("requests", 0, 60, 7)], 1)
    clock.advance(6.9)
    assert quotas.share_left(1) == 0.0
    clock.advance(0.1)
    assert quotas.share_left(1) is None
    quotas.update([Quota("requests", 0, 60)], 1)
    clock.advance(60)
    assert quotas.share_left(1) is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_quota_has_a_smaller_factor(one: float, other: float) -> None:
    assert FLOOR <= quota_factor(min(one, other)) <= quota_factor(max(one, other)) <= 1
