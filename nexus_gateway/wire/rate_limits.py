"""The rate limits that an upstream reports: how long to wait, and what is left.

The forms that providers use, all read here:

| what         | header                                                   | used by              |
|--------------|----------------------------------------------------------|----------------------|
| wait         | `retry-after-ms`, `Retry-After` in seconds or as a date  | nearly all           |
| wait         | `retryDelay: "37s"` in the error's details               | Google               |
| wait         | `metadata.headers` in the error                          | OpenRouter           |
| wait         | `Please try again in 7m12s` in the error's message       | Groq, OpenAI         |
| what is left | `x-ratelimit-remaining-requests`, `-limit-…`, `-reset-…` | OpenAI, Groq, Azure… |
| what is left | `x-ratelimit-remaining-tokens-minute` and similar        | Cerebras, Mistral    |
| what is left | `x-ratelimit-remaining`, `-limit`, `-reset`              | OpenRouter, Together |
| what is left | `anthropic-ratelimit-requests-remaining` and similar     | Anthropic            |
| what is left | `RateLimit-Remaining`, `-Limit`, `-Reset`                | IETF's draft         |

A reset is a duration (`1m30.5s`), seconds, an epoch in seconds or milliseconds, or a date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, NamedTuple

from multidict import CIMultiDict

LONGEST_PARK_S = 3600.0
_DURATION = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_TRY_AGAIN = re.compile(
    r"(?:try again|retry) in ((?:\d{1,9}(?:\.\d{1,9})?(?:ms|[dhms]))+)", re.IGNORECASE
)
_UNITS_S = (86400.0, 3600.0, 60.0, 1.0, 0.001)
_PREFIX = "ratelimit-"
_PARTS = frozenset({"remaining", "limit", "reset"})


class Quota(NamedTuple):
    """What is left of one limit.

    Args:
        what: what is counted: `requests`, `tokens-minute`; "" if the header does not name it.
        remaining: how much may still be used, None if unknown.
        limit: the limit itself, None if unknown.
        reset_in_s: seconds until the full limit is available again, None if unknown.
    """

    what: str
    remaining: float | None = None
    limit: float | None = None
    reset_in_s: float | None = None

    @property
    def counts_requests(self) -> bool:
        """Whether requests are counted, and not tokens."""
        return not self.what or self.what.startswith("req")


def read_quotas(headers: Mapping[str, str], now_s: float) -> list[Quota]:
    """Read one quota for each limit that the headers name; `now_s` is in Unix seconds."""
    limits: dict[str, dict[str, float | None]] = {}
    for name in headers:
        if (parsed := _parse_name(name)) is not None:
            part, what = parsed
            text = headers[name]
            value = _reset(text, now_s) if part == "reset" else _number(text)
            limits.setdefault(what, {})[part] = value
    if not limits:
        return []
    return [
        Quota(what, parts.get("remaining"), parts.get("limit"), parts.get("reset"))
        for what, parts in limits.items()
    ]


@lru_cache(maxsize=256)
def _parse_name(name: str) -> tuple[str, str] | None:
    """Split a header's name into `remaining`, `limit` or `reset`, and what is counted."""
    _, prefix, rest = name.lower().partition(_PREFIX)
    words = rest.split("-") if prefix else []
    part = next((word for word in words if word in _PARTS), None)
    return None if part is None else (part, "-".join(word for word in words if word != part))


def retry_after_s(
    headers: Mapping[str, str], error: Mapping[str, Any], now_s: float
) -> float | None:
    """Return how long to wait after a rate limit: as requested, else until the limit resets.

    Bounded to [0, 1 h]; None if the upstream reported neither. `error` is the body's error object.
    """
    inner = _inner_headers(error)
    waits = (
        asked_to_wait_s(headers, now_s),
        asked_to_wait_s(inner, now_s),
        _retry_delay(error),
        _until_reset(read_quotas(headers, now_s)),
        _until_reset(read_quotas(inner, now_s)),
        _try_again_in(error),
    )
    wait_s = next((wait for wait in waits if wait is not None), None)
    return None if wait_s is None else min(wait_s, LONGEST_PARK_S)


def asked_to_wait_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Read `retry-after-ms` or `Retry-After`; bounded to [0, 1 h], None if neither is readable."""
    waits = (
        _number(headers.get("retry-after-ms"), 0.001),
        _number(headers.get("Retry-After")),
        _until(parsedate_to_datetime, headers.get("Retry-After"), now_s),
    )
    wait_s = next((wait for wait in waits if wait is not None), None)
    return None if wait_s is None else min(max(wait_s, 0.0), LONGEST_PARK_S)


def _until_reset(quotas: Iterable[Quota]) -> float | None:
    """Return when the limits reset that are used up, or else may be: what is left is unknown."""
    resets = [(q.reset_in_s, q.remaining) for q in quotas if q.reset_in_s is not None]
    used_up = [reset for reset, left in resets if left is not None and left < 1]
    unknown = [reset for reset, left in resets if left is None]
    return max(used_up or unknown, default=None)


def _inner_headers(error: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the headers that an error's body contains: those of the backend behind a router."""
    metadata = error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    fields = headers.items() if isinstance(headers, dict) else ()
    return CIMultiDict({name: str(value) for name, value in fields})


def _try_again_in(error: Mapping[str, Any]) -> float | None:
    match = _TRY_AGAIN.search(str(error.get("message")))
    return None if match is None else _duration(match[1])


def _retry_delay(error: Mapping[str, Any]) -> float | None:
    """Read google.rpc.RetryInfo."""
    details = error.get("details")
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, dict) and isinstance(detail.get("retryDelay"), str):
            return _duration(detail["retryDelay"])
    return None


def _number(text: str | None, unit: float = 1.0) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value * unit if 0 <= value < float("inf") else None


def _until(parse: Callable[[str], datetime], text: str | None, now_s: float) -> float | None:
    try:
        date = parse(text or "")
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now_s
    except (ValueError, TypeError, OverflowError):
        return None


def _reset(text: str, now_s: float) -> float | None:
    """Read a reset, as seconds from now."""
    value = _number(text)
    if value is not None:
        if value > 1e11:
            value /= 1000
        return max(0.0, value - now_s) if value > 1e9 else value
    if "T" not in text:
        return _duration(text)
    instant_s = _until(datetime.fromisoformat, text.strip(), now_s)  # 2026-11-24T12:00:00Z
    return None if instant_s is None else max(0.0, instant_s)


def _duration(text: str) -> float | None:
    """Read `1m30.5s`."""
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        return None
    parts = (float(part or 0) for part in match.groups())
    return sum(part * unit for part, unit in zip(parts, _UNITS_S, strict=True))
