"""What a process uses of its machine, by the names that every Prometheus client has for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from nexus_gateway.metrics import families as f

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
            self._figures = {f.CPU.name: time.process_time(), **_memory(), **_descriptors()}
        return self._figures


def _memory() -> dict[str, float]:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return {}
    return {f.MEMORY.name: pages * os.sysconf("SC_PAGE_SIZE")}


def _descriptors() -> dict[str, float]:
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return {f.OPEN_FDS.name: len(os.listdir("/proc/self/fd")), f.MAX_FDS.name: most}
    except (ImportError, OSError):
        return {}
