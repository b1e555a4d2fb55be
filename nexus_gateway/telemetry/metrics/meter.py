"""The metrics of one process: what it counts, and what it publishes to the other workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

from nexus_gateway import __version__
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.scheduler import Scheduler
from nexus_gateway.telemetry import stderr
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.counting import Counting
from nexus_gateway.telemetry.metrics.counts import Counts
from nexus_gateway.telemetry.metrics.gauges import Gauges, ProcessFigures, state_of
from nexus_gateway.telemetry.shared import REQUESTS_IN_FLIGHT, WorkerState

PROCESS = (definitions.MEMORY.name, definitions.OPEN_FDS.name, definitions.MAX_FDS.name)
# Exposed as 0 before the first one, so that `rate` sees the first one.
EXPECTED = ("success", "failure")
EXPECTED_REFUSALS = (("401", "invalid_api_key"), ("404", "unknown_path"))


@cache
def is_installed() -> bool:
    """Return whether the extra `metrics` is installed, without loading it."""
    return find_spec("prometheus_client") is not None


class Meter:
    """Counts for /metrics.

    Attributes:
        connections: returns the number of callers' connections.
    """

    def __init__(self, pool: Pool, scheduler: Scheduler) -> None:
        self._pool = pool
        self._scheduler = scheduler
        self._counting = Counting(pool.instances)
        self._process = ProcessFigures(scheduler.clock)
        self.connections: Callable[[], int] = lambda: 0
        self.observe = self._counting.observe
        self.refuse = self._counting.refuse

    def contribute(self, state: WorkerState) -> None:
        """Add this process's figures to the state that it publishes."""
        state.counts.update(self._own_counts().shared())
        state.gauges.update(self._process_gauges())

    def counts(self) -> Counts:
        """Return a copy of what this process counted, for a scrape."""
        counts = self._own_counts().copy()
        for refusal in EXPECTED_REFUSALS:
            counts.of(definitions.REFUSED, refusal)
        for instance in self._pool.instances:
            for outcome in EXPECTED:
                labels = (instance.provider_name, instance.name, outcome)
                counts.of(definitions.ATTEMPTS, labels)
        return counts

    def gauges(self, in_flight: int, workers: int, others: WorkerState) -> Gauges:
        """Return the gauges of all processes."""
        gauges: Gauges = {
            (definitions.IN_FLIGHT.name,): in_flight + others.gauges.get(REQUESTS_IN_FLIGHT, 0),
            (definitions.WORKERS.name,): workers,
            (definitions.BUILD.name, __version__): 1,
            **state_of(self._pool.instances),
        }
        for name, figure in self._process_gauges().items():
            gauges[(name,)] = figure + others.gauges.get(name, 0)
        return gauges

    def _own_counts(self) -> Counts:
        counts = self._counting.counts
        counts.of(definitions.RETRIES_DENIED)[0] = self._scheduler.retries.denied
        counts.of(definitions.LOG_DROPPED)[0] = stderr.dropped_lines()
        counts.of(definitions.CPU)[0] = self._process.recent()[definitions.CPU.name]
        return counts

    def _process_gauges(self) -> dict[str, float]:
        figures = self._process.recent()
        own = {name: figures[name] for name in PROCESS if name in figures}
        return {**own, definitions.CONNECTIONS.name: self.connections()}
