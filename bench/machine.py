"""The machine and the versions of a run, and the load of other programs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from processes import HERE

PACKAGES = ("nexus-ai-gateway", "aiohttp", "uvloop", "orjson")
BUSY = 0.10
SAMPLE_S = 1.0


def _ticks() -> tuple[int, int]:
    """Return the ticks of all cores so far: in total, and idle."""
    line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    fields = [int(word) for word in line.split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def busy_share() -> float:
    """Measure for a second; return the share of all cores in use, 0 to 1.

    Time that a host takes from a virtual machine counts as used.
    """
    all_before, idle_before = _ticks()
    time.sleep(SAMPLE_S)
    all_after, idle_after = _ticks()
    return 1 - (idle_after - idle_before) / max(all_after - all_before, 1)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _git(*words: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            ["git", *words],  # noqa: S607
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def description() -> dict[str, str | int]:
    """Return the properties that a run's figures depend on."""
    changed = "+changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": (_git("rev-parse", "--short", "HEAD") or "unknown") + changed,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        **{package: _version(package) for package in PACKAGES},
    }
