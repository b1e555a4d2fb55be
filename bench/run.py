"""Measure the gateway against the yardstick, in one run; see README.md beside this file.

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
from figures import values
from memory import WAYS, allow_files, measure_memory
from peers import BARE, DIRECT, NEXUS, Peer, started, upstream
from processes import GATEWAY_CORE, HERE, Running, pinned
from report import Findings, judged, noise, tables, target_table
from rounds import answers, measure_all
from scenarios import LOADS, NAMES, Scenario
from start import measure_start
from watched import measure_watched
from workers import has_option, measure_workers

STARTS = 5


def installed(names: Sequence[str]) -> Iterator[Peer]:
    """Give the peers that could be installed; say which could not."""
    for name in others.NAMES if "all" in names else names:
        try:
            yield others.install(name)
        except others.CannotInstall as error:
            print(f"{name} is left out, it cannot be installed: {error}")


def proven(peers: Sequence[Peer], behind: Running) -> Iterator[Peer]:
    """Give the peers that start and answer; say which do not."""
    for peer in peers:
        try:
            with started(peer, behind) as to:
                good = answers(to)
        except RuntimeError as error:
            print(f"{peer.name} {peer.version} is left out, it does not start: {error}")
            continue
        if good:
            print(f"{peer.name} {peer.version} answers correctly")
            yield peer
        else:
            print(f"{peer.name} {peer.version} is left out, its answers are not whole")


def measure_loads(
    peers: Sequence[Peer], behind: Running, chosen: Sequence[Scenario], rounds: int
) -> Findings:
    """Start every peer and send the loads."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(peer, behind)) for peer in peers]
        for to in running:
            if not answers(to):
                raise RuntimeError(f"{to.peer.name} gives no whole answer")
        return Findings(loads=measure_all(running, chosen, rounds))


def pick(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure the choice in a process of its own, on the gateway's core."""
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
    told: dict[str, dict[str, list[float]]] = json.loads(done.stdout)
    return told


def run(rows: Sequence[str], rounds: int, more: Sequence[Peer]) -> Findings:
    """Measure what was asked for."""
    findings = Findings()
    with upstream() as behind:
        peers = [BARE, NEXUS, *proven(more, behind)]
        if chosen := [scenario for scenario in LOADS if scenario.name in rows]:
            findings = measure_loads([DIRECT, *peers], behind, chosen, rounds)
        for name in WAYS:
            if name in rows:
                findings.memory[name] = measure_memory(name, peers, behind, rounds)
        if "start" in rows:
            findings.start = measure_start(behind, STARTS)
            if "fast" not in findings.start:
                findings.missing["start"] = "the extra `fast` is not installed"
        if "watched" in rows:
            findings.watched = measure_watched(behind, rounds)
    if "pick" in rows:
        findings.pick = pick(rounds)
    if "workers" in rows and not has_option():
        findings.missing["workers"] = "this version has no --workers"
    elif "workers" in rows:
        findings.workers = measure_workers(rounds)
    findings.rows = tuple(rows)
    return findings


def parser() -> argparse.ArgumentParser:
    """Return what the command takes."""
    made = argparse.ArgumentParser()
    made.add_argument("--only", nargs="+", choices=NAMES, metavar="SCENARIO")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--peers", nargs="+", choices=(*others.NAMES, "all"), default=[])
    made.add_argument("--json", metavar="FILE")
    return made


def main() -> None:
    """Run as the arguments say; print the tables, the targets, and what casts doubt on them."""
    words = parser().parse_args()
    about, busy = machine.about(), machine.busy_share()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    warnings = [allow_files()]
    if busy > machine.BUSY:
        warnings.append(f"other programs used {busy:.0%} of the machine before the run")
    if int(about["cores"]) < 2:
        warnings.append("there is one core: the load and the gateway share it")
    more = [*installed(words.peers)]
    begun_s = time.monotonic()
    findings = run(words.only or NAMES, words.rounds, more)
    spent_s = time.monotonic() - begun_s
    targets = judged(findings, values(findings))
    print(tables(findings) + "\n" + target_table(targets))
    for peer in more:
        if peer.share < 1:
            print(f"{peer.name} is slow, and got {peer.share:g} of the requests and callers")
    if rows := noise(findings):
        warnings.append(f"too noisy to trust: {', '.join(rows)}")
    print(f"\n{words.rounds} rounds in {spent_s:.0f} s")
    print("\n".join(f"warning: {line}" for line in warnings if line))
    if words.json:
        versions = {peer.name: peer.version for peer in more}
        told = {"machine": about, "peers": versions, "seconds": round(spent_s), "busy": busy}
        told |= {"warnings": [line for line in warnings if line], "targets": targets}
        told |= {"findings": asdict(findings)}
        Path(words.json).write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
