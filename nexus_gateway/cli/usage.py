"""`nexus-gateway usage`."""

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
from nexus_gateway.settings import URL, parse_ledger_url
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
    "first_ms": "first ms",
    "total_ms": "total ms",
}
_SHOWN = [name for name in FIGURES if name not in ("attempts", "unpriced")]


def usage(arguments: argparse.Namespace) -> int:
    """Tell what was used, or remove what is old.

    Raises:
        ConfigError: an argument is wrong, or no ledger is kept.
    """
    path = _path(arguments)
    now_s = time.time()
    try:
        if arguments.prune_before is not None:
            before_s = _moment_s(arguments.prune_before, "--prune-before", now_s)
            print(f"{ledger.prune(path, before_s)} requests removed from {path}")
            return 0
        question = UsageQuery(
            arguments.by,
            _moment_s(arguments.since, "--since", now_s) if arguments.since else None,
            _moment_s(arguments.until, "--until", now_s) if arguments.until else None,
            is_local=True,
        )
        answer = ledger.ask(path, question)
    except (OSError, sqlite3.Error, ledger.LedgerRefused) as error:
        print(f"nexus-gateway: {path} cannot be used: {error}.", file=sys.stderr)
        return FAILED
    _TELL[arguments.format](path, question, answer or NOTHING)
    return 0


def _path(arguments: argparse.Namespace) -> str:
    given: str | None = arguments.ledger
    if given and not given.startswith(URL[:7]):
        return given
    source = "--ledger" if given else "LEDGER"
    text = given or with_ledger(environment(arguments.env_file))["LEDGER"]
    try:
        path = parse_ledger_url(text)
    except ValueError as error:
        raise ConfigError([f"{source} {error}."]) from None
    if not path:
        raise ConfigError(["LEDGER is off, so nothing was noted; --ledger FILE reads another."])
    return path


def _moment_s(text: str, flag: str, now_s: float) -> float:
    try:
        return moment_s(text, now_s, is_local=True)
    except ValueError as error:
        raise ConfigError([f"{flag} {error}."]) from None


def _tell_table(path: str, question: UsageQuery, answer: UsageReport) -> None:
    if not answer.rows:
        when = "in that time" if question.since_s or question.until_s else "yet"
        print(f"No request is noted in {path} {when}.")
        return
    head = (question.by, *(HEADS.get(name, name) for name in _SHOWN))
    rows = [(name or "(none)", *_cells(figures)) for name, figures in answer.rows]
    print(table(head, [*rows, ("total", *_cells(answer.total))]))
    for note in _notes(answer.total):
        print(note)


def _cells(figures: Figures) -> Iterator[str]:
    for name, value in zip(FIGURES, figures, strict=True):
        if name in _SHOWN:
            yield _cell(name, value)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "cost_usd":
        return f"{value:,.6f}" if value < 1 else f"{value:,.2f}"
    return f"{value:,.0f}"


def _notes(total: Figures) -> Iterator[str]:
    unpriced = dict(zip(FIGURES, total, strict=True))["unpriced"]
    if unpriced and find_spec("genai_prices") is None:
        yield "Costs need the extra prices: in the clone, pip install '.[prices]'."
    elif unpriced:
        yield f"The price of {unpriced:,} of these requests is not known."


def _tell_json(path: str, question: UsageQuery, answer: UsageReport) -> None:
    print(json.dumps(as_json(question, answer), indent=2))


def _tell_csv(path: str, question: UsageQuery, answer: UsageReport) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((question.by, *FIGURES))
    writer.writerows((name, *figures) for name, figures in answer.rows)


_TELL: dict[str, Callable[[str, UsageQuery, UsageReport], None]] = {
    "table": _tell_table,
    "json": _tell_json,
    "csv": _tell_csv,
}
