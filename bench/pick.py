"""What choosing an instance costs, by the number of instances: CPU nanoseconds of one lease.

    python bench/pick.py [ROUNDS [CHOICES]]

It uses the gateway's own scheduler and policies, and instances with a history. Prints one line of
JSON: by policy, by number of instances, a value for each round.
"""

from __future__ import annotations

import json
import random
import sys
import time

from nexus_gateway.discovery import load
from nexus_gateway.provider import Outcome, Provider, Verdict
from nexus_gateway.routing.attempts import AttemptHistory
from nexus_gateway.routing.policies import OUR_POLICIES, POLICIES
from nexus_gateway.routing.scheduler import RoutingTarget, Scheduler
from nexus_gateway.testing.gateway import instance_of

SIZES = (10, 100, 1000)
DONE = Verdict(Outcome.SUCCESS, "ok")
LIMIT_MS = 10_000.0


class Local(Provider):
    """The provider of the instances."""

    title = "Local"
    default_model = "any"
    needs_key = True


def pool(size: int) -> RoutingTarget:
    """Return instances with a history, each with its own latency."""
    instances = tuple(instance_of(Local, key="k", number=n) for n in range(1, size + 1))
    scheduler = Scheduler(time.monotonic, random.Random(1), load(POLICIES)[0])
    for number, instance in enumerate(instances):
        lease = scheduler.attempt(RoutingTarget((instance.default,)), "smart", AttemptHistory())
        lease.first_content(LIMIT_MS, stream=True)
        lease.instance.health.observe_latency(100.0 + number % 50, LIMIT_MS)
        lease.instance.health.observe_speed(50, 1.0)
        lease.end(DONE)
    return RoutingTarget(tuple(instance.default for instance in instances))


def cost_ns(scheduler: Scheduler, target: RoutingTarget, policy: str, choices: int) -> float:
    """Return the CPU time of one choice, in nanoseconds."""
    begun_ns = time.process_time_ns()
    for _ in range(choices):
        scheduler.attempt(target, policy, AttemptHistory()).end(DONE)
    return (time.process_time_ns() - begun_ns) / choices


def main() -> None:
    """Measure; sizes and policies alternate in each round."""
    rounds, choices = [int(word) for word in (*sys.argv[1:], "5", "300")[:2]]
    scheduler = Scheduler(time.monotonic, random.Random(1), load(POLICIES)[0])
    pools = {size: pool(size) for size in SIZES}
    costs: dict[str, dict[int, list[float]]] = {p: {s: [] for s in SIZES} for p in OUR_POLICIES}
    for round_ in range(rounds + 1):
        for policy in OUR_POLICIES:
            for size, target in pools.items():
                spent_ns = cost_ns(scheduler, target, policy, choices)
                if round_:  # the first round is the warm-up
                    costs[policy][size].append(spent_ns)
    print(json.dumps(costs))


if __name__ == "__main__":
    main()
