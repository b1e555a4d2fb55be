"""The results of a run: its tables, the figures with targets, and their noise."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import others
from memory import Memory
from rounds import Result
from scenarios import FLOOD_MIB, LOADS, TARGETS, Scenario, Target, chunks
from watched import Costs
from workers import Workers

NEXUS = "nexus"
NOISY = 1.5
BY_NAME = {scenario.name: scenario for scenario in LOADS}


@dataclass
class Findings:
    """All results; a part that was not measured is empty, and `missing` may have the reason."""

    loads: dict[str, dict[str, Result]] = field(default_factory=dict)
    memory: dict[str, dict[str, Memory]] = field(default_factory=dict)
    pick: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    start: dict[str, list[float]] = field(default_factory=dict)
    workers: dict[int, Workers] = field(default_factory=dict)
    watched: Costs = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    rows: tuple[str, ...] = ()


def _grid(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in ([*zip(row, widths, strict=True)] for row in rows)
    )


def cpu(results: Mapping[str, Result], peer: str) -> float:
    """Return the median CPU time of a request, in microseconds."""
    return statistics.median(results[peer].cpu_us)


def added_ms(results: Mapping[str, Result], peer: str, percentile: str) -> float:
    """Return the time to the first content that a peer adds, in ms."""
    return results[peer].first(percentile) - results["direct"].first(percentile)


def _loads(findings: Findings) -> Iterator[str]:
    head = ["peer", "CPU µs/req", "spread", "× bare", "req/s", "TTFT p50 ms", "p99"]
    head += ["end p50 ms", "p99", "added TTFT p50", "p99", "errors", "RSS MiB"]
    for name, results in findings.loads.items():
        rows = [head]
        for peer, result in results.items():
            rows.append(_load_row(BY_NAME[name], results, peer, result))
        yield f"\n{name}\n" + _grid(rows)


def _load_row(
    scenario: Scenario, results: Mapping[str, Result], peer: str, result: Result
) -> list[str]:
    streamed, direct = scenario.script != "whole", peer == "direct"
    first = [f"{result.first(p):.2f}" if streamed else "" for p in ("p50", "p99")]
    added = ["", ""]
    if scenario.paced and not direct:
        added = [f"{added_ms(results, peer, p):+.2f}" for p in ("p50", "p99")]
    return [
        peer,
        f"{cpu(results, peer):.0f}",
        f"{min(result.cpu_us):.0f}-{max(result.cpu_us):.0f}",
        "" if direct else f"{cpu(results, peer) / cpu(results, 'bare'):.2f}",
        f"{statistics.median(result.per_s):.0f}",
        *first,
        *(f"{result.total(p):.2f}" for p in ("p50", "p99")),
        *added,
        str(result.errors),
        f"{max(result.memory_kib) / 1024:.0f}",
    ]


def _memory(findings: Findings) -> Iterator[str]:
    if by_peer := findings.memory.get("open-2000"):
        rows = [["peer", "streams", "KiB for each", "spread", "idle MiB", "errors"]]
        rows += [[p, str(m.streams), *_over(m, 1), str(m.errors)] for p, m in by_peer.items()]
        yield "\nopen-2000\n" + _grid(rows)
    if by_peer := findings.memory.get("flood"):
        rows = [["peer", "MiB over idle", "spread", "idle MiB", "errors"]]
        rows += [[p, *_over(m, 1024), str(m.errors)] for p, m in by_peer.items()]
        yield f"\nflood, {FLOOD_MIB} MiB to a reader that stalls\n" + _grid(rows)


def _over(memory: Memory, per: float) -> list[str]:
    values = [kib / per for kib in memory.over_kib]
    spread = f"{min(values):.1f}-{max(values):.1f}"
    idle = f"{statistics.median(memory.idle_kib) / 1024:.0f}"
    return [f"{statistics.median(values):.1f}", spread, idle]


def _others(findings: Findings) -> Iterator[str]:
    if findings.pick:
        sizes = next(iter(findings.pick.values()))
        rows = [["policy", *(f"{size} instances, ns" for size in sizes)]]
        for policy, by_size in findings.pick.items():
            rows.append([policy, *(f"{statistics.median(v):.0f}" for v in by_size.values())])
        yield "\npick\n" + _grid(rows)
    if findings.start:
        rows = [["start", "s", "spread"]]
        for variant, starts_s in findings.start.items():
            spread = f"{min(starts_s):.2f}-{max(starts_s):.2f}"
            rows.append([variant, f"{statistics.median(starts_s):.2f}", spread])
        yield "\nstart\n" + _grid(rows)
    if findings.workers:
        rows = [["workers", "req/s", "× one", "capacity req/s", "× one", "errors"]]
        one = findings.workers[1]
        for count, result in findings.workers.items():
            row = [str(count)]
            for now, then in (
                (result.per_s, one.per_s),
                (result.capacity_per_s, one.capacity_per_s),
            ):
                median = statistics.median(now)
                row += [f"{median:.0f}", f"{median / statistics.median(then):.2f}"]
            rows.append([*row, str(result.errors)])
        yield "\nworkers\n" + _grid(rows)


def _watched(findings: Findings) -> Iterator[str]:
    for name, by_peer in findings.watched.items():
        rows = [["peer", "CPU µs/req", "× nexus", "95 of 100", "least µs", "× nexus"]]
        without_us = min(next(iter(by_peer.values())).cpu_us)
        for peer, costs in by_peer.items():
            low, high = costs.range()
            cpu_us, least_us = statistics.median(costs.cpu_us), min(costs.cpu_us)
            ratios = f"{costs.ratio():.3f}", f"{low:.3f}-{high:.3f}"
            row = [peer, f"{cpu_us:.0f}", *ratios, f"{least_us:.0f}"]
            rows.append([*row, f"{least_us / without_us:.3f}"])
        yield f"\nwatched, {name}\n" + _grid(rows)


def tables(findings: Findings) -> str:
    """Return the tables: medians with their spreads."""
    return "\n".join(
        [*_loads(findings), *_memory(findings), *_others(findings), *_watched(findings)]
    )


def values(findings: Findings) -> dict[Target, float]:
    """Return the value of each target's figure, if it was measured."""
    figures: dict[tuple[str, str, str], float] = {}
    for name, results in findings.loads.items():
        for (figure, unit), value in _of_load(results):
            figures[name, figure, unit] = value
    figures |= _of_chunks(findings)
    figures |= _of_memory(findings)
    for policy, by_size in findings.pick.items():
        costs = [statistics.median(costs_ns) for costs_ns in by_size.values()]
        figures["pick", f"{policy}, 1000 instances", "× 10 instances"] = costs[-1] / costs[0]
    for variant, seconds in findings.start.items():
        figures["start", variant, "s"] = statistics.median(seconds)
    for name, by_peer in findings.watched.items():
        figures["watched", f"CPU, {name}", f"× {NEXUS}"] = by_peer["watched"].ratio()
    if findings.workers:
        one, two = (statistics.median(w.capacity_per_s) for w in findings.workers.values())
        figures["workers", "capacity of two", "× one"] = two / one
    keys = {target: (target.row, target.figure, target.unit) for target in TARGETS}
    return {target: figures[key] for target, key in keys.items() if key in figures}


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
    """Compare the cost of a stream's chunks 1000 to 4000 with that of its chunks 32 to 1000."""
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
    figures: dict[tuple[str, str, str], float] = {}
    for name, by_peer in findings.memory.items():
        over_kib = statistics.median(by_peer[NEXUS].over_kib)
        figures[name, "errors", ""] = by_peer[NEXUS].errors
        figures[name, "memory for each stream", "KiB"] = over_kib
        figures[name, "memory over idle", "MiB"] = over_kib / 1024
    return figures


