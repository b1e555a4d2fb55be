"""What observers cost: the gateway with ledger, metrics and traces, against the gateway without.

The difference is a few microseconds of a few hundred, less than a machine's speed drifts from one
second to the next. So all variants run at the same time and take turns every few hundred requests,
in a random order; and all are restarted several times, as the memory layout of a process affects
its speed. The result is the median of the ratios within a turn, and its range when the ratios are
drawn again (a bootstrap: Efron, "Bootstrap methods", 1979).
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
import sys
from dataclasses import dataclass, field

from peers import NEXUS, Started, ledger, observed_variants, started
from processes import Running
from rounds import load
from scenarios import LOADS

NAME = "watched"
SCENARIOS = ("burst-32", "whole")
STARTS = 4
ROUNDS = 4  # for each round of the run
REQUESTS = 300
WARM_UP = 500
DRAWS = 1000


@dataclass
class Watched:
    """The cost of one variant, a value for each turn.

    Attributes:
        cpu_us: for each request.
        ratios: to the gateway without observers, in the same turn.
    """

    cpu_us: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def ratio(self) -> float:
        """Return the median of the ratios."""
        return statistics.median(self.ratios)

    def range(self) -> tuple[float, float]:
        """Return the range of the median in 95 of 100 draws."""
        chance = random.Random(1)
        count = len(self.ratios)
        draws = sorted(
            statistics.median(chance.choices(self.ratios, k=count)) for _ in range(DRAWS)
        )
        return draws[DRAWS * 25 // 1000], draws[DRAWS * 975 // 1000 - 1]


Costs = dict[str, dict[str, Watched]]


def measure_watched(backend: Running, rounds: int) -> Costs:
    """Measure each variant in each scenario."""
    peers = (NEXUS, *observed_variants(backend))
    costs: Costs = {name: {peer.name: Watched() for peer in peers} for name in SCENARIOS}
    order = random.Random(1)
    for start in range(STARTS):
        print(f"{NAME}, {start + 1} of {STARTS} …", file=sys.stderr, flush=True)
        with ledger(), contextlib.ExitStack() as stack:
            running = [stack.enter_context(started(peer, backend)) for peer in peers]
            for to in running:
                for name in SCENARIOS:
                    _cost_us(to, name, WARM_UP)
            for _ in range(rounds * ROUNDS):
                for name in SCENARIOS:
                    order.shuffle(running)
                    _take_turns(running, name, costs[name])
    return costs


def _take_turns(running: list[Started], name: str, costs: dict[str, Watched]) -> None:
    cost_by_peer = {to.peer.name: _cost_us(to, name, REQUESTS) for to in running}
    for peer, cost_us in cost_by_peer.items():
        costs[peer].cpu_us.append(cost_us)
        costs[peer].ratios.append(cost_us / cost_by_peer[NEXUS.name])


def _cost_us(to: Started, name: str, requests: int) -> float:
    scenario = next(scenario for scenario in LOADS if scenario.name == name)
    begun_s = to.process.cpu_s()
    summary = load(to, dataclasses.replace(scenario, requests=requests), requests)
    if summary["errors"]:
        raise RuntimeError(f"{to.peer.name} gave {summary['errors']} incomplete responses")
    return (to.process.cpu_s() - begun_s) / requests * 1e6
