"""Memory for each open stream, and while a reader stalls. Each round has a new process."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peers import Peer, Started, started
from processes import HERE, LOAD_CORE, Running, pinned
from rounds import LIMIT_S, is_working, load, load_command
from scenarios import FLOOD_MIB, OPEN, Scenario

EVERY_S = 0.05
# OPEN's last caller starts after about 3 s, and the first one's stream ends after 8 s.
PLATEAU_S = (5.0, 7.5)
LONGEST_S = 13.0
STALL_S = 3.0
SETTLE_S = 0.3
FILES = 3 * OPEN.callers


@dataclass
class Memory:
    """What one peer used, a value for each round."""

    over_kib: list[float] = field(default_factory=list)
    idle_kib: list[int] = field(default_factory=list)
    errors: int = 0
    late: int = 0
    streams: int = 1


def allow_files() -> str:
    """Raise the limit of open files; return a warning if it stays too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < FILES:
        return f"open files are limited to {hard}, {FILES} are needed: {OPEN.name} may fail"
    return ""


def _sampled(
    command: list[str], running: Running
) -> tuple[list[tuple[float, int]], dict[str, Any]]:
    """Run a program; return samples (time in s, the gateway's memory in KiB) and its output."""
    process = subprocess.Popen(  # noqa: S603 - our own program, on loopback
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: pinned(LOAD_CORE)
    )
    begun_s, samples = time.monotonic(), []
    try:
        while process.poll() is None and time.monotonic() - begun_s < LIMIT_S + 30:
            samples.append((time.monotonic() - begun_s, running.memory_kib()))
            time.sleep(EVERY_S)
    finally:
        process.kill()
        out, _ = process.communicate()
    return samples, json.loads(out or "{}")


def _idle_kib(running: Running) -> int:
    time.sleep(SETTLE_S)
    return running.memory_kib()


def open_streams(to: Started, result: Memory) -> None:
    """Add a round of many open streams; the warm-up is small, to leave no free memory behind."""
    load(to, Scenario("warm-up", "stream-32", 64, 4), 64)
    idle_kib = _idle_kib(to.process)
    result.streams = to.peer.part_of(OPEN.callers)
    samples, summary = _sampled(load_command(to, OPEN, result.streams), to.process)
    first_s, last_s = PLATEAU_S
    plateau = [kib for at_s, kib in samples if first_s <= at_s <= last_s]
    result.over_kib.append((statistics.median(plateau or [0]) - idle_kib) / result.streams)
    result.idle_kib.append(idle_kib)
    result.errors += summary.get("errors", result.streams)
    # If it took longer, they were not all open at the same time, and the figure is too low.
    result.late += summary.get("seconds", LIMIT_S) > LONGEST_S


def flood(to: Started, result: Memory) -> None:
    """Add a round: a large stream to a reader that stalls, after one to a steady reader."""
    command = [sys.executable, str(HERE / "flood.py"), str(to.process.port), str(FLOOD_MIB)]
    options = ["--model", to.peer.model, *(w for line in to.headers for w in ("--header", line))]
    _sampled([*command, "0", *options], to.process)
    idle_kib = _idle_kib(to.process)
    samples, summary = _sampled([*command, str(STALL_S), *options], to.process)
    result.over_kib.append(max(kib for _, kib in samples) - idle_kib)
    result.idle_kib.append(idle_kib)
    result.errors += not summary.get("complete", False)


MEASUREMENTS = {OPEN.name: open_streams, "flood": flood}


def measure_memory(
    name: str, peers: Sequence[Peer], backend: Running, rounds: int
) -> dict[str, Memory]:
    """Measure one of `MEASUREMENTS`; the peers take turns."""
    print(f"{name} …", file=sys.stderr, flush=True)
    results = {peer.name: Memory() for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            with started(peer, backend) as to:
                is_working(to)
                MEASUREMENTS[name](to, results[peer.name])
    return results
