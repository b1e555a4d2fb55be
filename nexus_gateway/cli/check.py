"""`nexus-gateway check`."""

from __future__ import annotations

import argparse
import asyncio
import sys

from nexus_gateway import log
from nexus_gateway.cli import WRONG_SETTINGS, environment
from nexus_gateway.cli.serve import configure
from nexus_gateway.cli.table import table
from nexus_gateway.pool import DEMO
from nexus_gateway.probe import probe_all

FAILED = 1


def check(arguments: argparse.Namespace) -> int:
    """Ask every instance for one token; 1 if one fails."""
    settings, pool = configure(environment(arguments.env_file), demo=False)
    if all(i.provider_name == DEMO for i in pool.instances):
        print("nexus-gateway: there is no key to check: set one.", file=sys.stderr)
        return WRONG_SETTINGS
    log.configure("error", "text", [i.key for i in pool.instances])
    results = asyncio.run(probe_all(settings, pool))
    rows = [
        (i.name, i.model, *(("failed", "", reason) if ms is None else ("ok", f"{ms:.0f} ms", "")))
        for i, ms, reason in results
    ]
    print(table(("instance", "model", "result", "first token", "reason"), rows))
    return FAILED if any(ms is None for _, ms, _ in results) else 0
