"""How the instances are, as gauges: read when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable

from nexus_gateway.breaker import State
from nexus_gateway.instance import Instance
from nexus_gateway.metrics import families as f
from nexus_gateway.metrics.counts import Key

PARK_REASONS = ("bad_key", "rate_limited", "resting")
Gauges = dict[Key, float]


def state_of(instances: Iterable[Instance]) -> Gauges:
    """Return the gauges of all instances, and of the models that they serve."""
    gauges: Gauges = {}
    for instance in instances:
        _add(gauges, instance)
        available = instance.is_available
        for model in models_of(instance):
            for family, count in ((f.MODEL_INSTANCES, True), (f.MODEL_AVAILABLE, available)):
                key = (family.name, model)
                gauges[key] = gauges.get(key, 0) + count
    return gauges


def _add(gauges: Gauges, instance: Instance) -> None:
    who = (instance.provider_name, instance.name)
    health, quota_left = instance.health, instance.quota_left()
    gauges[(f.INSTANCE_INFO.name, *who, instance.model)] = 1
    gauges[(f.ENABLED.name, *who)] = instance.enabled
    gauges[(f.AVAILABLE.name, *who)] = instance.is_available
    now = instance.breaker.state()
    for state in State:
        gauges[(f.CIRCUIT.name, *who, state.value.lower())] = state is now
    for reason in PARK_REASONS:
        gauges[(f.PARKED.name, *who, reason)] = reason == instance.park_reason()
    gauges[(f.PARKED_FOR.name, *who)] = instance.parked_for_s()
    gauges[(f.HEALTH.name, *who)] = health.score()
    gauges[(f.SUCCESS.name, *who)] = health.success_rate()
    if quota_left is not None:
        gauges[(f.QUOTA.name, *who)] = quota_left
    in_flight = instance.in_flight + instance.elsewhere.in_flight
    gauges[(f.INSTANCE_IN_FLIGHT.name, *who)] = in_flight


def models_of(instance: Instance) -> frozenset[str]:
    """Return the models that an instance is known to serve."""
    return frozenset({instance.model, *(model.id for model in instance.provider.models)})
