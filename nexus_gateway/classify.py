"""What an upstream's answer means: to the instance, and to the request. One table.

| upstream says                         | outcome      | the request                       |
|---------------------------------------|--------------|-----------------------------------|
| 400 413-415 422 431, 403 moderated    | REFUSED      | passed to the caller, no retry    |
| 404                                   | REFUSED      | passed if the caller named it     |
| 401 402 403, insufficient_quota       | BAD_KEY      | next candidate                    |
| 429                                   | RATE_LIMITED | next candidate                    |
| everything else that is not 2xx       | FAILURE      | next candidate                    |

A 5xx that says when to come back is left alone for so long, beside what its circuit does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from nexus_gateway import json_codec
from nexus_gateway.rate_limit import asked_to_wait_s, retry_after_s
from nexus_gateway.secret import SHORTEST_SECRET, Secret

RATE_LIMIT_PARK_S = 10.0
# Whoever fails is not believed that he will for longer: his circuit finds out.
LONGEST_REST_S = 60.0
_CALLERS_FAULT = frozenset({400, 413, 414, 415, 422, 431})
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_LONGEST_MESSAGE = 2000
_MOST_BRACKETS = 200
_BEGINNING = 8  # of a key: what others show of it as harmless
_NO_REASON = "The upstream gave no reason."


class Outcome(Enum):
    """How a lease ends."""

    SUCCESS = "success"
    FAILURE = "failure"
    RATE_LIMITED = "rate_limited"
    BAD_KEY = "bad_key"
    REFUSED = "refused"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an attempt.

    Args:
        outcome: what it means to the instance.
        reason: a short text for operators and callers, in our words: no key, no foreign text.
        status: the upstream's HTTP status, 0 when there was none.
        park_s: for RATE_LIMITED, and for a FAILURE that says so, how long the instance stays away.
        error: the upstream's error in OpenAI's shape, where it goes on to the caller.
    """

    outcome: Outcome
    reason: str
    status: int = 0
    park_s: float | None = None
    error: Mapping[str, Any] | None = None


def classify(status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Verdict:
    """Judge an answer that is not 2xx.

    Args:
        status: the HTTP status.
        headers: the answer's headers, case-insensitive.
        body: the first bytes of its body.
        now_s: the wall clock in Unix seconds, for dates in `Retry-After`.
    """
    error = read_error(body)
    if error.get("code") in _QUOTA_CODES or error.get("type") in _QUOTA_CODES:
        return Verdict(Outcome.BAD_KEY, "the account has no quota left", status)
    if status == 429:
        wait_s = retry_after_s(headers, error, now_s)
        return Verdict(
            Outcome.RATE_LIMITED,
            "rate limited",
            status,
            RATE_LIMIT_PARK_S if wait_s is None else wait_s,
        )
    if status == 404 and error["message"] == _NO_REASON:
        reason = "refused with 404 and no reason: is its address right?"
        return Verdict(Outcome.REFUSED, reason, status, error=error)
    if status in _CALLERS_FAULT or status == 404 or (status == 403 and _moderated(error, body)):
        return Verdict(Outcome.REFUSED, f"refused with {status}", status, error=error)
    if status in (401, 403):
        return Verdict(Outcome.BAD_KEY, f"the key was refused ({status})", status)
    if status == 402:
        return Verdict(Outcome.BAD_KEY, "the account has no credit (402)", status)
    if 300 <= status < 400:
        return Verdict(Outcome.FAILURE, f"redirected ({status}), which is never followed", status)
    rest_s = asked_to_wait_s(headers, now_s) if status >= 500 else None
    longest_s = None if rest_s is None else min(rest_s, LONGEST_REST_S)
    return Verdict(Outcome.FAILURE, f"answered {status}", status, longest_s)


def read_error(body: bytes) -> dict[str, Any]:
    """Return the error of a body in OpenAI's shape, whatever the upstream made of it."""
    try:
        value = json_codec.loads(body)
    except json_codec.JSONError:
        value = None
    if isinstance(value, list) and value:
        value = value[0]
    return normalise_error(value.get("error", value) if isinstance(value, dict) else None)


def normalise_error(error: object) -> dict[str, Any]:
    """Bring an upstream's error into OpenAI's shape: four fields, `code` a string or null."""
    if not isinstance(error, dict):
        message = error if isinstance(error, str) and error else _NO_REASON
        error = {"message": message}
    code = error.get("code")
    known = {
        "message": (_text_or_none(error.get("message")) or _NO_REASON)[:_LONGEST_MESSAGE],
        "type": _text_or_none(error.get("type")) or "upstream_error",
        "param": _text_or_none(error.get("param")),
        "code": None if code is None or isinstance(code, (dict, list)) else str(code),
    }
    return {**(error if _is_shallow(error) else {}), **known}


def _is_shallow(value: object) -> bool:
    """Tell whether a value can be sent on: deep nesting is an attack on whoever walks it."""
    try:
        text = json_codec.dumps(value)
    except json_codec.JSONError:
        return False
    return text.count(b"[") + text.count(b"{") <= _MOST_BRACKETS


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _moderated(error: Mapping[str, Any], body: bytes) -> bool:
    """Tell a 403 for the content from a 403 for the key."""
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and ("reasons" in metadata or "flagged_input" in metadata):
        return True
    return error.get("code") in ("content_policy_violation", "content_filter", "moderation")


def masked(error: Mapping[str, Any], key: Secret) -> dict[str, Any]:
    """Return an upstream's error without its key: some repeat it, or how it begins."""
    if len(key.reveal()) < SHORTEST_SECRET:
        return dict(error)
    whole, begun = (json_codec.dumps(k)[1:-1] for k in (key.reveal(), key.reveal()[:_BEGINNING]))
    said = json_codec.dumps(error).replace(whole, b"***")
    found: dict[str, Any] = json_codec.loads(re.sub(re.escape(begun) + rb'[^\s"\\]*', b"***", said))
    return found
