"""`nexus-gateway providers`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import TypeVar

from nexus_gateway.cli.environment import environment
from nexus_gateway.cli.text import TIE, folded, table
from nexus_gateway.discovery import Plugin, load, prefix
from nexus_gateway.provider import InProcess, Provider
from nexus_gateway.proxy.hook_runner import HOOKS
from nexus_gateway.routing.policies import POLICIES
from nexus_gateway.routing.pool import Pool, build_pool

SHOWN = 3
# The widths of provider, keys and models; together they fit a terminal.
WIDTHS = (20, 26, 40)
T = TypeVar("T")


def providers(arguments: argparse.Namespace) -> int:
    """List the plugins, their models and keys, and what failed to load."""
    pool = build_pool(environment(arguments.env_file), time.monotonic, load_all=True)
    _, policies = load(POLICIES)
    _, hooks = load(HOOKS)
    rows = [line for plugin in pool.plugins for line in folded(_row(plugin, pool), WIDTHS)]
    print(table(("provider", "keys", "models (default first)"), rows))
    _list("provider", pool.plugins)
    _list("policy", policies.plugins)
    if hooks.plugins:
        _list("hook", hooks.plugins)
    problems = [*pool.problems, *policies.problems, *hooks.problems]
    if problems:
        print("\nleft out:")
    for problem in problems:
        print(f"  {problem}")
    for warning in pool.warnings:
        print(f"note: {warning}")
    return 0


def _list(word: str, plugins: Iterable[Plugin[T]]) -> None:
    rows = [(plugin.name, plugin.origin, plugin.entry_point) for plugin in plugins]
    print()
    print(table((word, "distribution", "entry point"), rows))


def _row(plugin: Plugin[Provider], pool: Pool) -> tuple[str, str, str]:
    used = [i.model for i in pool.instances if i.provider_name == plugin.name]
    models = dict.fromkeys([*used, plugin.cls.default_model, *(m.id for m in plugin.cls.models)])
    first, more = [m for m in models if m][:SHOWN], len(models) - SHOWN
    shown = ", ".join([*first, *([f"+{more}{TIE}more"] if more > 0 else [])])
    return plugin.name, _keys(plugin, len(used)), shown


def _keys(plugin: Plugin[Provider], count: int) -> str:
    """Return the number of instances, and what to set if there is none."""
    cls, start = plugin.cls, prefix(plugin.name)
    has_address = bool(cls.base_url) or issubclass(cls, InProcess)
    if not cls.needs_key and (has_address or count):
        return "none needed"
    missing = [f"{start}_KEY_1"] if cls.needs_key else []
    missing += [] if has_address else [f"{start}_BASE_URL_1"]
    missing += [] if cls.default_model else [f"{start}_MODEL_1"]
    return str(count) if count else f"0 (set {', '.join(missing)})"
