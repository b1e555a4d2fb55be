"""GET /metrics: the figures of all workers, from any of them. An admin call that only reads.

They are counted from the start if METRICS is on and the extra `metrics` is installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from nexus_gateway.errors import NotFound, NotInstalled
from nexus_gateway.telemetry.metrics.counts import Counts
from nexus_gateway.telemetry.metrics.gauges import Gauges
from nexus_gateway.web.gateway import gateway_of


async def metrics(request: web.Request) -> web.Response:
    """Return all metrics as text."""
    gateway = gateway_of(request)
    meter, others = gateway.meter, gateway.others
    if meter is None:
        if gateway.settings.metrics:
            raise NotInstalled("Metrics", "metrics")
        raise NotFound(
            "Metrics are off: set METRICS=true and restart the gateway.", code="metrics_off"
        )
    gateway.recorder.flush()
    gauges = meter.gauges(gateway.drain.in_flight, gateway.workers, others)
    accept = request.headers.get("Accept", "")
    # Many instances make long texts: written in a thread, from copies.
    figures = (meter.counts(), others.counts, gauges, accept)
    body, content_type = await asyncio.to_thread(_render, *figures)
    return web.Response(body=body, headers={"Content-Type": content_type})


def _render(
    counts: Counts, others: Mapping[str, float], gauges: Gauges, accept: str
) -> tuple[bytes, str]:
    from nexus_gateway.telemetry.metrics.exposition import render

    counts.add_shared(others)
    return render(counts, gauges, accept)
