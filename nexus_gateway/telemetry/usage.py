"""What was used: the question that is asked of the ledger, and how its answer is told.

The command and the admin call ask the same way; only the clock on the wall differs: the command
has days begin by local time, the call by UTC.
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
# What can be asked for one by one; all but times are columns.
BY = ("instance", "model", "provider", "key", "day", "hour", "endpoint", "outcome")
# Each figure by its name, and how it comes from the rows.
FIGURES = {
    "requests": "COUNT(*)",
    "failed": "COALESCE(SUM(outcome NOT IN ('success', 'cancelled')), 0)",
    "attempts": "COALESCE(SUM(attempts), 0)",
    "prompt_tokens": "COALESCE(SUM(prompt_tokens), 0)",
    "cached_tokens": "COALESCE(SUM(cached_tokens), 0)",
    "completion_tokens": "COALESCE(SUM(completion_tokens), 0)",
    "reasoning_tokens": "COALESCE(SUM(reasoning_tokens), 0)",
    "cost_usd": "ROUND(SUM(cost_usd), 9)",
    "unpriced": "COALESCE(SUM(cost_usd IS NULL AND completion_tokens > 0), 0)",
    "first_ms": "ROUND(AVG(CASE WHEN outcome = 'success' AND stream THEN first_ms END), 1)",
    "total_ms": "ROUND(AVG(CASE WHEN outcome = 'success' THEN total_ms END), 1)",
}

Figures = Sequence[Any]


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What somebody wants to know.

    Args:
        by: what to tell apart, one of BY.
        since_s: from when on, in Unix seconds; None for the beginning.
        until_s: until when, itself not included; None for now.
        is_local: whether days and hours begin by local time, else by UTC.
    """

    by: str = "instance"
    since_s: float | None = None
    until_s: float | None = None
    is_local: bool = False


@dataclass(frozen=True, slots=True)
class UsageReport:
    """What the ledger says.

    Args:
        rows: for each group its name, then its figures in the order of FIGURES.
        total: the figures of all.
    """

    rows: Sequence[tuple[str | None, Figures]]
    total: Figures


_UNKNOWN = ("cost_usd", "first_ms", "total_ms")
NOTHING = UsageReport([], [None if name in _UNKNOWN else 0 for name in FIGURES])


class WrongQuestion(ValueError):
    """What cannot be asked; the text, in our words, says what is expected."""


def moment_s(text: str, now_s: float, *, is_local: bool) -> float:
    """Read a moment: `24h`, `7d` (so long ago), `today`, `yesterday`, or an ISO date or time.

    Args:
        text: what somebody wrote.
        now_s: in Unix seconds.
        is_local: whether a time without an offset is local, else UTC.

    Returns:
        Unix seconds.

    Raises:
        WrongQuestion: it is none of these; the text says what is expected.
    """
    word = text.strip().lower()
    if span := _SPAN.fullmatch(word):
        return max(0.0, now_s - int(span[1]) * _SPAN_S[span[2]])
    zone = None if is_local else UTC
    try:
        if word in ("today", "yesterday"):
            day = datetime.fromtimestamp(now_s, zone).replace(hour=0, minute=0, second=0)
            found = day.replace(microsecond=0) - timedelta(days=word == "yesterday")
        else:
            found = datetime.fromisoformat(text.strip())
        at_s = (found if found.tzinfo else found.replace(tzinfo=zone)).timestamp()
        return min(max(0.0, at_s), LATEST_S)
    except (ValueError, OverflowError, OSError):
        raise WrongQuestion(
            "must be a span such as 24h or 7d, today, yesterday, or a date such as 2026-01-31"
        ) from None


def check_by(text: str) -> str:
    """Check what is to be told apart.

    Raises:
        WrongQuestion: it is none of BY; the text lists them.
    """
    if text not in BY:
        raise WrongQuestion(f"must be one of: {', '.join(BY)}")
    return text


def queries(question: UsageQuery) -> tuple[str, str, tuple[float, ...]]:
    """Return the SQL for the groups, the SQL for the total, and the values for both."""
    figures = ", ".join(FIGURES.values())
    group = _group(question)
    limits = {"ended_s >= ?": question.since_s, "ended_s < ?": question.until_s}
    given = {where: at for where, at in limits.items() if at is not None}
    rows = f"FROM requests WHERE {' AND '.join(given) or 'TRUE'}"
    order = "1" if question.by in _TIME_FORMS else "2 DESC, 1"
    return (
        f"SELECT {group}, {figures} {rows} GROUP BY 1 ORDER BY {order}",
        f"SELECT {figures} {rows}",
        tuple(given.values()),
    )


def _group(question: UsageQuery) -> str:
    form = _TIME_FORMS.get(question.by)
    if form is None:
        return f"NULLIF({check_by(question.by)}, '')"
    zone = ", 'localtime'" if question.is_local else ""
    return f"strftime('{form}', ended_s, 'unixepoch'{zone})"


def answer_of(rows: Iterable[Sequence[Any]], total: Sequence[Any]) -> UsageReport:
    """Take what the database returned for `queries`."""
    return UsageReport([(row[0], row[1:]) for row in rows], total)


def as_json(question: UsageQuery, answer: UsageReport) -> Mapping[str, Any]:
    """Tell an answer as a JSON object; times have their offset."""
    return {
        "object": "usage",
        "by": question.by,
        "since": _iso(question.since_s, question.is_local),
        "until": _iso(question.until_s, question.is_local),
        "timezone": "local" if question.is_local else "UTC",
        "data": [
            {question.by: name, **dict(zip(FIGURES, figures, strict=True))}
            for name, figures in answer.rows
        ],
        "total": dict(zip(FIGURES, answer.total, strict=True)),
    }


def _iso(at_s: float | None, is_local: bool) -> str | None:
    if at_s is None:
        return None
    at = datetime.fromtimestamp(at_s, UTC)
    return (at.astimezone() if is_local else at).isoformat(timespec="seconds")
