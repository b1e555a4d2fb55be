"""Usage: queries to the ledger, and their reports.

The command and the admin call query the same way, but for the time zone: days and hours begin by
local time for the command, by UTC for the call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

_SPAN = re.compile(r"(\d{1,6})\s*([smhdw])")
_SPAN_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TIME_FORMS = {"day": "%Y-%m-%d", "hour": "%Y-%m-%d %H:00"}
LATEST_S = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
# What requests can be grouped by; all but times are columns.
BY = ("instance", "model", "provider", "key", "day", "hour", "endpoint", "outcome")
# Each figure by its name, and the SQL that computes it.
FIGURES = {
    "requests": "COUNT(*)",
    "failed": "COALESCE(SUM(outcome NOT IN ('success', 'cancelled')), 0)",
    "attempts": "COALESCE(SUM(attempts), 0)",
    "prompt_tokens": "COALESCE(SUM(prompt_tokens), 0)",
    "cached_tokens": "COALESCE(SUM(cached_tokens), 0)",
    "completion_tokens": "COALESCE(SUM(completion_tokens), 0)",
    "reasoning_tokens": "COALESCE(SUM(reasoning_tokens), 0)",
    "cost_usd": "ROUND(SUM(cost_usd), 9)",
    "saved_usd": "ROUND(SUM(saved_usd), 9)",
    "moved": "COALESCE(SUM(affinity = 'moved'), 0)",
    "unpriced": "COALESCE(SUM(cost_usd IS NULL AND completion_tokens > 0), 0)",
    "first_ms": "ROUND(AVG(CASE WHEN outcome = 'success' AND stream THEN first_ms END), 1)",
    "total_ms": "ROUND(AVG(CASE WHEN outcome = 'success' THEN total_ms END), 1)",
}

Figures = Sequence[Any]


class InvalidQuery(ValueError):
    """A query with an invalid value; the text is what is expected."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    by: str = "instance"  # one of BY
    # In Unix seconds, the end exclusive; None for the beginning and for now.
    since_s: float | None = None
    until_s: float | None = None
    is_local: bool = False  # days and hours begin by local time, else by UTC

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise InvalidQuery(f"must be one of: {', '.join(BY)}")


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Each group's name and figures, and the figures of all, in the order of FIGURES."""

    rows: Sequence[tuple[str | None, Figures]]
    total: Figures


_NULLABLE = ("cost_usd", "saved_usd", "first_ms", "total_ms")
NOTHING = UsageReport([], [None if name in _NULLABLE else 0 for name in FIGURES])


def moment_s(text: str, now_s: float, *, is_local: bool) -> float:
    """Parse a moment: `24h`, `7d` (so long ago), `today`, `yesterday`, or an ISO date or time.

    Returns Unix seconds. A time without an offset is local if `is_local`, else UTC. Raises
    InvalidQuery.
    """
    word = text.strip().lower()
    if span := _SPAN.fullmatch(word):
        return max(0.0, now_s - int(span[1]) * _SPAN_S[span[2]])
    zone = None if is_local else UTC
    try:
        if word in ("today", "yesterday"):
            now = datetime.fromtimestamp(now_s, zone)
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
            at = midnight - timedelta(days=word == "yesterday")
        else:
            at = datetime.fromisoformat(text.strip())
        at_s = (at if at.tzinfo else at.replace(tzinfo=zone)).timestamp()
        return min(max(0.0, at_s), LATEST_S)
    except (ValueError, OverflowError, OSError):
        raise InvalidQuery(
            "must be a span such as 24h or 7d, today, yesterday, or a date such as 2026-01-31"
        ) from None


def queries(query: UsageQuery) -> tuple[str, str, tuple[float, ...]]:
    """Return the SQL for the groups, the SQL for the total, and the parameters of both."""
    figures = ", ".join(FIGURES.values())
    limits = {"ended_s >= ?": query.since_s, "ended_s < ?": query.until_s}
    conditions = {where: at for where, at in limits.items() if at is not None}
    rows = f"FROM requests WHERE {' AND '.join(conditions) or 'TRUE'}"
    if form := _TIME_FORMS.get(query.by):
        zone = ", 'localtime'" if query.is_local else ""
        group, order = f"strftime('{form}', ended_s, 'unixepoch'{zone})", "1"
    else:
        group, order = f"NULLIF({query.by}, '')", "2 DESC, 1"
    by_group = f"SELECT {group}, {figures} {rows} GROUP BY 1 ORDER BY {order}"
    return by_group, f"SELECT {figures} {rows}", tuple(conditions.values())


def report_of(rows: Iterable[Sequence[Any]], total: Figures) -> UsageReport:
    """Make a report of what the database returned for `queries`."""
    return UsageReport([(row[0], row[1:]) for row in rows], total)


def as_json(query: UsageQuery, report: UsageReport) -> Mapping[str, Any]:
    return {
        "object": "usage",
        "by": query.by,
        "since": _iso(query.since_s, query.is_local),
        "until": _iso(query.until_s, query.is_local),
        "timezone": "local" if query.is_local else "UTC",
        "data": [{query.by: name, **_named(figures)} for name, figures in report.rows],
        "total": _named(report.total),
    }


def _named(figures: Figures) -> dict[str, Any]:
    return dict(zip(FIGURES, figures, strict=True))


def _iso(at_s: float | None, is_local: bool) -> str | None:
    if at_s is None:
        return None
    at = datetime.fromtimestamp(at_s, UTC)
    return (at.astimezone() if is_local else at).isoformat(timespec="seconds")
