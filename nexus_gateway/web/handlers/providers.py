"""GET /v1/providers and POST /v1/providers/toggle.

The first returns all that an operator may want to know of the instances and of the settings, and no
secret. Of an address only the host is shown: the rest of a URL may hold credentials or resource
names.
"""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from nexus_gateway import __version__
from nexus_gateway.errors import InvalidRequest, NotFound
from nexus_gateway.routing.instance import Instance
from nexus_gateway.secret import Secret
from nexus_gateway.settings import VARIABLES, Settings
from nexus_gateway.telemetry.snapshot import instance_json
from nexus_gateway.web.gateway import Gateway, gateway_of
from nexus_gateway.web.request import json_response, read_object

logger = logging.getLogger("nexus_gateway")


def host_of(url: str) -> str | None:
    """Return a URL's host, with its port if it names one."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name:
        return None
    name = f"[{name}]" if ":" in name else name
    return name if port is None else f"{name}:{port}"


def detail(instance: Instance) -> dict[str, Any]:
    provider, leading = instance.provider, instance.leading
    return {
        **instance_json(instance),
        "number": instance.number,
        "host": host_of(instance.account.base_url),
        "plugin": _plugin(instance),
        "listedModels": [
            {"id": m.id, "kind": m.kind, "contextWindow": m.context or None, "images": m.images}
            for m in provider.models
        ],
        "endpoints": list(provider.endpoints),
        "availableInMs": _ms(instance.available_in_s()),
        "circuit": {
            "state": leading.breaker.state().value,
            "nextProbeInMs": _ms(leading.breaker.ready_in_s()),
            "failuresInARow": leading.breaker.failures_in_a_row,
        },
        "park": _park(instance),
        "health": _health(instance),
        "quotas": [
            {
                "what": quota.what,
                "remaining": quota.remaining,
                "limit": quota.limit,
                "resetInMs": _ms(quota.reset_in_s),
            }
            for quota in leading.quotas.known(leading.total_requests)
        ],
        "inFlightHere": instance.in_flight,
        "inFlightElsewhere": instance.elsewhere.in_flight,
    }


def _plugin(instance: Instance) -> dict[str, Any]:
    distribution, _, version = instance.origin.rpartition(" ")
    cls = type(instance.provider)
    return {
        "name": instance.provider_name,
        "distribution": distribution or None,
        "version": version or None,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "apiVersion": cls.api_version,
    }


def _park(instance: Instance) -> dict[str, Any]:
    parked_s = instance.leading.parked_for_s()
    return {
        "reason": instance.leading.park_reason(),
        "forMs": _ms(parked_s),
        "until": round(time.time() + parked_s, 3) if parked_s else None,
        "badKeysInARow": instance.bad_keys_in_a_row,
    }


def _health(instance: Instance) -> dict[str, Any]:
    health = instance.health
    return {
        "score": round(health.score(), 4),
        "successRate": round(health.success_rate(), 4),
        "latencyShare": round(health.latency_share(), 4),
        "latencyMs": _rounded(health.latency_ms()),
        "firstTokenP50Ms": _rounded(health.first_token_ms(0.5)),
        "firstTokenP95Ms": _rounded(health.first_token_ms(0.95)),
        "tokensPerSecond": _rounded(health.tokens_per_s()),
    }


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def overview(gateway: Gateway) -> dict[str, Any]:
    pool, scheduler = gateway.pool, gateway.scheduler
    return {
        "version": __version__,
        "workers": gateway.workers,
        "providers": [detail(instance) for instance in pool.instances],
        "idleProviders": list(pool.idle),
        "pluginProblems": [
            {"plugin": p.name, "distribution": p.distribution, "reason": p.reason}
            for p in pool.problems
        ],
        "warnings": list(pool.warnings),
        "policies": list(scheduler.policies),
        "hooks": {} if gateway.hooks is None else dict(gateway.hooks.moments),
        "retriesDenied": scheduler.retries.denied,
        "settings": shown(gateway.settings),
    }


def shown(settings: Settings) -> dict[str, Any]:
    """Return the settings by variable; of secrets only whether they are set, or how many."""
    return {v.name: _shown(getattr(settings, v.name.lower())) for v in VARIABLES}


def _shown(value: Any) -> Any:
    if isinstance(value, Secret):
        return bool(value)
    if isinstance(value, tuple):
        return len(value)
    if isinstance(value, str) and (host := host_of(value)):
        return f"{urlsplit(value).scheme}://{host}"
    return value


async def list_providers(request: web.Request) -> web.Response:
    return json_response(overview(gateway_of(request)))


async def toggle(request: web.Request) -> web.Response:
    """Enable or disable an instance; its requests in flight go on."""
    body = await read_object(request)
    name, enabled = body.get("name"), body.get("enabled")
    if not isinstance(name, str):
        raise InvalidRequest("`name` must be a string: the name of an instance.", param="name")
    if not isinstance(enabled, bool):
        raise InvalidRequest("`enabled` must be true or false.", param="enabled")
    gateway = gateway_of(request)
    pool = gateway.pool
    instance = pool.instance(name)
    if instance is None:
        names = ", ".join(i.name for i in pool.instances)
        raise NotFound(
            f"There is no instance of that name. The instances are: {names}.",
            param="name",
            code="instance_not_found",
        )
    if enabled:
        instance.enable()
    else:
        instance.disable()
    gateway.decided.set()
    logger.info("%s is %s", instance.name, "enabled" if enabled else "disabled")
    return json_response(instance_json(instance))
