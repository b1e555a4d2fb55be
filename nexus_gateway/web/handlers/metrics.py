"""GET /metrics: the figures of all workers, from any of them. An admin call that only reads.

They are counted from the start if METRICS is on and the extra `metrics` is installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib.util import find_spec

from aiohttp import web

from nexus_gateway import __version__
from nexus_gateway.errors import NotFound, NotInstalled
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.counting import Counting
from nexus_gateway.telemetry.metrics.counts import Counts
from nexus_gateway.telemetry.metrics.gauges import Gauges, ProcessFigures, state_of
from nexus_gateway.telemetry.shared import REQUESTS_IN_FLIGHT, WorkerState
from nexus_gateway.web.gateway import GATEWAY, Gateway, gateway_of

PROCESS = (definitions.MEMORY.name, definitions.OPEN_FDS.name, definitions.MAX_FDS.name)
# Exposed as 0 before the first one, so that `rate` sees the first one.
EXPECTED = ("success", "failure")
EXPECTED_REFUSALS = (("401", "invalid_api_key"), ("404", "unknown_path"))


class Meter:
    """All metrics of a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._counting = Counting(gateway.pool.instances)
        self._process = ProcessFigures(gateway.scheduler.clock)
        gateway.observers.append(self._counting)
        gateway.refused = self._counting.refuse
        gateway.shares.append(self.share)

    def share(self, state: WorkerState) -> None:
        """Add this process's figures to the state that it publishes."""
        state.counts.update(self._own_counts().shared())
        state.gauges.update(self._process_gauges())

    def counts(self) -> Counts:
        """Return a copy of what this process counted, for a scrape."""
        counts = self._own_counts().copy()
        for refusal in EXPECTED_REFUSALS:
            counts.of(definitions.REFUSED, refusal)
        for instance in self._gateway.pool.instances:
            for outcome in EXPECTED:
                labels = (instance.provider_name, instance.name, outcome)
                counts.of(definitions.ATTEMPTS, labels)
        return counts

    def gauges(self) -> Gauges:
        """Return the gauges of all processes."""
        gateway, others = self._gateway, self._gateway.others.gauges
        in_flight = gateway.drain.in_flight + others.get(REQUESTS_IN_FLIGHT, 0)
        gauges: Gauges = {
            (definitions.IN_FLIGHT.name,): in_flight,
            (definitions.WORKERS.name,): gateway.workers,
            (definitions.BUILD.name, __version__): 1,
            **state_of(gateway.pool.instances),
        }
        for name, figure in self._process_gauges().items():
            gauges[(name,)] = figure + others.get(name, 0)
        return gauges

    def _own_counts(self) -> Counts:
        counts = self._counting.counts
        counts.of(definitions.RETRIES_DENIED)[0] = self._gateway.scheduler.retries.denied
        counts.of(definitions.CPU)[0] = self._process.recent()[definitions.CPU.name]
        return counts

    def _process_gauges(self) -> dict[str, float]:
        figures = self._process.recent()
        return {name: figures[name] for name in PROCESS if name in figures}


METER = web.AppKey("meter", Meter)


def is_installed() -> bool:
    """Return whether the extra `metrics` is installed, without loading it."""
    return find_spec("prometheus_client") is not None


def count(app: web.Application) -> None:
    """Count from now on, if METRICS is on and the extra is installed."""
    if app[GATEWAY].settings.metrics and is_installed():
        app[METER] = Meter(app[GATEWAY])


async def metrics(request: web.Request) -> web.Response:
    """Return all metrics as text."""
    gateway, meter = gateway_of(request), request.app.get(METER)
    if meter is None:
        if gateway.settings.metrics:
            raise NotInstalled("Metrics", "metrics")
        raise NotFound(
            "Metrics are off: set METRICS=true and restart the gateway.", code="metrics_off"
        )
    accept = request.headers.get("Accept", "")
    # Many instances make long texts: written in a thread, from copies.
    figures = (meter.counts(), gateway.others.counts, meter.gauges(), accept)
    body, content_type = await asyncio.to_thread(_render, *figures)
    return web.Response(body=body, headers={"Content-Type": content_type})


def _render(
    counts: Counts, others: Mapping[str, float], gauges: Gauges, accept: str
) -> tuple[bytes, str]:
    from nexus_gateway.telemetry.metrics.exposition import render

    counts.add_shared(others)
    return render(counts, gauges, accept)
