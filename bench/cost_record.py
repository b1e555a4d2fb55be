"""What is recorded of a request's cost, and whether another measurement has grown beyond it."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

MOST_GROWTH, MOST_MORE_CALLS = 1.02, 1.01
PACKAGES = ("aiohttp", "uvloop", "orjson", "multidict", "yarl")
# By script, by kind, by what is counted, per request.
Figures = dict[str, dict[str, dict[str, float]]]


def summary(figures: Figures) -> dict[str, Any]:
    """Return what is recorded."""
    return {
        "versions": versions(),
        "ratios": {
            name: round(f["gateway"]["instructions"] / f["bare"]["instructions"], 4)
            for name, f in figures.items()
        },
        "calls": {name: round(f["gateway"]["calls"], 1) for name, f in figures.items()},
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def growth(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return a line for each figure that has grown."""
    lines = []
    for what, most in (("ratios", MOST_GROWTH), ("calls", MOST_MORE_CALLS)):
        for name, figure in found[what].items():
            before = recorded[what][name]
            if figure > before * most:
                lines.append(f"{name}: {what} {before} -> {figure} ({figure / before - 1:+.1%})")
    return lines
