"""The scenarios, and the gateway's targets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """A load.

    Args:
        name: in the tables.
        script: the upstream's.
        requests: in one round.
        callers: at the same time.
        paced: whether the upstream pauses between chunks, so that the time to the first is shown.
    """

    name: str
    script: str
    requests: int
    callers: int
    paced: bool = False


LOADS = (
    Scenario("burst-32", "stream-32", 2000, 32),
    Scenario("burst-1000", "stream-1000", 160, 16),
    Scenario("burst-4000", "stream-4000", 48, 16),
    Scenario("whole", "whole", 4000, 32),
    Scenario("paced-500", "stream-32-20", 1500, 500, paced=True),
    Scenario("paced-8", "stream-32-20", 64, 8, paced=True),
)
OPEN = Scenario("open-2000", "stream-40-200", 2000, 2000, paced=True)
FLOOD_MIB = 100
OTHERS = (OPEN.name, "flood", "pick", "start", "workers", "watched")
NAMES = (*(load.name for load in LOADS), *OTHERS)


@dataclass(frozen=True)
class Target:
    """The limit of a figure.

    Args:
        row: the scenario.
        figure: its name.
        limit: the largest value that meets the target; the smallest if `at_least`.
        unit: of the figure and the limit.
        at_least: more is better.
        stretch: the target is desired, not promised.
        below: the limit itself does not meet the target.
    """

    row: str
    figure: str
    limit: float
    unit: str = ""
    at_least: bool = False
    stretch: bool = False
    below: bool = False

    def met(self, value: float) -> bool:
        """Return whether a value meets the target."""
        if self.at_least:
            return value >= self.limit
        return value < self.limit if self.below else value <= self.limit

    def text(self) -> str:
        """Return the target as a table shows it."""
        sign = "≥" if self.at_least else "<" if self.below else "≤"
        return f"{sign} {self.limit:g} {self.unit}".rstrip() + " (stretch)" * self.stretch


TARGETS = (
    Target("burst-32", "CPU", 1.10, "× bare"),
    Target("burst-32", "CPU", 1.00, "× sglang-router", below=True),
    Target("burst-32", "CPU", 1.00, "× vllm-router", below=True),
    Target("burst-32", "CPU", 1.00, "× smg", below=True),
    Target("burst-32", "CPU", 1.00, "× bare", stretch=True),
    Target("burst-1000", "CPU", 0.80, "× bare"),
    Target("burst-1000", "CPU", 0.333, "× sglang-router"),
    # Flat: a stream's later chunks cost as much as its earlier ones, within the noise.
    Target("burst-4000", "a later chunk's CPU", 1.20, "× an earlier one's"),
    Target("whole", "CPU", 1.20, "× bare"),
    Target("whole", "CPU", 1.00, "× bare", stretch=True),
    Target("paced-500", "CPU", 0.70, "× bare"),
    Target("paced-500", "CPU", 1.00, "× smg", below=True),
    Target("paced-500", "errors", 0),
    Target("paced-500", "added TTFT p50", 3, "ms"),
    Target("paced-500", "added TTFT p99", 60, "ms"),
    Target("paced-8", "added TTFT p50", 1, "ms"),
    Target("paced-8", "added TTFT p99", 2, "ms"),
    Target("open-2000", "errors", 0),
    Target("open-2000", "memory for each stream", 40, "KiB"),
    Target("flood", "errors", 0),
    Target("flood", "memory over idle", 2, "MiB"),
    Target("pick", "smart, 1000 instances", 5, "× 10 instances"),
    Target("pick", "fastest, 1000 instances", 5, "× 10 instances"),
    Target("pick", "round-robin, 1000 instances", 5, "× 10 instances"),
    Target("start", "fast", 0.6, "s"),
    Target("start", "plain", 0.8, "s"),
    Target("watched", "CPU, burst-32", 1.05, "× nexus"),
    Target("watched", "CPU, whole", 1.05, "× nexus"),
    Target("workers", "capacity of two", 1.8, "× one", at_least=True),
)


def chunks(name: str) -> int:
    """Return the number of chunks in a burst's stream."""
    script = next(load.script for load in LOADS if load.name == name)
    return int(script.split("-")[1])
