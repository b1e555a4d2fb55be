"""How an instance looks from outside: for /health, the toggle and the live events.

It speaks for all workers, where there are several.
"""

from __future__ import annotations

from typing import Any

from nexus_gateway.instance import Instance


def percent(share: float) -> str:
    """Write a share of 1 as people read it."""
    return f"{share * 100:.1f}%"


def view(instance: Instance) -> dict[str, Any]:
    """Describe an instance's state; no key, no part of one."""
    health = instance.health
    latency_ms = health.latency_ms()
    speed = health.tokens_per_s()
    quota_left = instance.quota_left()
    return {
        "name": instance.name,
        "provider": instance.provider_name,
        "model": instance.model,
        "circuitState": instance.breaker.state().value,
        "enabled": instance.enabled,
        "inFlight": instance.in_flight + instance.elsewhere.in_flight,
        "parkedForMs": round(instance.parked_for_s() * 1000),
        "parkReason": instance.park_reason(),
        "quotaLeft": None if quota_left is None else percent(quota_left),
        "lastReason": instance.last_reason,
        "metrics": {
            "totalRequests": instance.total_requests + instance.elsewhere.total_requests,
            "successRate": percent(health.success_rate()),
            "avgLatencyMs": None if latency_ms is None else round(latency_ms),
            "healthScore": percent(health.score()),
            "tokensPerSecond": None if speed is None else round(speed, 1),
        },
    }
