from __future__ import annotations

import json
from typing import Any

import pytest

from nexus_gateway.provider import Outcome
from nexus_gateway.upstream.failures import MAX_COOL_DOWN_S, classify
from nexus_gateway.wire.error_objects import NO_REASON, normalise_error, read_error, read_named

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


FAULTS = b'[{"loc": ["body", "n"], "msg": "m", "type": "missing"}, {"msg": "too"}]'


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error": {"message": "m", "code": 42}}', "m", "42"),
        (b'{"type": "error", "error": {"type": "x", "message": "m"}}', "m", None),
        (b'{"error": {"message": "m"}, "message": "not m"}', "m", None),
        (b'{"error": "plain"}', "plain", None),
        (b'{"error": "plain", "code": 404}', "plain", "404"),
        (b'{"status": 429, "error": "Too Many Requests", "message": "m"}', "m", "429"),
        (b'{"status_code": 503, "message": "m"}', "m", "503"),
        (b'{"error": {"message": "m"}, "status": 404}', "m", "404"),
        (b'{"error": {"message": "m", "code": 400, "status": "INVALID"}}', "m", "400"),
        (b'{"error": {"message": "m", "code": "gone"}, "status": 404}', "m", "gone"),
        (b'{"error": true, "message": "m"}', "m", None),
        (b'{"error": {"error": {"message": "m"}}}', "m", None),
        (b'[{"error": {"message": "m"}}]', "m", None),
        (b'{"error": [{"message": "m"}]}', "m", None),
        (b'{"object": "error", "message": "m", "code": null}', "m", None),
        (b'{"message": {"detail": %b}, "code": 422}' % FAULTS, "m; too", "422"),
        (b'{"detail": %b}' % FAULTS, "m; too", None),
        (FAULTS, "m; too", None),
        (b'{"detail": "Unauthorized"}', "Unauthorized", None),
        (b'{"detail": {"message": "m", "code": "c"}}', "m", "c"),
        (b'{"detail": {"error": {"message": "m"}}}', "m", None),
        (b'{"error": {"detail": "m"}}', "m", None),
        (b'{"error": {}}', NO_REASON, None),
        (b'{"error": {"message": ""}}', NO_REASON, None),
        (b'{"error": {"message": 5}}', NO_REASON, None),
        (b'{"detail": []}', NO_REASON, None),
        (b"{}", NO_REASON, None),
        (b'{"error": {"message": "cut o', NO_REASON, None),
        (b'{"error": {"message": "m", "code": {}, "type": 5, "param": []}}', "m", None),
        (b'{"error": ' * 100 + b"{}" + b"}" * 100, NO_REASON, None),
    ],
)
def test_errors_have_one_shape(body: bytes, message: str, code: str | None) -> None:
    error = read_error(body)
    assert error is not None
    assert (error["message"], error["code"], error["param"]) == (message, code, None)
    assert isinstance(error["type"], str)
    if body.endswith((b"}", b"]")):  # in a stream as well
        assert read_named(body.decode()) == error


@pytest.mark.parametrize("body", [b"", b"x", b'"x"', b"5", b"null", b'["x"]', b"<html>"])
def test_what_is_no_json_object_comes_from_no_api(body: bytes) -> None:
    assert read_error(body) is None


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
