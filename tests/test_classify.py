from __future__ import annotations

import email.utils
import json
from typing import Any

import pytest
from multidict import CIMultiDict

from nexus_gateway.classify import Outcome, classify, normalise_error, read_error, retry_after_s

NOW_S = 1_790_000_000.0


@pytest.mark.parametrize(
    ("status", "error", "outcome"),
    [
        (400, {}, Outcome.REFUSED),
        (413, {}, Outcome.REFUSED),
        (415, {}, Outcome.REFUSED),
        (422, {}, Outcome.REFUSED),
        (404, {}, Outcome.REFUSED),
        (403, {"metadata": {"reasons": ["hate"]}}, Outcome.REFUSED),
        (403, {"code": "content_filter"}, Outcome.REFUSED),
        (401, {}, Outcome.BAD_KEY),
        (402, {}, Outcome.BAD_KEY),
        (403, {}, Outcome.BAD_KEY),
        (429, {"code": "insufficient_quota"}, Outcome.BAD_KEY),
        (429, {"type": "insufficient_quota"}, Outcome.BAD_KEY),
        (429, {}, Outcome.RATE_LIMITED),
        *((status, {}, Outcome.FAILURE) for status in (301, 307, 405, 408, 409, 425, 418)),
        *((status, {}, Outcome.FAILURE) for status in (500, 502, 503, 504, 520, 529)),
    ],
)
def test_the_table(status: int, error: dict[str, Any], outcome: Outcome) -> None:
    verdict = classify(status, {}, json.dumps({"error": error}).encode(), NOW_S)
    assert verdict.outcome is outcome
    assert verdict.status == status
    assert verdict.reason
    assert (verdict.error is not None) == (outcome is Outcome.REFUSED)
    assert (verdict.park_s == 10) == (outcome is Outcome.RATE_LIMITED)


def date(seconds: float) -> str:
    return email.utils.formatdate(NOW_S + seconds, usegmt=True)


@pytest.mark.proves("F06", "I-05")
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
        ({"x-ratelimit-reset": "12"}, 12),
        ({"x-ratelimit-reset": str(NOW_S + 20)}, 20),
        ({"x-ratelimit-reset": str((NOW_S + 20) * 1000)}, 20),
        ({"x-ratelimit-reset": "soon"}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(CIMultiDict(headers), NOW_S) == pytest.approx(wait_s)


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error": {"message": "m", "code": 42}}', "m", "42"),
        (b'{"error": "plain"}', "plain", None),
        (b'[{"error": {"message": "m"}}]', "m", None),
        (b'{"object": "error", "message": "m", "code": null}', "m", None),
        (b"<html>", "The upstream gave no reason.", None),
        (b"", "The upstream gave no reason.", None),
        (b'{"error": {"message": "m", "code": {}, "type": 5, "param": []}}', "m", None),
    ],
)
def test_errors_come_in_one_shape(body: bytes, message: str, code: str | None) -> None:
    error = read_error(body)
    assert (error["message"], error["code"], error["param"]) == (message, code, None)
    assert isinstance(error["type"], str)


def test_what_an_upstream_adds_is_kept() -> None:
    assert normalise_error({"message": "m", "more": 1})["more"] == 1


def test_a_404_without_a_reason_may_be_a_wrong_address() -> None:
    assert "address" in classify(404, {}, b"<html>", 0.0).reason
    assert "address" not in classify(404, {}, b'{"error": {"message": "no model"}}', 0.0).reason