def _why(findings: Findings, target: Target) -> str:
    if target.row in findings.missing:
        return f": {findings.missing[target.row]}"
    peer = target.unit.removeprefix("× ")
    return f": needs --peers {peer}" if peer in others.NAMES else ""


def judged(findings: Findings, values: Mapping[Target, float]) -> list[dict[str, str]]:
    """Return a row for each target of the measured scenarios: the value, and whether it is met."""
    rows = []
    for target in TARGETS:
        if target.row not in findings.rows:
            continue
        value = values.get(target)
        text = f"{value:.2f}" if value is not None else ""
        verdict = "not measured" if value is None else "met" if target.met(value) else "missed"
        if value is None:
            verdict += _why(findings, target)
        figure = f"{target.row}: {target.figure}"
        rows.append(
            {"figure": figure, "target": target.text(), "measured": text, "verdict": verdict}
        )
    return rows


def target_table(rows: Sequence[Mapping[str, str]]) -> str:
    head = ["figure", "target", "measured", "verdict"]
    return "\n" + _grid([head, *([row[name] for name in head] for row in rows)])


def noise(findings: Findings) -> list[str]:
    """Return the rows that cannot be trusted: rounds that differ too much or took too long."""
    series: dict[str, list[float]] = {}
    for name, by_peer in findings.loads.items():
        series |= {f"{name} of {p}": r.cpu_us for p, r in by_peer.items() if p != "direct"}
    for policy, by_size in findings.pick.items():
        series |= {f"pick of {policy} among {size}": v for size, v in by_size.items()}
    series |= {f"start, {name}": values for name, values in findings.start.items()}
    for count, result in findings.workers.items():
        series[f"{count} workers"] = result.capacity_per_s
    late = [
        f"{name} of {peer} (not all streams were open at the same time in {memory.late} rounds)"
        for name, by_peer in findings.memory.items()
        for peer, memory in by_peer.items()
        if memory.late
    ]
    return late + [name for name, values in series.items() if max(values) > NOISY * min(values)]
