"""Measure the gateway against the yardstick, in one run; see README.md beside this file.

python bench/run.py [--only SCENARIO …] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from peers import BARE, HERE, NEXUS, Peer, Running, pinned, started, upstream

NOISY = 1.5
LIMIT_S = 60


@dataclass(frozen=True)
class Scenario:
    """A load.

    Args:
        name: in the table.
        script: the upstream's.
        requests: in one round.
        callers: at once.
        target: the largest ratio of CPU for each request to bare's; None where the row has none.
    """

    name: str
    script: str
    requests: int
    callers: int
    target: float | None = None


SCENARIOS = (
    Scenario("burst-32", "stream-32", 2000, 32, 1.10),
    Scenario("burst-1000", "stream-1000", 160, 16, 0.80),
    Scenario("whole", "whole", 4000, 32, 1.20),
    Scenario("paced-500", "stream-32-20", 1500, 500, 0.70),
    Scenario("paced-8", "stream-32-20", 32, 8),
)


@dataclass
class Result:
    """What one peer did in one scenario, a value for each round."""

    cpu_us: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    first_ms: list[dict[str, float]] = field(default_factory=list)
    total_ms: list[dict[str, float]] = field(default_factory=list)
    memory_kib: list[int] = field(default_factory=list)
    errors: int = 0


def load(port: int, scenario: Scenario, model: str, requests: int) -> dict[str, object]:
    """Send a load from a process of its own; return what it tells."""
    command = [sys.executable, str(HERE / "load.py"), str(port), scenario.script]
    command += ["--requests", str(requests), "--callers", str(scenario.callers)]
    command += ["--model", model, "--limit", str(LIMIT_S)]
    done = subprocess.run(  # noqa: S603 - our own program, on loopback
        command,
        capture_output=True,
        text=True,
        timeout=LIMIT_S + 10,
        check=True,
        preexec_fn=lambda: pinned(1),
    )
    told: dict[str, object] = json.loads(done.stdout)
    return told


def measure(peer: Peer, running: Running, scenario: Scenario, result: Result) -> None:
    """Add one round to a result."""
    begun_s = running.cpu_s()
    told = load(running.port, scenario, peer.model, scenario.requests)
    spent_s = running.cpu_s() - begun_s
    result.cpu_us.append(spent_s / scenario.requests * 1e6)
    result.per_s.append(scenario.requests / float(str(told["seconds"])))
    for name in ("first_ms", "total_ms"):
        getattr(result, name).append(told[name])
    result.memory_kib.append(running.memory_kib())
    result.errors += int(str(told["errors"]))


def run(scenarios: tuple[Scenario, ...], rounds: int) -> dict[str, dict[str, Result]]:
    """Measure every scenario; the peers take turns in each round."""
    peers = (BARE, NEXUS)
    results: dict[str, dict[str, Result]] = defaultdict(lambda: defaultdict(Result))
    with upstream() as url, started(BARE, url) as bare, started(NEXUS, url) as nexus:
        processes = {BARE.name: bare, NEXUS.name: nexus}
        for scenario in scenarios:
            for peer in peers:
                load(
                    processes[peer.name].port, scenario, peer.model, max(scenario.requests // 5, 8)
                )
            for _ in range(rounds):
                for peer in peers:
                    measure(peer, processes[peer.name], scenario, results[scenario.name][peer.name])
    return results


def table(scenarios: tuple[Scenario, ...], results: dict[str, dict[str, Result]]) -> str:
    """Lay the results out, medians with their spreads."""
    head = ["scenario", "peer", "CPU µs/req", "spread", "× bare", "target", "req/s"]
    head += ["TTFT p50", "p99", "errors", "RSS MiB"]
    rows = [head]
    for scenario in scenarios:
        bare = statistics.median(results[scenario.name]["bare"].cpu_us)
        for name, r in results[scenario.name].items():
            cpu = statistics.median(r.cpu_us)
            first = [statistics.median(f[p] for f in r.first_ms) for p in ("p50", "p99")]
            rows.append(
                [
                    scenario.name,
                    name,
                    f"{cpu:.0f}",
                    f"{min(r.cpu_us):.0f}-{max(r.cpu_us):.0f}",
                    f"{cpu / bare:.2f}",
                    f"≤ {scenario.target}" if scenario.target and name == "nexus" else "",
                    f"{statistics.median(r.per_s):.0f}",
                    *(f"{ms:.2f}" for ms in first),
                    str(r.errors),
                    f"{max(r.memory_kib) / 1024:.0f}",
                ]
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def noise(results: dict[str, dict[str, Result]]) -> list[str]:
    """Name the rows whose rounds lie too far apart to be trusted."""
    return [
        f"{scenario} of {peer}"
        for scenario, by_peer in results.items()
        for peer, result in by_peer.items()
        if max(result.cpu_us) > NOISY * min(result.cpu_us)
    ]


def main() -> None:
    """Run as the arguments say; print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=[s.name for s in SCENARIOS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    words = parser.parse_args()
    chosen = tuple(s for s in SCENARIOS if not words.only or s.name in words.only)
    begun_s = time.monotonic()
    results = run(chosen, words.rounds)
    print(table(chosen, results))
    print(f"\n{words.rounds} rounds in {time.monotonic() - begun_s:.0f} s")
    if rows := noise(results):
        print(f"too noisy to trust: {', '.join(rows)}")
    if words.json:
        told = {s: {p: asdict(r) for p, r in by.items()} for s, by in results.items()}
        Path(words.json).write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
