"""The verdict of a soak: does anything grow, stay open or stall?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

CALLERS = 50
# A caller needs a connection to us and one to an upstream, and may leave one in the pool.
PER_CALLER = 3
TOLERANCE = 4
MEMORY = {"used_kib": "memory in use, MiB", "rss_kib": "RSS, MiB"}
MOST_GROWTH_KIB = 10 * 1024
LONGEST_STALL_MS = 50.0
# In so many of the seconds a page fault or another program may hold the loop up for longer.
STALLED_SHARE = 0.01
# Stalls are judged in the seconds in which no wait for a core was longer, if these are enough.
QUIET_MS = 20.0
LEAST_QUIET = 0.1
BLOCKS = 120
Sample = dict[str, float]


@dataclass(frozen=True)
class Finding:
    """One line of the result: a figure, and the one it is compared with."""

    figure: str
    allowed: str
    found: str
    good: bool


def growth(values: Sequence[Sample], name: str) -> float:
    """Return how much a figure grows over the samples, by the median slope between any two.

    Theil and Sen's estimator: up to 29 % of the samples may be anything (bursts of a busy machine,
    a sawtooth), which decide a comparison of two ends. Blocks of samples count as their medians.
    """
    size = max(1, len(values) // BLOCKS)
    blocks = [values[n : n + size] for n in range(0, len(values) - size + 1, size)]
    points = [
        (statistics.median(s["at_s"] for s in block), statistics.median(s[name] for s in block))
        for block in blocks
    ]
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x2 > x1]
    return statistics.median(slopes) * (points[-1][0] - points[0][0]) if slopes else 0.0


def verdict(loaded: Sequence[Sample], idle: Sample, last: Sample) -> Iterator[Finding]:
    """Judge growth by the slope over time after the warm-up, and what is open by the rest.

    The first quarter is the warm-up of the memory. The RSS has twice as long: it rises by what
    malloc keeps of a large event each time that more of them than before come at once. The number
    of open files under load varies with the faults of the moment; leaked ones are still open at
    rest.
    """
    warm = loaded[len(loaded) // 4 :]
    for name, unit, most, measured in (
        ("used_kib", 1024, MOST_GROWTH_KIB, warm),
        ("rss_kib", 1024, MOST_GROWTH_KIB, loaded[len(loaded) // 2 :]),
        *((name, 1, CALLERS, warm) for name in ("files", "sockets", "tasks")),
    ):
        grown = growth(measured, name)
        figure = f"growth of {MEMORY.get(name, name)}"
        limit = f"at most {most / unit:.0f}"
        yield Finding(figure, limit, f"{grown / unit:.1f}", grown <= most)
    for name in ("files", "sockets", "tasks"):
        most_open, least = max(s[name] for s in loaded), idle[name]
        allowed = least + PER_CALLER * CALLERS
        good = most_open <= allowed
        yield Finding(f"most {name}", f"at most {allowed:.0f}", f"{most_open:.0f}", good)
    for name in ("files", "sockets", "tasks", "in_flight"):
        good = last[name] <= idle[name] + (TOLERANCE if name != "in_flight" else 0)
        figure = f"{name.replace('_', ' ')} at rest"
        yield Finding(figure, f"{idle[name]:.0f}", f"{last[name]:.0f}", good)
    # While it waits for cores, what the loop does itself takes longer as well.
    stalls = sorted(s["stall_ms"] for s in loaded if s["stolen_ms"] <= QUIET_MS)
    limit = f"at most {LONGEST_STALL_MS:.0f}"
    if len(stalls) < len(loaded) * LEAST_QUIET:
        yield Finding("stalls of the loop, ms", limit, "not known: the machine is busy", good=False)
        return
    usual = stalls[-1 - min(len(stalls) - 1, max(2, int(len(stalls) * STALLED_SHARE)))]
    text = f"{usual:.0f} (longest {stalls[-1]:.0f})"
    yield Finding("stalls of the loop, ms", limit, text, usual <= LONGEST_STALL_MS)
