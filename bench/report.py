"""What a run has found: the tables, the targets, and whether to trust them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import others
from memory import Memory
from rounds import Result
from scenarios import FLOOD_MIB, LOADS, TARGETS, Scenario, Target
from watched import Costs
from workers import Workers

NOISY = 1.5
BY_NAME = {scenario.name: scenario for scenario in LOADS}


@dataclass
class Findings:
    """Everything measured; what was left out is empty, and `missing` may tell why."""

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
    """Return the median CPU of a request, in microseconds."""
    return statistics.median(results[peer].cpu_us)


def added_ms(results: Mapping[str, Result], peer: str, percentile: str) -> float:
    """Return what a peer adds to the time to the first content, in ms."""
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
        for way, values in findings.start.items():
            spread = f"{min(values):.2f}-{max(values):.2f}"
            rows.append([way, f"{statistics.median(values):.2f}", spread])
        yield "\nstart\n" + _grid(rows)
    if findings.workers:
        rows = [["workers", "req/s", "× one", "capacity req/s", "× one", "errors"]]
        one = findings.workers[1]
        for count, told in findings.workers.items():
            row = [str(count)]
            for now, then in ((told.per_s, one.per_s), (told.capacity_per_s, one.capacity_per_s)):
                median = statistics.median(now)
                row += [f"{median:.0f}", f"{median / statistics.median(then):.2f}"]
            rows.append([*row, str(told.errors)])
        yield "\nworkers\n" + _grid(rows)


def _watched(findings: Findings) -> Iterator[str]:
    for name, by_peer in findings.watched.items():
        rows = [["peer", "CPU µs/req", "× nexus", "95 of 100", "the least µs", "× nexus"]]
        without_us = min(next(iter(by_peer.values())).cpu_us)
        for peer, told in by_peer.items():
            low, high = told.range()
            cpu_us, least_us = statistics.median(told.cpu_us), min(told.cpu_us)
            ratios = f"{told.ratio():.3f}", f"{low:.3f}-{high:.3f}"
            row = [peer, f"{cpu_us:.0f}", *ratios, f"{least_us:.0f}"]
            rows.append([*row, f"{least_us / without_us:.3f}"])
        yield f"\nwatched, {name}\n" + _grid(rows)


def tables(findings: Findings) -> str:
    """Lay out what was measured, medians with their spreads."""
    return "\n".join(
        [*_loads(findings), *_memory(findings), *_others(findings), *_watched(findings)]
    )


def _why(findings: Findings, target: Target) -> str:
    if target.row in findings.missing:
        return f": {findings.missing[target.row]}"
    peer = target.unit.removeprefix("× ")
    return f": needs --peers {peer}" if peer in others.NAMES else ""


def judged(findings: Findings, values: Mapping[Target, float]) -> list[dict[str, str]]:
    """Return a row for each target of what was measured: its value, and whether that meets it."""
    rows = []
    for target in TARGETS:
        if target.row not in findings.rows:
            continue
        value = values.get(target)
        told = f"{value:.2f}" if value is not None else ""
        verdict = "not measured" if value is None else "met" if target.met(value) else "missed"
        if value is None:
            verdict += _why(findings, target)
        figure = f"{target.row}: {target.figure}"
        rows.append({"figure": figure, "target": target.text(), "found": told, "verdict": verdict})
    return rows


def target_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Lay out the targets."""
    head = ["figure", "target", "found", "verdict"]
    return "\n" + _grid([head, *([row[name] for name in head] for row in rows)])


def noise(findings: Findings) -> list[str]:
    """Name the rows whose rounds lie too far apart, or came too late, to be trusted."""
    series: dict[str, list[float]] = {}
    for name, by_peer in findings.loads.items():
        series |= {f"{name} of {p}": r.cpu_us for p, r in by_peer.items() if p != "direct"}
    for policy, by_size in findings.pick.items():
        series |= {f"pick of {policy} among {size}": v for size, v in by_size.items()}
    series |= {f"start, {way}": values for way, values in findings.start.items()}
    for count, told in findings.workers.items():
        series[f"{count} workers"] = told.capacity_per_s
    late = [
        f"{name} of {peer} (not all were open together in {memory.late} rounds)"
        for name, by_peer in findings.memory.items()
        for peer, memory in by_peer.items()
        if memory.late
    ]
    return late + [name for name, values in series.items() if max(values) > NOISY * min(values)]
