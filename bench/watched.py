"""What it costs to be watched: the gateway with what looks at it, against the gateway without.

The difference is some microseconds of a few hundred, less than what the speed of a machine drifts
by from one second to the next. So all run at the same time and take turns after a few hundred
requests, in an order that changes; and all begin anew several times, as no two processes lie in
memory alike. What counts is the median of the ratios of neighbours, and how far another draw of
such ratios might have moved it (a bootstrap: Efron, "Bootstrap methods", 1979).
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
import sys
from dataclasses import dataclass, field

from peers import NEXUS, Started, ledger, started, watched_by
from processes import Running
from rounds import load
from scenarios import LOADS

NAME = "watched"
SCENARIOS = ("burst-32", "whole")
STARTS = 4
ROUNDS = 4  # for each of the run's
REQUESTS = 300
WARM_UP = 500
DRAWS = 1000


@dataclass
class Watched:
    """What one way of watching cost, a value for each turn.

    Attributes:
        cpu_us: for each request.
        ratios: to the gateway without, measured next to it.
    """

    cpu_us: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def ratio(self) -> float:
        """Return the median."""
        return statistics.median(self.ratios)

    def range(self) -> tuple[float, float]:
        """Return where the median lies in 95 of 100 draws."""
        chance = random.Random(1)
        count = len(self.ratios)
        draws = sorted(
            statistics.median(chance.choices(self.ratios, k=count)) for _ in range(DRAWS)
        )
        return draws[DRAWS * 25 // 1000], draws[DRAWS * 975 // 1000 - 1]


Costs = dict[str, dict[str, Watched]]


def measure_watched(behind: Running, rounds: int) -> Costs:
    """Measure each way of watching, in each scenario."""
    peers = (NEXUS, *watched_by(behind))
    costs: Costs = {name: {peer.name: Watched() for peer in peers} for name in SCENARIOS}
    order = random.Random(1)
    for start in range(STARTS):
        print(f"{NAME}, {start + 1} of {STARTS} …", file=sys.stderr, flush=True)
        with ledger(), contextlib.ExitStack() as stack:
            running = [stack.enter_context(started(peer, behind)) for peer in peers]
            for to in running:
                for name in SCENARIOS:
                    _cost_us(to, name, WARM_UP)
            for _ in range(rounds * ROUNDS):
                for name in SCENARIOS:
                    order.shuffle(running)
                    _take_turns(running, name, costs[name])
    return costs


def _take_turns(running: list[Started], name: str, costs: dict[str, Watched]) -> None:
    told = {to.peer.name: _cost_us(to, name, REQUESTS) for to in running}
    for peer, cost_us in told.items():
        costs[peer].cpu_us.append(cost_us)
        costs[peer].ratios.append(cost_us / told[NEXUS.name])


def _cost_us(to: Started, name: str, requests: int) -> float:
    scenario = next(scenario for scenario in LOADS if scenario.name == name)
    begun_s = to.process.cpu_s()
    told = load(to, dataclasses.replace(scenario, requests=requests), requests)
    if told["errors"]:
        raise RuntimeError(f"{to.peer.name} gave {told['errors']} answers that are not whole")
    return (to.process.cpu_s() - begun_s) / requests * 1e6
