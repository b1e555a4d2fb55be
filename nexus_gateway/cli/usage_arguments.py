"""What `nexus-gateway usage` may be told."""

from __future__ import annotations

import argparse

from nexus_gateway.usage import BY

DESCRIPTION = """\
Tell what was used, from the ledger of all runs: requests, tokens, costs, times.
Days, hours and dates are in local time (GET /v1/usage has them in UTC).
"""
EPILOG = """\
examples:
  nexus-gateway usage --since 7d --by day
  nexus-gateway usage --since yesterday --until today --by model
  nexus-gateway usage --by key --format csv > usage.csv
  nexus-gateway usage --prune-before 90d    remove what is older
"""


def add(command: argparse.ArgumentParser) -> None:
    """Add what `usage` may be told."""
    moment = "24h or 7d (ago), today, yesterday, or a date or time such as 2026-01-31"
    command.add_argument("--since", metavar="TIME", help=f"from when on: {moment}")
    command.add_argument("--until", metavar="TIME", help="until when, itself not included")
    command.add_argument("--by", choices=BY, default="instance", help="what to tell apart")
    command.add_argument("--format", choices=("table", "json", "csv"), default="table")
    command.add_argument("--ledger", metavar="FILE", help="the ledger to read (LEDGER)")
    command.add_argument(
        "--prune-before", metavar="TIME", help="remove what ended before, and tell nothing else"
    )
