from __future__ import annotations

import json
from typing import Any

import pytest

from nexus_gateway.provider import Outcome
from nexus_gateway.upstream.failures import MAX_COOL_DOWN_S, classify
from nexus_gateway.wire.error_objects import normalise_error, read_error

NOW_S = 1_790_000_000.0


@pytest.mark.parametrize(
    ("status", "error", "outcome"),
    [
        (400, {}, Outcome.REFUSED),
        (413, {}, Outcome.REFUSED),
        *((status, {}, Outcome.REFUSED) for status in (414, 415, 431)),
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
def test_each_failure_is_classified(status: int, error: dict[str, Any], outcome: Outcome) -> None:
    verdict = classify(status, {}, json.dumps({"error": error}).encode(), NOW_S)
    assert verdict.outcome is outcome
    assert verdict.status == status
    assert verdict.reason
    is_shown = outcome is Outcome.REFUSED or status in (402, 403)  # of a second key
    assert (verdict.error is not None) == is_shown
    assert (verdict.park_s == 10) == (outcome is Outcome.RATE_LIMITED)


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error": {"message": "m", "code": 42}}', "m", "42"),
        (b'{"error": "plain"}', "plain", None),
        (b'[{"error": {"message": "m"}}]', "m", None),
        (b'{"object": "error", "message": "m", "code": null}', "m", None),
        (b'{"error": {}}', "The upstream gave no reason.", None),
        (b'{"detail": "Unauthorized"}', "Unauthorized", None),
        (b'{"error": {"message": "cut o', "The upstream gave no reason.", None),
        (b'{"error": {"message": "m", "code": {}, "type": 5, "param": []}}', "m", None),
    ],
)
def test_errors_have_one_shape(body: bytes, message: str, code: str | None) -> None:
    error = read_error(body)
    assert error is not None
    assert (error["message"], error["code"], error["param"]) == (message, code, None)
    assert isinstance(error["type"], str)


def test_extra_fields_of_an_error_are_kept() -> None:
    assert normalise_error({"message": "m", "more": 1})["more"] == 1


def test_an_overloaded_server_may_request_a_pause() -> None:
    assert classify(503, {"Retry-After": "7"}, b"", NOW_S).park_s == 7
    assert classify(529, {"Retry-After": "600"}, b"", NOW_S).park_s == MAX_COOL_DOWN_S
    assert classify(503, {}, b"", NOW_S).park_s is None
    assert classify(408, {"Retry-After": "7"}, b"", NOW_S).park_s is None


def test_a_404_without_a_reason_may_be_a_wrong_base_url() -> None:
    assert "address" in classify(404, {}, b"<html>", 0.0).reason
    assert "address" not in classify(404, {}, b'{"error": {"message": "no model"}}', 0.0).reason


def test_a_429_without_an_apis_error_parks_no_key_for_long() -> None:
    headers = {"Retry-After": "600"}
    assert classify(429, headers, b"<html>Slow down</html>", NOW_S).park_s == 10
    assert classify(429, headers, b'{"error": {"message": "m"}}', NOW_S).park_s == 600


def test_a_line_of_text_keeps_its_words() -> None:
    error = classify(404, {}, b"model not found\n", NOW_S).error
    assert error is not None
    assert error["message"] == "model not found"
