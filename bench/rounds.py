"""The rounds: loads sent to the peers in turn, and their results."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peers import OURS, Started
from processes import HERE, LOAD_CORE, pinned
from scenarios import Scenario

LIMIT_S = 60
# Connections that overflow a listen queue would wait a second, and the load with them.
APART_MS = 1.0
READY_S = 30.0
PROBES = (Scenario("probe", "whole", 1, 1), Scenario("probe", "stream-32", 1, 1))


@dataclass
class Result:
    """The results of one peer in one scenario, a value for each round."""

    requests: int = 0
    cpu_us: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    first_ms: list[dict[str, float]] = field(default_factory=list)
    total_ms: list[dict[str, float]] = field(default_factory=list)
    memory_kib: list[int] = field(default_factory=list)
    errors: int = 0

    def first(self, percentile: str) -> float:
        """Return the median of the rounds' times to the first content, in ms."""
        return statistics.median(ms[percentile] for ms in self.first_ms)

    def total(self, percentile: str) -> float:
        """Return the median of the rounds' times to the end, in ms."""
        return statistics.median(ms[percentile] for ms in self.total_ms)


Results = dict[str, dict[str, Result]]


def load_command(to: Started, scenario: Scenario, requests: int) -> list[str]:
    """Return the command that sends a load."""
    command = [sys.executable, str(HERE / "load.py"), str(to.process.port), scenario.script]
    command += ["--requests", str(requests), "--callers", str(to.peer.part_of(scenario.callers))]
    command += ["--apart", str(APART_MS if scenario.paced else 0)]
    command += ["--model", to.peer.model, "--limit", str(LIMIT_S)]
    return command + [word for line in to.headers for word in ("--header", line)]


def load(
    to: Started, scenario: Scenario, requests: int, core: int | None = LOAD_CORE
) -> dict[str, Any]:
    """Send a load from its own process; return its summary."""
    done = subprocess.run(  # noqa: S603 - our own program, on loopback
        load_command(to, scenario, requests),
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S + 30,
        check=True,
        preexec_fn=lambda: pinned(core),
    )
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def is_working(to: Started) -> bool:
    """Return whether a gateway gives complete responses; it may need time to find its upstream."""
    end_s = time.monotonic() + READY_S
    while any(load(to, probe, 1)["errors"] for probe in PROBES):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.2)
    return True


def measure(to: Started, scenario: Scenario, result: Result) -> None:
    """Add one round to a result."""
    requests = to.peer.part_of(scenario.requests)
    begun_s = to.process.cpu_s()
    summary = load(to, scenario, requests)
    spent_s = to.process.cpu_s() - begun_s
    result.requests = requests
    result.errors += summary["errors"]
    result.cpu_us.append(spent_s / requests * 1e6)
    result.per_s.append(summary["requests"] / summary["seconds"])
    result.first_ms.append(summary["first_ms"])
    result.total_ms.append(summary["total_ms"])
    result.memory_kib.append(to.process.memory_kib())


def measure_all(peers: Sequence[Started], loads: Sequence[Scenario], rounds: int) -> Results:
    """Measure every load, after a warm-up; the peers take turns in each round."""
    results: Results = {}
    remaining = list(peers)
    for scenario in loads:
        print(f"{scenario.name} …", file=sys.stderr, flush=True)
        by_peer = results[scenario.name] = {to.peer.name: Result() for to in remaining}
        for to in remaining:
            load(to, scenario, max(to.peer.part_of(scenario.requests // 5), 8))
        for _ in range(rounds):
            for to in [*remaining]:
                try:
                    measure(to, scenario, by_peer[to.peer.name])
                except OSError:  # its process has ended
                    if to.peer in OURS:
                        raise
                    print(f"{to.peer.name} exited in {scenario.name} and is skipped from there on")
                    remaining.remove(to)
                    del by_peer[to.peer.name]
    return results
