"""What an upstream says of its rate limits: how long to stay away, and how much is left.

The forms that providers use, all read here:

| what         | header                                                   | said by              |
|--------------|----------------------------------------------------------|----------------------|
| stay away    | `retry-after-ms`, `Retry-After` in seconds or as a date  | nearly all           |
| stay away    | `retryDelay: "37s"` in the error's details               | Google               |
| what is left | `x-ratelimit-remaining-requests`, `-limit-…`, `-reset-…` | OpenAI, Groq, Azure… |
| what is left | `x-ratelimit-remaining-tokens-minute` and its like       | Cerebras, Mistral    |
| what is left | `x-ratelimit-remaining`, `-limit`, `-reset`              | OpenRouter, Together |
| what is left | `anthropic-ratelimit-requests-remaining` and its like    | Anthropic            |
| what is left | `RateLimit-Remaining`, `-Limit`, `-Reset`                | IETF's draft         |

A reset is a duration (`1m30.5s`), seconds, an epoch in seconds or milliseconds, or a date.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

LONGEST_PARK_S = 3600.0
_DURATION = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_UNITS_S = (86400.0, 3600.0, 60.0, 1.0, 0.001)
_MARK = "ratelimit-"
_WORDS = frozenset({"remaining", "limit", "reset"})


class Quota(NamedTuple):
    """What is left of one limit.

    Args:
        what: is counted: `requests`, `tokens-minute`; "" where that is not said.
        remaining: how much of it may still be used, None when unknown.
        limit: how much there is in all, None when unknown.
        reset_in_s: when it is whole again, None when unknown.
    """

    what: str
    remaining: float | None = None
    limit: float | None = None
    reset_in_s: float | None = None

    @property
    def counts_requests(self) -> bool:
        """Whether it is requests that are counted, one by one."""
        return not self.what or self.what.startswith("req")


def read_quotas(headers: Mapping[str, str], now_s: float) -> list[Quota]:
    """Read what is left, by every limit that is named.

    Args:
        headers: of any answer.
        now_s: the wall clock in Unix seconds, for resets that are dates.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name in headers:
        if (meant := _meaning(name)) is not None:
            word, what = meant
            text = headers[name]
            value = _reset(text, now_s) if word == "reset" else _number(text)
            found.setdefault(what, {})[word] = value
    return [
        Quota(what, said.get("remaining"), said.get("limit"), said.get("reset"))
        for what, said in found.items()
    ]


@lru_cache(maxsize=256)
def _meaning(name: str) -> tuple[str, str] | None:
    """Return whether a header tells what remains, the limit or the reset, and of what."""
    _, mark, rest = name.lower().partition(_MARK)
    parts = rest.split("-") if mark else []
    word = next((part for part in parts if part in _WORDS), None)
    return None if word is None else (word, "-".join(part for part in parts if part != word))


def retry_after_s(
    headers: Mapping[str, str], error: Mapping[str, Any], now_s: float
) -> float | None:
    """Read how long an upstream that refused for its rate limit asks to be left alone.

    Its own word for it, else when what is used up is whole again. Bounded to [0, 1 h]; None when
    nothing readable is said.

    Args:
        headers: of its answer, case-insensitive.
        error: the error object in its body.
        now_s: the wall clock in Unix seconds.
    """
    asked = asked_to_wait_s(headers, now_s)
    if asked is None:
        asked = _retry_delay(error)
    if asked is None:
        asked = _until_whole(read_quotas(headers, now_s))
    return None if asked is None else min(asked, LONGEST_PARK_S)


def asked_to_wait_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Read `retry-after-ms` or `Retry-After`; bounded to [0, 1 h], None when neither is readable.

    Args:
        headers: of an answer, case-insensitive.
        now_s: the wall clock in Unix seconds.
    """
    asked = (
        _number(headers.get("retry-after-ms"), 0.001),
        _number(headers.get("Retry-After")),
        _until_date(headers.get("Retry-After"), now_s),
    )
    said = next((wait for wait in asked if wait is not None), None)
    return None if said is None else min(max(said, 0.0), LONGEST_PARK_S)


def _until_whole(quotas: Iterable[Quota]) -> float | None:
    """Return when a limit that was hit is whole again: one that has nothing left, if any says so.

    Where all say that something is left, the request was too large for one of them, and the
    first to be whole is tried; where nothing is said, the last.
    """
    resets = [(q.reset_in_s, q.remaining) for q in quotas if q.reset_in_s is not None]
    if used_up := [reset for reset, left in resets if left is not None and left < 1]:
        return max(used_up)
    if not resets:
        return None
    all_say = all(left is not None for _, left in resets)
    return min(resets)[0] if all_say else max(reset for reset, _ in resets)


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


def _until_date(text: str | None, now_s: float) -> float | None:
    try:
        date = email.utils.parsedate_to_datetime(text or "")
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
    return _duration(text) if "T" not in text else _until_instant(text, now_s)


def _duration(text: str) -> float | None:
    """Read `1m30.5s`."""
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        return None
    parts = (float(part or 0) for part in match.groups())
    return sum(part * unit for part, unit in zip(parts, _UNITS_S, strict=True))


def _until_instant(text: str, now_s: float) -> float | None:
    """Read `2026-11-24T12:00:00Z` (RFC 3339)."""
    try:
        instant = datetime.fromisoformat(text.strip())
        return max(0.0, instant.replace(tzinfo=instant.tzinfo or UTC).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None
