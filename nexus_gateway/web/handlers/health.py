"""GET /health, /health/live and /health/ready."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from nexus_gateway import __version__
from nexus_gateway.routing.instance import Instance
from nexus_gateway.telemetry.shared import REQUESTS_IN_FLIGHT
from nexus_gateway.telemetry.snapshot import instance_json
from nexus_gateway.web.gateway import gateway_of
from nexus_gateway.web.request import json_response


def status_of(instances: Iterable[Instance]) -> str:
    """Sum up the enabled instances: healthy if all their models serve, unhealthy if none may.

    A model that awaits a probe may be tried, but does not count as serving.
    """
    enabled = [instance for instance in instances if instance.enabled]
    if not any(instance.available_in_s() == 0 for instance in enabled):
        return "unhealthy"
    own = [deployment for instance in enabled for deployment in instance.own()]
    return "healthy" if all(deployment.is_available for deployment in own) else "degraded"


async def health(request: web.Request) -> web.Response:
    """Report all instances, of all workers; 200 also in an outage, 503 only while draining."""
    gateway = gateway_of(request)
    draining = gateway.drain.begun.is_set()
    pool = gateway.pool
    elsewhere = int(gateway.others.gauges.get(REQUESTS_IN_FLIGHT, 0))
    body = {
        "status": "draining" if draining else status_of(pool.instances),
        "version": __version__,
        "workers": gateway.workers,
        "inFlightRequests": gateway.drain.in_flight + elsewhere,
        "providers": [instance_json(instance) for instance in pool.instances],
        "pluginProblems": [
            {"plugin": p.name, "distribution": p.distribution, "reason": p.reason}
            for p in pool.problems
        ],
    }
    return json_response(body, 503 if draining else 200)


async def live(request: web.Request) -> web.Response:
    return json_response({"status": "alive"})


async def ready(request: web.Request) -> web.Response:
    """Report whether requests may be sent here: not while draining or without any instance."""
    gateway = gateway_of(request)
    if gateway.drain.begun.is_set():
        return json_response({"status": "draining"}, 503)
    if not gateway.pool.instances:
        return json_response({"status": "no providers"}, 503)
    return json_response({"status": "ready"})
