"""The gateway, with a task that samples memory, files, tasks and stalls of the event loop.

    python bench/soaked.py SAMPLES

Reads its settings from the environment as `serve` does, and writes a line of JSON each second.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from aiohttp import web

from nexus_gateway.cli.serve import configure
from nexus_gateway.routing.pool import Pool
from nexus_gateway.server import process
from nexus_gateway.settings import Settings
from nexus_gateway.telemetry import log
from nexus_gateway.web.gateway import GATEWAY

TICK_S = 0.01
SAMPLE_S = 1.0
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def waited_s() -> float:
    """Return how long this thread has waited for a core so far; 0 if unknown."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text("ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(f"f{n}", ctypes.c_size_t) for n in range(10)]


_LIBC = ctypes.CDLL(None)
if hasattr(_LIBC, "mallinfo2"):
    _LIBC.mallinfo2.restype = Mallinfo


def free_kib() -> int:
    """Return how much memory malloc keeps that nothing uses; 0 if unknown."""
    return int(_LIBC.mallinfo2().f8) // 1024 if hasattr(_LIBC, "mallinfo2") else 0


class Sampler:
    """Samples the process from inside its event loop."""

    def __init__(self, app: web.Application, out: TextIO) -> None:
        self._app = app
        self._out = out
        self._begun_s = time.monotonic()
        # The longest stall since the last sample: the loop's own, and waiting for a core.
        self._worst_s = 0.0
        self._worst_stolen_s = 0.0

    async def run(self) -> None:
        """Measure stalls, and write a sample each second."""
        next_s = time.monotonic()
        while True:
            before_s, waited = time.monotonic(), waited_s()
            await asyncio.sleep(TICK_S)
            late_s = time.monotonic() - before_s - TICK_S
            stolen_s = min(max(waited_s() - waited, 0.0), max(late_s, 0.0))
            self._worst_s = max(self._worst_s, late_s - stolen_s)
            self._worst_stolen_s = max(self._worst_stolen_s, stolen_s)
            if before_s >= next_s:
                next_s = before_s + SAMPLE_S
                self._write()

    def _write(self) -> None:
        links = [_link(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        sample = {
            "at_s": time.monotonic() - self._begun_s,
            "rss_kib": pages * PAGE_KIB,
            "used_kib": pages * PAGE_KIB - free_kib(),
            "files": len(links),
            "sockets": sum(link.startswith("socket:") for link in links),
            "tasks": len(asyncio.all_tasks()),
            "in_flight": self._app[GATEWAY].drain.in_flight,
            "stall_ms": self._worst_s * 1000,
            "stolen_ms": self._worst_stolen_s * 1000,
        }
        self._worst_s = self._worst_stolen_s = 0.0
        self._out.write(json.dumps(sample) + "\n")
        self._out.flush()


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


async def serve(app: web.Application, settings: Settings, out: TextIO) -> int:
    sampling = asyncio.create_task(Sampler(app, out).run())
    try:
        return await process.serve(app, settings, lambda host, port: None)
    finally:
        sampling.cancel()


def main() -> int:
    settings: Settings
    pool: Pool
    settings, pool = configure(dict(os.environ), demo=False)
    log.configure(settings.log_level, settings.log_format, [i.key for i in pool.instances])
    with Path(sys.argv[1]).open("w", encoding="ascii") as out:
        return process.run_application(settings, pool, lambda app: serve(app, settings, out))


if __name__ == "__main__":
    sys.exit(main())
