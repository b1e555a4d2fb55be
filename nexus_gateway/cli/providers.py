"""`nexus-gateway providers`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import TypeVar

from nexus_gateway.cli import environment
from nexus_gateway.cli.table import table
from nexus_gateway.hooks import hooks
from nexus_gateway.pool import Pool, build_pool
from nexus_gateway.provider import InProcess, Provider
from nexus_gateway.registry import Found, Plugin, prefix
from nexus_gateway.routing import policies

T = TypeVar("T")


def providers(arguments: argparse.Namespace) -> int:
    """List the plugins, their models and keys, and what failed to load."""
    pool = build_pool(environment(arguments.env_file), time.monotonic, load_all=True)
    head = ("provider", "distribution", "entry point", "models (default first)", "keys")
    print(table(head, (_row(plugin, pool) for plugin in pool.plugins)))
    _, found_policies = policies()
    _, found_hooks = hooks()
    print()
    print(table(("policy", "distribution", "entry point"), _others(found_policies)))
    if found_hooks.plugins:
        print()
        print(table(("hook", "distribution", "entry point"), _others(found_hooks)))
    problems = [*pool.problems, *found_policies.problems, *found_hooks.problems]
    if problems:
        print("\nleft out:")
    for problem in problems:
        print(f"  {problem}")
    for warning in pool.warnings:
        print(f"note: {warning}")
    return 0


def _row(plugin: Plugin[Provider], pool: Pool) -> tuple[str, str, str, str, str]:
    own = [i.model for i in pool.instances if i.provider_name == plugin.name]
    models = dict.fromkeys([*own, plugin.cls.default_model, *(m.id for m in plugin.cls.models)])
    shown = ", ".join(filter(None, models))
    return plugin.name, plugin.origin, plugin.entry_point, shown, _keys(plugin, len(own))


def _keys(plugin: Plugin[Provider], count: int) -> str:
    """Say how many instances there are, and what to set where there is none."""
    cls, wanted = plugin.cls, prefix(plugin.name)
    if cls.needs_key:
        return str(count) if count else f"0 (set {wanted}_KEY_1)"
    if cls.base_url or issubclass(cls, InProcess):
        return "none needed"
    return f"none needed, {count} URLs" if count else f"none needed (set {wanted}_BASE_URL_1)"


def _others(found: Found[T]) -> Iterator[tuple[str, str, str]]:
    for plugin in found.plugins:
        yield plugin.name, plugin.origin, plugin.entry_point
