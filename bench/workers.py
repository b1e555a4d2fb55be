"""Two worker processes against one, on the machine's two cores.

The load and the upstream need the same cores, so the throughput shows less than the workers can do.
The capacity estimates what they would do with a core each: the requests for each CPU second of the
gateway, times the number of workers, less the loss by an uneven distribution of connections.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
from dataclasses import dataclass, field

from peers import NEXUS, Started, started, upstream
from processes import HERE
from rounds import load
from scenarios import Scenario

LOAD = Scenario("workers", "stream-32", 3000, 128)


@dataclass
class Workers:
    """The results with a number of workers, a value for each round."""

    per_s: list[float] = field(default_factory=list)
    capacity_per_s: list[float] = field(default_factory=list)
    errors: int = 0


def has_option() -> bool:
    """Return whether this version has the option `--workers`."""
    command = [*NEXUS.command[:4], "--help"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=20)  # noqa: S603
    return "--workers" in done.stdout


def _measure(to: Started, count: int, result: Workers) -> None:
    load(to, LOAD, LOAD.requests // 5, core=None)
    before = to.process.cpu_of_each_s()
    summary = load(to, LOAD, LOAD.requests, core=None)
    after = to.process.cpu_of_each_s()
    # The supervisor does next to nothing, and is not among the busiest.
    spent_s = [now - then for now, then in zip(after, before, strict=True)]
    busiest = sorted(spent_s)[-count:]
    even = statistics.mean(busiest) / max(busiest)
    result.per_s.append(summary["requests"] / summary["seconds"])
    result.capacity_per_s.append(summary["requests"] / sum(spent_s) * count * even)
    result.errors += summary["errors"]


def measure_workers(rounds: int) -> dict[int, Workers]:
    """Measure one worker and two in turn; no process is pinned to a core."""
    print("workers …", file=sys.stderr, flush=True)
    results = {1: Workers(), 2: Workers()}
    with upstream(core=None) as backend:
        for _ in range(rounds):
            for count, result in results.items():
                command = (*NEXUS.command, "--workers", str(count))
                peer = dataclasses.replace(NEXUS, command=command)
                with started(peer, backend, core=None) as to:
                    _measure(to, count, result)
    return results
