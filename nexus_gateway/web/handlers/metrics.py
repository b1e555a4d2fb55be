"""GET /metrics: the figures of all workers, whichever of them is asked.

They are counted from the start where the extra `metrics` is installed, unless METRICS says no. An
admin call that only looks, as they tell of callers and keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib.util import find_spec

from aiohttp import web

from nexus_gateway import __version__
from nexus_gateway.errors import NotFound, NotInstalled
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.counting import Counting, Counts
from nexus_gateway.telemetry.metrics.gauges import Gauges, ProcessFigures, state_of
from nexus_gateway.telemetry.shared import REQUESTS_IN_FLIGHT, WorkerState
from nexus_gateway.web.gateway import GATEWAY, Gateway, gateway_of

PROCESS = (definitions.MEMORY, definitions.OPEN_FDS, definitions.MAX_FDS)
# At the first scrape, so that these exist before anything of the sort has happened.
EXPECTED = ("success", "failure")
EXPECTED_REFUSALS = (("401", "invalid_api_key"), ("404", "unknown_path"))


class Meter:
    """All figures of a gateway.

    Args:
        gateway: it.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._counting = Counting(gateway.pool.instances)
        self._process = ProcessFigures(gateway.scheduler.clock)
        gateway.observers.append(self._counting)
        gateway.refused = self._counting.refuse
        gateway.shares.append(self.share)

    def share(self, said: WorkerState) -> None:
        """Add what this process counted to what it tells the others."""
        said.counts.update(self._own().shared())
        figures = self._process.recent()
        said.gauges.update({p.name: figures[p.name] for p in PROCESS if p.name in figures})

    def counts(self) -> tuple[Counts, Mapping[str, float]]:
        """Return copies of what was counted here, and in the other processes."""
        own = self._own()
        for refusal in EXPECTED_REFUSALS:
            own.of((definitions.REFUSED.name, *refusal))
        for instance in self._gateway.pool.instances:
            for outcome in EXPECTED:
                own.of((definitions.ATTEMPTS.name, instance.provider_name, instance.name, outcome))
        return own, self._gateway.others.counts

    def gauges(self) -> Gauges:
        """Return what goes up and down, of all processes."""
        gateway, others = self._gateway, self._gateway.others.gauges
        in_flight = gateway.drain.in_flight + others.get(REQUESTS_IN_FLIGHT, 0)
        figures = self._process.recent()
        return {
            (definitions.IN_FLIGHT.name,): in_flight,
            (definitions.WORKERS.name,): gateway.workers,
            (definitions.BUILD.name, __version__): 1,
            **state_of(gateway.pool.instances),
            **{
                (family.name,): figures[family.name] + others.get(family.name, 0)
                for family in PROCESS
                if family.name in figures
            },
        }

    def _own(self) -> Counts:
        own = self._counting.counts.copy()
        own.add((definitions.RETRIES_DENIED.name,), self._gateway.scheduler.retries.denied)
        own.add((definitions.CPU.name,), self._process.recent()[definitions.CPU.name])
        return own


METER = web.AppKey("meter", Meter)


def is_installed() -> bool:
    """Tell whether the extra `metrics` is there, without loading it."""
    return find_spec("prometheus_client") is not None


def count(app: web.Application) -> None:
    """Begin to count, where that is wanted and possible."""
    if app[GATEWAY].settings.metrics and is_installed():
        app[METER] = Meter(app[GATEWAY])


async def metrics(request: web.Request) -> web.Response:
    """Write all figures.

    Raises:
        NotFound: METRICS is false.
        NotInstalled: the extra is not there.
    """
    meter = request.app.get(METER)
    if meter is None:
        if gateway_of(request).settings.metrics:
            raise NotInstalled("Metrics", "metrics")
        raise NotFound(
            "Metrics are switched off: set METRICS=true and start the gateway again.",
            code="metrics_off",
        )
    accept = request.headers.get("Accept", "")
    # Many instances make many lines: they are put together beside the loop, from copies.
    figures = (*meter.counts(), meter.gauges())
    body, content_type = await asyncio.to_thread(_render, *figures, accept)
    return web.Response(body=body, headers={"Content-Type": content_type})


def _render(
    own: Counts, others: Mapping[str, float], gauges: Gauges, accept: str
) -> tuple[bytes, str]:
    from nexus_gateway.telemetry.metrics.exposition import render

    own.add_shared(others)
    return render(own, gauges, accept)
