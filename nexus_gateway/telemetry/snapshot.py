"""Instances and requests as JSON: for /health, the toggle and the live feed.

With several workers an instance's figures are those of all of them; only its quota is what this
worker's responses reported.
"""

from __future__ import annotations

from typing import Any

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.health import Health
from nexus_gateway.routing.instance import Deployment, Instance
from nexus_gateway.telemetry.timeline import failed


def percent(share: float) -> str:
    return f"{share * 100:.1f}%"


def instance_json(instance: Instance) -> dict[str, Any]:
    """Return an instance's state, that of its leading model; no key, no part of one."""
    leading = instance.leading
    return {
        "name": instance.name,
        "provider": instance.provider_name,
        **_deployment_json(leading),
        "enabled": instance.enabled,
        "inFlight": instance.in_flight + instance.elsewhere.in_flight,
        "metrics": {
            "totalRequests": instance.total_requests + instance.elsewhere.total_requests,
            **_health_json(instance.health),
        },
        "models": [
            {**_deployment_json(deployment), "metrics": _model_metrics(deployment)}
            for deployment in instance.deployments.values()
        ],
    }


def _model_metrics(deployment: Deployment) -> dict[str, Any]:
    """Return this process's requests of a model, and the health that all have measured."""
    return {"totalRequests": deployment.total_requests, **_health_json(deployment.health)}


def _deployment_json(deployment: Deployment) -> dict[str, Any]:
    quota_left, state = deployment.quota_left(), deployment.breaker.state()
    probe_in_s = deployment.breaker.ready_in_s() if state is State.OPEN else 0.0
    return {
        "model": deployment.model,
        "circuitState": state.value,
        "probeInMs": round(probe_in_s * 1000),
        "parkedForMs": round(deployment.parked_for_s() * 1000),
        "parkReason": deployment.park_reason(),
        "quotaLeft": None if quota_left is None else percent(quota_left),
        "lastReason": deployment.last_reason,
    }


def _health_json(health: Health) -> dict[str, Any]:
    return {
        "judged": health.is_judged,
        "successRate": percent(health.success_rate()),
        "avgLatencyMs": _rounded(health.latency_ms()),
        "latencyShare": percent(health.latency_share()),
        "healthScore": percent(health.score()),
        "tokensPerSecond": _rounded(health.tokens_per_s(), 1),
        "ttftP50Ms": _rounded(health.first_token_ms(0.5, of_at_least=1)),
        "ttftP95Ms": _rounded(health.first_token_ms(0.95, of_at_least=1)),
    }


def _rounded(number: float | None, digits: int | None = None) -> float | None:
    return None if number is None else round(number, digits)


def request_json(record: RequestRecord) -> dict[str, Any]:
    """Return a request that has ended: its attempts and their failures, no word of its content."""
    return {
        "id": record.id,
        "endedAt": round(record.ended_s * 1000),
        "endpoint": record.endpoint,
        "askedModel": record.asked_model,
        "stream": record.stream,
        "policy": record.policy,
        "caller": record.caller or None,
        "instance": record.instance or None,
        "model": record.model or None,
        "hedged": record.hedged,
        "resumed": record.resumed,
        "status": record.status,
        "outcome": record.outcome,
        "why": record.why,
        "failed": failed(record),
        "failedOver": bool(record.failovers),
        "firstMs": round(record.first_ms, 1) if record.began else None,
        "upstreamMs": round(record.upstream_ms, 1),
        "totalMs": round(record.total_ms, 1),
        "promptTokens": record.tokens.prompt or 0,
        "completionTokens": record.tokens.completion or 0,
        "attempts": [
            {
                "instance": attempt.instance.name,
                "outcome": attempt.outcome.value,
                "reason": attempt.reason,
                "status": attempt.status or None,
                "durationMs": round(attempt.duration_ms, 1),
            }
            for attempt in record.attempts
        ],
    }
