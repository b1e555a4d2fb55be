"""`nexus-gateway providers`."""

from __future__ import annotations

import argparse
import time

from nexus_gateway.cli import environment
from nexus_gateway.cli.table import table
from nexus_gateway.pool import build_pool
from nexus_gateway.registry import Plugin, prefix


def providers(arguments: argparse.Namespace) -> int:
    """List the plugins, their models and keys, and what failed to load."""
    pool = build_pool(environment(arguments.env_file), time.monotonic)

    def row(plugin: Plugin) -> tuple[str, str, str, str, str]:
        count = sum(i.provider_name == plugin.name for i in pool.instances)
        own = [i.model for i in pool.instances if i.provider_name == plugin.name]
        models = dict.fromkeys([*own, plugin.cls.default_model, *(m.id for m in plugin.cls.models)])
        keys = str(count) if plugin.cls.needs_key else "none needed"
        if plugin.cls.needs_key and not count:
            keys = f"0 (set {prefix(plugin.name)}_KEY_1)"
        made_by = f"{plugin.distribution} {plugin.version}"
        return plugin.name, made_by, plugin.entry_point, ", ".join(models), keys

    head = ("plugin", "distribution", "entry point", "models (default first)", "keys")
    print(table(head, map(row, pool.plugins)))
    if pool.problems:
        print("\nleft out:")
    for problem in pool.problems:
        made_by = f"{problem.distribution} {problem.version}"
        print(f"  {problem.name} ({made_by}, {problem.entry_point}): {problem.reason}")
    for warning in pool.warnings:
        print(f"note: {warning}")
    return 0
