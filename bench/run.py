"""Measure the gateway and the baseline in one run; see README.md beside this file.

python bench/run.py [--only SCENARIO …] [--rounds N] [--peers NAME …|all] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import machine
import others
from memory import MEASUREMENTS, allow_files, measure_memory
from peers import BARE, DIRECT, NEXUS, Peer, started, upstream
from processes import GATEWAY_CORE, HERE, Running, pinned
from report import Findings, judged, noise, tables, target_table, values
from rounds import is_working, measure_all
from scenarios import LOADS, NAMES, Scenario
from start import measure_start
from watched import measure_watched
from workers import has_option, measure_workers

STARTS = 5


def installed(names: Sequence[str]) -> Iterator[Peer]:
    """Yield the peers that could be installed; print which could not."""
    for name in others.NAMES if "all" in names else names:
        try:
            yield others.install(name)
        except others.CannotInstall as error:
            print(f"{name} is skipped, it cannot be installed: {error}")


def working(peers: Sequence[Peer], backend: Running) -> Iterator[Peer]:
    """Yield the peers that start and work; print which do not."""
    for peer in peers:
        try:
            with started(peer, backend) as to:
                works = is_working(to)
        except RuntimeError as error:
            print(f"{peer.name} {peer.version} is skipped, it does not start: {error}")
            continue
        if works:
            print(f"{peer.name} {peer.version} answers correctly")
            yield peer
        else:
            print(f"{peer.name} {peer.version} is skipped, its responses are incomplete")


def measure_loads(
    peers: Sequence[Peer], backend: Running, chosen: Sequence[Scenario], rounds: int
) -> Findings:
    """Start every peer and send the loads."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(peer, backend)) for peer in peers]
        for to in running:
            if not is_working(to):
                raise RuntimeError(f"{to.peer.name} gives no complete response")
        return Findings(loads=measure_all(running, chosen, rounds))


def pick(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure the choice of an instance in its own process, on the gateway's core."""
    print("pick …", file=sys.stderr, flush=True)
    command = [sys.executable, str(HERE / "pick.py"), str(rounds)]
    done = subprocess.run(  # noqa: S603 - our own program
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
        preexec_fn=lambda: pinned(GATEWAY_CORE),
    )
    costs: dict[str, dict[str, list[float]]] = json.loads(done.stdout)
    return costs


def run(rows: Sequence[str], rounds: int, more: Sequence[Peer]) -> Findings:
    findings = Findings()
    with upstream() as backend:
        peers = [BARE, NEXUS, *working(more, backend)]
        if chosen := [scenario for scenario in LOADS if scenario.name in rows]:
            findings = measure_loads([DIRECT, *peers], backend, chosen, rounds)
        for name in MEASUREMENTS:
            if name in rows:
                findings.memory[name] = measure_memory(name, peers, backend, rounds)
        if "start" in rows:
            findings.start = measure_start(backend, STARTS)
            if "fast" not in findings.start:
                findings.missing["start"] = "the extra `fast` is not installed"
        if "watched" in rows:
            findings.watched = measure_watched(backend, rounds)
    if "pick" in rows:
        findings.pick = pick(rounds)
    if "workers" in rows and not has_option():
        findings.missing["workers"] = "this version has no --workers"
    elif "workers" in rows:
        findings.workers = measure_workers(rounds)
    findings.rows = tuple(rows)
    return findings


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser()
    result.add_argument("--only", nargs="+", choices=NAMES, metavar="SCENARIO")
    result.add_argument("--rounds", type=int, default=3)
    result.add_argument("--peers", nargs="+", choices=(*others.NAMES, "all"), default=[])
    result.add_argument("--json", metavar="FILE")
    return result


def main() -> None:
    """Run with the arguments of the command line; print the tables, the targets and warnings."""
    arguments = parser().parse_args()
    conditions, busy = machine.description(), machine.busy_share()
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    warnings = [allow_files()]
    if busy > machine.BUSY:
        warnings.append(f"other programs used {busy:.0%} of the machine before the run")
    if int(conditions["cores"]) < 2:
        warnings.append("there is one core: the load and the gateway share it")
    more = [*installed(arguments.peers)]
    begun_s = time.monotonic()
    findings = run(arguments.only or NAMES, arguments.rounds, more)
    spent_s = time.monotonic() - begun_s
    targets = judged(findings, values(findings))
    print(tables(findings) + "\n" + target_table(targets))
    for peer in more:
        if peer.share < 1:
            print(f"{peer.name} is slow, and got only {peer.share:.0%} of the requests and callers")
    if rows := noise(findings):
        warnings.append(f"too noisy to trust: {', '.join(rows)}")
    print(f"\n{arguments.rounds} rounds in {spent_s:.0f} s")
    print("\n".join(f"warning: {line}" for line in warnings if line))
    if arguments.json:
        versions = {peer.name: peer.version for peer in more}
        result = {"machine": conditions, "peers": versions, "seconds": round(spent_s), "busy": busy}
        result |= {"warnings": [line for line in warnings if line], "targets": targets}
        result |= {"findings": asdict(findings)}
        Path(arguments.json).write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
