"""Queries of the ledger and their reports, without a file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.settings import default_file_url, parse_file_url
from nexus_gateway.telemetry.ledger import COLUMNS, SCHEMA
from nexus_gateway.telemetry.usage import (
    BY,
    FIGURES,
    UsageQuery,
    as_json,
    moment_s,
    queries,
    report_of,
)

NOW_S = datetime(2026, 3, 10, 15, 30, 20, tzinfo=UTC).timestamp()


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "at_s"),
    [
        ("24h", NOW_S - 86400),
        ("7d", NOW_S - 7 * 86400),
        (" 90 M ", NOW_S - 5400),
        ("today", utc("2026-03-10")),
        ("Yesterday", utc("2026-03-09")),
        ("2026-01-31", utc("2026-01-31")),
        ("2026-01-31T10:00", utc("2026-01-31T10:00")),
        ("2026-01-31T10:00:00+02:00", utc("2026-01-31T08:00")),
        ("2026-01-31T10:00Z", utc("2026-01-31T10:00")),
    ],
)
def test_a_moment_is_parsed(text: str, at_s: float) -> None:
    assert moment_s(text, NOW_S, is_local=False) == at_s


def test_a_local_moment_follows_the_time_zone(berlin: None) -> None:
    assert moment_s("today", NOW_S, is_local=True) == utc("2026-03-09T23:00")
    assert moment_s("2026-07-01", NOW_S, is_local=True) == utc("2026-06-30T22:00")
    # The day on which clocks went forward has 23 hours.
    monday_s = utc("2026-03-30T10:00")
    assert moment_s("yesterday", monday_s, is_local=True) == utc("2026-03-28T23:00")
    assert moment_s("today", monday_s, is_local=True) == utc("2026-03-29T22:00")


@pytest.mark.parametrize("text", ["", "soon", "7", "7y", "2026-13-01", "-1d", "9" * 30])
def test_an_invalid_moment_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="24h or 7d"):
        moment_s(text, NOW_S, is_local=True)


@given(st.text(max_size=12))
def test_any_text_is_a_moment_or_an_error(text: str) -> None:
    message = "24h or 7d"
    try:
        moment_s(text, NOW_S, is_local=False)
    except ValueError as error:
        message = str(error)
    assert "24h or 7d" in message


@pytest.mark.parametrize("text", ["999999w", "0001-01-01", "9999-12-31T23:59-10:00"])
def test_a_distant_moment_can_be_formatted(text: str) -> None:
    at_s = moment_s(text, NOW_S, is_local=False)
    assert as_json(UsageQuery("day", at_s), report_of([], [0] * len(FIGURES)))["since"]


@contextlib.contextmanager
def table(*rows: dict[str, object]) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in SCHEMA.statements:
            connection.execute(statement)
        names = [row[1] for row in connection.execute("PRAGMA table_info(requests)")]
        assert len(names) == COLUMNS
        empty: dict[str, object] = dict.fromkeys(names, 0)
        empty |= {"outcome": "success", "cost_usd": None, "saved_usd": None}
        for row in rows:
            values = list((empty | row).values())
            connection.execute(f"INSERT INTO requests VALUES ({','.join('?' * COLUMNS)})", values)
        yield connection


def report_by_group(
    connection: sqlite3.Connection, query: UsageQuery
) -> dict[object, dict[str, object]]:
    by_group, totals, values = queries(query)
    total = connection.execute(totals, values).fetchone()
    answer = report_of(connection.execute(by_group, values).fetchall(), total)
    report = as_json(query, answer)
    assert sum(row["requests"] for row in report["data"]) == report["total"]["requests"]
    return {row.pop(query.by): row for row in report["data"]} | {"total": report["total"]}


def test_figures_are_summed_by_group() -> None:
    used = {"prompt_tokens": 10, "completion_tokens": 5, "attempts": 1}
    with table(
        {"model": "a", **used, "cost_usd": 0.25, "stream": 1, "first_ms": 100, "total_ms": 200},
        {
            **{"model": "a", **used, "cost_usd": 0.5, "total_ms": 400, "attempts": 3},
            **{"saved_usd": 0.125, "affinity": "moved"},
        },
        {"model": "b", **used},
        {"model": "", "outcome": "rate_limit_exceeded", "total_ms": 9000},
        {"model": "b", "outcome": "cancelled", "total_ms": 9000},
    ) as connection:
        by_model = report_by_group(connection, UsageQuery("model"))
    assert list(by_model) == ["a", "b", None, "total"]
    assert by_model["a"] == {
        "requests": 2,
        "failed": 0,
        "attempts": 4,
        "prompt_tokens": 20,
        "cached_tokens": 0,
        "completion_tokens": 10,
        "reasoning_tokens": 0,
        "cost_usd": 0.75,
        "saved_usd": 0.125,
        "moved": 1,
        "unpriced": 0,
        "first_ms": 100,
        "total_ms": 300,
    }
    assert (by_model["b"]["unpriced"], by_model["b"]["failed"]) == (1, 0)
    assert (by_model[None]["failed"], by_model[None]["cost_usd"]) == (1, None)
    assert (by_model["total"]["requests"], by_model["total"]["failed"]) == (5, 1)


def test_since_is_inclusive_and_until_is_exclusive() -> None:
    with table(*({"ended_s": at} for at in (10.0, 20.0, 30.0))) as connection:
        assert report_by_group(connection, UsageQuery("key", 10.0, 30.0))["total"]["requests"] == 2
        assert report_by_group(connection, UsageQuery("key", 40.0))["total"]["requests"] == 0


def test_a_day_begins_in_the_readers_time_zone(berlin: None) -> None:
    times = ("2026-03-09T22:30", "2026-03-09T23:30")
    with table(*({"ended_s": utc(at)} for at in times)) as connection:
        days = report_by_group(connection, UsageQuery("day"))
        local = report_by_group(connection, UsageQuery("day", is_local=True))
        hours = report_by_group(connection, UsageQuery("hour", is_local=True))
    assert list(days) == ["2026-03-09", "total"]
    assert list(local) == ["2026-03-09", "2026-03-10", "total"]
    assert list(hours) == ["2026-03-09 23:00", "2026-03-10 00:00", "total"]


@pytest.mark.parametrize("by", BY)
def test_an_empty_ledger_has_empty_totals(by: str) -> None:
    with table() as connection:
        total = report_by_group(connection, UsageQuery(by))["total"]
    assert list(total) == list(FIGURES)
    assert (total["requests"], total["failed"], total["cost_usd"]) == (0, 0, None)


def test_only_known_columns_get_into_a_query() -> None:
    with pytest.raises(ValueError, match="one of: instance"):
        queries(UsageQuery("id; DROP TABLE requests"))


def test_times_have_their_utc_offset(berlin: None) -> None:
    query = UsageQuery("day", utc("2026-03-10T12:00"), is_local=True)
    report = as_json(query, report_of([], [0] * len(FIGURES)))
    assert (report["since"], report["until"]) == ("2026-03-10T13:00:00+01:00", None)
    assert report["timezone"] == "local"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("off", ""),
        (" OFF ", ""),
        ("sqlite:///ledger.db", "ledger.db"),
        ("sqlite:///data/a b.db", "data/a b.db"),
        ("sqlite:////var/lib/ledger.db", "/var/lib/ledger.db"),
        ("sqlite:///~/ledger.db", os.path.expanduser("~/ledger.db")),
    ],
)
def test_a_ledger_url_is_parsed(text: str, path: str) -> None:
    assert parse_file_url(text) == path


@pytest.mark.parametrize(
    "text",
    [
        *(
            "on",
            "true",
            "ledger.db",
            "sqlite://",
            "sqlite:///",
            "sqlite://host/db",
            "sqlite:ledger",
        ),
        *("postgresql:///a", "sqlite:///a/", "sqlite:///:memory:", "sqlite:///a?mode=ro"),
    ],
)
def test_an_invalid_ledger_url_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///"):
        parse_file_url(text)


def test_the_default_ledger_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/some")
    file_name = "nexus-gateway/ledger.sqlite3"
    assert default_file_url("ledger", {}, "linux") == f"sqlite:////some/.local/state/{file_name}"
    assert (
        default_file_url("ledger", {"XDG_STATE_HOME": "/x"}, "linux") == f"sqlite:////x/{file_name}"
    )
    assert default_file_url("ledger", {"XDG_STATE_HOME": "x"}, "linux").startswith(
        "sqlite:////some/"
    )
    assert "Application Support" in default_file_url("ledger", {}, "darwin")
    assert (
        default_file_url("ledger", {"LOCALAPPDATA": "C:/a"}, "win32")
        == f"sqlite:///C:/a/{file_name}"
    )
