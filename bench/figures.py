"""The figures that have a target, worked out from what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from report import Findings, added_ms, cpu
from rounds import Result
from scenarios import TARGETS, Target, chunks

NEXUS = "nexus"


def values(findings: Findings) -> dict[Target, float]:
    """Return the value of each target's figure, as far as it was measured."""
    found: dict[tuple[str, str, str], float] = {}
    for name, results in findings.loads.items():
        for (figure, unit), value in _of_load(results):
            found[name, figure, unit] = value
    found |= _of_chunks(findings)
    found |= _of_memory(findings)
    for policy, by_size in findings.pick.items():
        costs = [statistics.median(costs_ns) for costs_ns in by_size.values()]
        found["pick", f"{policy}, 1000 instances", "× 10 instances"] = costs[-1] / costs[0]
    for way, seconds in findings.start.items():
        found["start", way, "s"] = statistics.median(seconds)
    for name, by_peer in findings.watched.items():
        found["watched", f"CPU, {name}", f"× {NEXUS}"] = by_peer["watched"].ratio()
    if findings.workers:
        one, two = (statistics.median(w.capacity_per_s) for w in findings.workers.values())
        found["workers", "capacity of two", "× one"] = two / one
    keys = {target: (target.row, target.figure, target.unit) for target in TARGETS}
    return {target: found[key] for target, key in keys.items() if key in found}


def _of_load(results: Mapping[str, Result]) -> Iterator[tuple[tuple[str, str], float]]:
    if NEXUS not in results:
        return
    ours = cpu(results, NEXUS)
    for peer in results:
        if peer not in (NEXUS, "direct"):
            yield ("CPU", f"× {peer}"), ours / cpu(results, peer)
    yield ("errors", ""), results[NEXUS].errors
    for percentile in ("p50", "p99"):
        added = added_ms(results, NEXUS, percentile)
        yield (f"added TTFT {percentile}", "ms"), added


def _of_chunks(findings: Findings) -> dict[tuple[str, str, str], float]:
    """Compare what chunks cost between a stream's 32nd and 1000th, and from there to its 4000th."""
    names = ("burst-32", "burst-1000", "burst-4000")
    if not all(name in findings.loads for name in names):
        return {}
    costs = [cpu(findings.loads[name], NEXUS) for name in names]
    counts = [chunks(name) for name in names]
    earlier, later = (
        (costs[i + 1] - costs[i]) / (counts[i + 1] - counts[i]) for i in range(len(names) - 1)
    )
    if earlier <= 0:
        return {}
    return {("burst-4000", "a later chunk's CPU", "× an earlier one's"): later / earlier}


def _of_memory(findings: Findings) -> dict[tuple[str, str, str], float]:
    found: dict[tuple[str, str, str], float] = {}
    for name, by_peer in findings.memory.items():
        over_kib = statistics.median(by_peer[NEXUS].over_kib)
        found[name, "errors", ""] = by_peer[NEXUS].errors
        found[name, "memory for each stream", "KiB"] = over_kib
        found[name, "memory over idle", "MiB"] = over_kib / 1024
    return found
