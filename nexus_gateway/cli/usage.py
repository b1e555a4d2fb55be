"""`nexus-gateway usage`: sums of the ledger, as a table, JSON or CSV."""

from __future__ import annotations

import argparse
import csv
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from nexus_gateway.cli.environment import environment, with_ledger
from nexus_gateway.cli.text import table
from nexus_gateway.errors import ConfigError
from nexus_gateway.settings import URL, parse_file_url
from nexus_gateway.store.database import DatabaseRefused
from nexus_gateway.telemetry import ledger
from nexus_gateway.telemetry.usage import (
    FIGURES,
    NOTHING,
    Figures,
    UsageQuery,
    UsageReport,
    as_json,
    moment_s,
)

FAILED = 1
HEADS = {
    "prompt_tokens": "prompt",
    "cached_tokens": "cached",
    "completion_tokens": "completion",
    "reasoning_tokens": "reasoning",
    "cost_usd": "cost USD",
    "saved_usd": "saved USD",
    "first_ms": "first ms",
    "total_ms": "total ms",
}
_SHOWN = [name for name in FIGURES if name not in ("attempts", "moved", "unpriced")]


def usage(arguments: argparse.Namespace) -> int:
    """Print the usage, or remove old requests.

    Raises:
        ConfigError: an argument is wrong, or the ledger is off.
    """
    path = _path(arguments)
    now_s = time.time()
    try:
        if arguments.prune_before is not None:
            before_s = _moment_s(arguments.prune_before, "--prune-before", now_s)
            print(f"requests removed from {path}: {ledger.prune(path, before_s)}")
            return 0
        query = UsageQuery(
            arguments.by,
            _moment_s(arguments.since, "--since", now_s) if arguments.since else None,
            _moment_s(arguments.until, "--until", now_s) if arguments.until else None,
            is_local=True,
        )
        report = ledger.ask(path, query) or NOTHING
    except (OSError, sqlite3.Error, DatabaseRefused) as error:
        print(f"nexus-gateway: {path} cannot be used: {error}.", file=sys.stderr)
        return FAILED
    _PRINT[arguments.format](path, query, report)
    return 0


def _path(arguments: argparse.Namespace) -> str:
    option: str | None = arguments.ledger
    if option and not option.startswith(URL[:7]):
        return option
    source = "--ledger" if option else "LEDGER"
    text = option or with_ledger(environment(arguments.env_file))["LEDGER"]
    try:
        path = parse_file_url(text)
    except ValueError as error:
        raise ConfigError([f"{source} {error}."]) from None
    if not path:
        raise ConfigError(["LEDGER is off, so nothing is recorded; --ledger FILE reads another."])
    return path


def _moment_s(text: str, flag: str, now_s: float) -> float:
    try:
        return moment_s(text, now_s, is_local=True)
    except ValueError as error:
        raise ConfigError([f"{flag} {error}."]) from None


def _print_table(path: str, query: UsageQuery, report: UsageReport) -> None:
    if not report.rows:
        when = "in that period" if query.since_s or query.until_s else "yet"
        print(f"No requests are recorded in {path} {when}.")
        return
    head = (query.by, *(HEADS.get(name, name) for name in _SHOWN))
    rows = [(name or "(none)", *_cells(figures)) for name, figures in report.rows]
    print(table(head, [*rows, ("total", *_cells(report.total))]))
    for note in _notes(report.total):
        print(note)


def _cells(figures: Figures) -> Iterator[str]:
    for name, value in zip(FIGURES, figures, strict=True):
        if name in _SHOWN:
            yield _cell(name, value)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("cost_usd", "saved_usd"):
        return f"{value:,.6f}" if value < 1 else f"{value:,.2f}"
    return f"{value:,.0f}"


def _notes(total: Figures) -> Iterator[str]:
    unpriced = dict(zip(FIGURES, total, strict=True))["unpriced"]
    if unpriced and find_spec("genai_prices") is None:
        yield "Costs need the extra `prices`: run pip install '.[prices]' in the clone."
    elif unpriced:
        yield f"The price of {unpriced:,} of these requests is unknown."


def _print_json(path: str, query: UsageQuery, report: UsageReport) -> None:
    print(json.dumps(as_json(query, report), indent=2))


def _print_csv(path: str, query: UsageQuery, report: UsageReport) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((query.by, *FIGURES))
    writer.writerows((name, *figures) for name, figures in report.rows)


_PRINT: dict[str, Callable[[str, UsageQuery, UsageReport], None]] = {
    "table": _print_table,
    "json": _print_json,
    "csv": _print_csv,
}
