"""Minutes of mixed faults: does the gateway leak memory, files, sockets or tasks?

python bench/soak.py --minutes 5
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import aiohttp
from flatness import CALLERS, TOLERANCE, Finding, Sample, verdict
from machine import busy_share, description
from processes import HERE, Running, free_port, running

from nexus_gateway.cli.text import table
from nexus_gateway.testing.chaos.campaign import LIMITS, ask, client
from nexus_gateway.testing.chaos.judge import Ending, Tally, judge
from nexus_gateway.testing.chaos.plan import planned_request, rounds
from nexus_gateway.testing.faults import CHANCE, Faults
from nexus_gateway.testing.mock import KEY, MODEL

INSTANCES, BAD = 5, 2
PHASE_S = 15.0
FAULT_CHANCE = 0.1
LIMIT_S = 60.0
# On a busy machine a healthy instance may be late; that is no finding.
PATIENT = {"FIRST_TOKEN_TIMEOUT_MS": "4000", "IDLE_TIMEOUT_MS": "4000"}
# Time limit for the idle connections to upstreams, kept for half a minute, to close.
REST_S = 90.0


def ports(number: int) -> list[int]:
    """Return consecutive free ports."""
    while True:
        candidates = [*range(first := free_port(), first + number)]
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            for port in candidates:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return candidates


def environment(mock_ports: Sequence[int], port: int) -> dict[str, str]:
    env = {**LIMITS, **PATIENT, "PORT": str(port), "LOG_LEVEL": "error"}
    for n, mock_port in enumerate(mock_ports, 1):
        env[f"LOCAL_BASE_URL_{n}"] = f"http://127.0.0.1:{mock_port}/v1"
        env |= {f"LOCAL_MODEL_{n}": MODEL, f"LOCAL_KEY_{n}": f"{KEY}{n}"}
    return env


class Soak:
    """The load, and the changing faults.

    Args:
        url: of the gateway.
        mock: the URL of the mock's first instance.
        seconds: the duration.
        per_s: the largest number of requests per second.
        seed: of all random choices.
    """

    def __init__(self, url: str, mock: str, seconds: float, per_s: float, seed: int) -> None:
        self._url = url
        self._mock = mock
        self._end_s = time.monotonic() + seconds
        self._pause_s = CALLERS / per_s
        self._seed = seed
        self._numbers = count()
        self.tally = Tally()

    async def run(self) -> None:
        async with client(CALLERS) as session, asyncio.TaskGroup() as group:
            changing = group.create_task(self._change(session))
            callers = [group.create_task(self._caller(session, n)) for n in range(CALLERS)]
            await asyncio.wait(callers)
            changing.cancel()

    async def _caller(self, session: aiohttp.ClientSession, n: int) -> None:
        await asyncio.sleep(self._pause_s * n / CALLERS)
        while (begun_s := time.monotonic()) < self._end_s:
            planned = planned_request(next(self._numbers), self._seed)
            self.tally.requests += 1
            answered = await ask(session, self._url, planned, LIMIT_S)
            if answered is None:
                self.tally.endings[Ending.LEFT] += 1
            else:
                self.tally.add(planned, answered, judge(planned, answered, KEY))
            await asyncio.sleep(max(0.0, begun_s + self._pause_s - time.monotonic()))

    async def _change(self, session: aiohttp.ClientSession) -> None:
        for faults in self._phases():
            for number, instance_faults in faults.items():
                url = f"{self._mock}/faults/{number}"
                async with session.put(url, json=dict(instance_faults)) as response:
                    response.raise_for_status()
                await self._enable(session, number)
            await asyncio.sleep(PHASE_S)

    async def _enable(self, session: aiohttp.ClientSession, number: int) -> None:
        """Enable an instance again whose key was refused, as an operator would."""
        body = {"name": f"Local (URL #{number})", "enabled": True}
        async with session.post(f"{self._url}/v1/providers/toggle", json=body) as response:
            response.raise_for_status()

    def _phases(self) -> Iterator[dict[int, Faults]]:
        for part in rounds(10_000, INSTANCES, BAD, 1_000, self._seed):
            for phase in part.phases.values():
                yield {number: _less_often(faults) for number, faults in phase.items()}


def _less_often(faults: Faults) -> Faults:
    """Lower the chance of faults: an open circuit would hide them."""
    return {**faults, CHANCE: FAULT_CHANCE} if CHANCE in faults else faults


def samples(file: Path) -> list[Sample]:
    """Return the samples that the gateway has written so far."""
    lines = file.read_text(encoding="ascii").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def rest(file: Path, idle: Sample) -> Sample:
    """Wait until the gateway is idle again, or the time limit; return the last sample."""
    end_s = time.monotonic() + REST_S
    while True:
        time.sleep(1)
        last = samples(file)[-1]
        open_still = [
            name for name in ("files", "sockets", "tasks") if last[name] > idle[name] + TOLERANCE
        ]
        if time.monotonic() > end_s or not (open_still or last["in_flight"]):
            return last


def report(findings: Sequence[Finding], loaded: Sequence[Sample], tally: Tally) -> Iterator[str]:
    yield ", ".join(f"{name} {value}" for name, value in description().items())
    endings = ", ".join(f"{ending}: {number}" for ending, number in tally.endings.items())
    yield f"{tally.requests} requests, {tally.failed_over} failed over; {endings}"
    stolen_ms = max(sample["stolen_ms"] for sample in loaded)
    peak = max(sample["rss_kib"] for sample in loaded) / 1024
    yield f"largest RSS {peak:.1f} MiB; longest wait for a core {stolen_ms:.0f} ms"
    rows = [(f.figure, f.allowed, f.found, "good" if f.good else "NOT FLAT") for f in findings]
    yield table(("", "allowed", "found", ""), rows)
    for promise in tally.broken():
        yield f"BROKEN: {promise}: {tally.examples[promise]}"


def soak(minutes: float, per_s: float, seed: int, folder: Path) -> int:
    """Run the soak test; return 1 if something grew, stalled or broke."""
    mock_ports, port, file = ports(INSTANCES), free_port(), folder / "samples"
    options = ("mock", "--port", str(mock_ports[0]), "--instances", str(INSTANCES))
    mock = (sys.executable, "-m", "nexus_gateway", *options)
    gateway = (sys.executable, str(HERE / "soaked.py"), str(file))
    env = environment(mock_ports, port)
    with running(mock, {}, mock_ports[0], None), running(gateway, env, port, None) as process:
        idle, mock_url = _start(file, process), f"http://127.0.0.1:{mock_ports[0]}"
        test = Soak(f"http://127.0.0.1:{port}", mock_url, minutes * 60, per_s, seed)
        asyncio.run(test.run())
        loaded = samples(file)[int(idle["samples"]) :]
        last = rest(file, idle)
    findings = [*verdict(loaded, idle, last)]
    print("\n".join(report(findings, loaded, test.tally)))
    good = all(f.good for f in findings) and test.tally.kept
    print("flat" if good else "not flat, or a promise was broken")
    return 0 if good else 1


def _start(file: Path, process: Running) -> Sample:
    """Wait for samples of the idle process; return the last one, with their number."""
    while not file.exists() or len(idle := samples(file)) < 3:
        time.sleep(0.2)
    return {**idle[-1], "samples": len(idle)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--per-second", type=float, default=150, help="requests, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (busy := busy_share()) > 0.1:
        print(f"note: other programs use {busy:.0%} of the machine", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        return soak(arguments.minutes, arguments.per_second, arguments.seed, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
