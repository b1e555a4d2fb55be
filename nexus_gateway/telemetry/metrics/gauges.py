"""Gauges: the state of the instances, and what the process uses, by Prometheus's usual names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import PARK_REASONS, Instance
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.counting import models_of
from nexus_gateway.telemetry.metrics.counts import Key

Gauges = dict[Key, float]


def state_of(instances: Iterable[Instance]) -> Gauges:
    gauges: Gauges = {}
    for instance in instances:
        gauges |= _instance_gauges(instance)
        for model in models_of(instance):
            known, available = definitions.MODEL_INSTANCES.name, definitions.MODEL_AVAILABLE.name
            for name, count in ((known, 1), (available, instance.is_available_for(model))):
                gauges[(name, model)] = gauges.get((name, model), 0) + count
    return gauges


def _instance_gauges(instance: Instance) -> Gauges:
    labels = (instance.provider_name, instance.name)
    leading, health = instance.leading, instance.health
    in_flight = instance.in_flight + instance.elsewhere.in_flight
    gauges: Gauges = {
        (definitions.INSTANCE_INFO.name, *labels, instance.model): 1,
        (definitions.ENABLED.name, *labels): instance.enabled,
        (definitions.AVAILABLE.name, *labels): instance.is_available,
        (definitions.PARKED_FOR.name, *labels): leading.parked_for_s(),
        (definitions.HEALTH.name, *labels): health.score(),
        (definitions.SUCCESS.name, *labels): health.success_rate(),
        (definitions.INSTANCE_IN_FLIGHT.name, *labels): in_flight,
    }
    current, park_reason = leading.breaker.state(), leading.park_reason()
    for state in State:
        gauges[(definitions.CIRCUIT.name, *labels, state.value.lower())] = state is current
    for reason in PARK_REASONS:
        gauges[(definitions.PARKED.name, *labels, reason)] = reason == park_reason
    if (quota_left := leading.quota_left()) is not None:
        gauges[(definitions.QUOTA.name, *labels)] = quota_left
    return gauges


class ProcessFigures:
    """What this process uses, read every two seconds at most."""

    EVERY_S = 2.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._read_s = float("-inf")
        self._figures: dict[str, float] = {}

    def recent(self) -> dict[str, float]:
        """Return the figures by metric; what the system does not provide is left out."""
        now_s = self._clock()
        if now_s - self._read_s >= self.EVERY_S:
            self._read_s = now_s
            self._figures = {definitions.CPU.name: time.process_time(), **_from_proc()}
        return self._figures


def _from_proc() -> dict[str, float]:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        open_fds = len(os.listdir("/proc/self/fd"))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError):
        return {}
    return {
        definitions.MEMORY.name: pages * os.sysconf("SC_PAGE_SIZE"),
        definitions.OPEN_FDS.name: open_fds,
        definitions.MAX_FDS.name: limit,
    }
