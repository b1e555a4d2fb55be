"""What a process uses of its machine, by the names that every Prometheus client has for it.

How the instances are, as gauges: read when somebody asks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.counting import Key, models_of

PARK_REASONS = ("bad_key", "rate_limited", "resting")
Gauges = dict[Key, float]


def state_of(instances: Iterable[Instance]) -> Gauges:
    """Return the gauges of all instances, and of the models that they serve."""
    gauges: Gauges = {}
    for instance in instances:
        _add(gauges, instance)
        available = instance.is_available
        for model in models_of(instance):
            for family, count in (
                (definitions.MODEL_INSTANCES, True),
                (definitions.MODEL_AVAILABLE, available),
            ):
                key = (family.name, model)
                gauges[key] = gauges.get(key, 0) + count
    return gauges


def _add(gauges: Gauges, instance: Instance) -> None:
    who = (instance.provider_name, instance.name)
    health, quota_left = instance.health, instance.quota_left()
    gauges[(definitions.INSTANCE_INFO.name, *who, instance.model)] = 1
    gauges[(definitions.ENABLED.name, *who)] = instance.enabled
    gauges[(definitions.AVAILABLE.name, *who)] = instance.is_available
    now = instance.breaker.state()
    for state in State:
        gauges[(definitions.CIRCUIT.name, *who, state.value.lower())] = state is now
    for reason in PARK_REASONS:
        gauges[(definitions.PARKED.name, *who, reason)] = reason == instance.park_reason()
    gauges[(definitions.PARKED_FOR.name, *who)] = instance.parked_for_s()
    gauges[(definitions.HEALTH.name, *who)] = health.score()
    gauges[(definitions.SUCCESS.name, *who)] = health.success_rate()
    if quota_left is not None:
        gauges[(definitions.QUOTA.name, *who)] = quota_left
    in_flight = instance.in_flight + instance.elsewhere.in_flight
    gauges[(definitions.INSTANCE_IN_FLIGHT.name, *who)] = in_flight


EVERY_S = 2.0


class ProcessFigures:
    """The figures of the present process.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._read_s = float("-inf")
        self._figures: dict[str, float] = {}

    def recent(self) -> dict[str, float]:
        """Return the figures, EVERY_S old at most; what the system does not tell is left out."""
        now_s = self._clock()
        if now_s - self._read_s >= EVERY_S:
            self._read_s = now_s
            self._figures = {
                definitions.CPU.name: time.process_time(),
                **_memory(),
                **_descriptors(),
            }
        return self._figures


def _memory() -> dict[str, float]:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return {}
    return {definitions.MEMORY.name: pages * os.sysconf("SC_PAGE_SIZE")}


def _descriptors() -> dict[str, float]:
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return {
            definitions.OPEN_FDS.name: len(os.listdir("/proc/self/fd")),
            definitions.MAX_FDS.name: most,
        }
    except (ImportError, OSError):
        return {}
