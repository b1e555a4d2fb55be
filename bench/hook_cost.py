"""What a hook costs: CPU microseconds for each request, without a hook and with an idle one.

Caller, gateway and upstream share this process, so the absolute figure is that of all three; the
difference is the hook's. The rounds alternate; the figures are medians.

    python bench/hook_cost.py [ROUNDS [REQUESTS]]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

from nexus_gateway.hooks import Hook, HookRequest, HookResponse, HookResult
from nexus_gateway.provider import Provider
from nexus_gateway.testing.gateway import instance_of, serving
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream


class Local(Provider):
    """The upstream of this measurement."""

    title = "Local"
    default_model = "m"


class Idle(Hook):
    """A hook whose methods are all called and do nothing."""

    async def before_routing(self, exchange: HookRequest) -> None: ...

    async def before_answer(self, exchange: HookRequest, answer: HookResponse) -> None: ...

    async def at_end(self, exchange: HookRequest, used: HookResult) -> None: ...


async def cpu_us(hooks: dict[str, Hook] | None, requests: int) -> float:
    """Return the CPU time of one streamed request of 32 chunks, in microseconds."""
    async with FakeUpstream() as upstream:
        upstream.default = Reply(text="word " * 31 + "end")
        instance = instance_of(Local, upstream.base_url, key="k")
        async with serving(instance, hooks=hooks) as served:
            for _ in range(20):
                await served.chat()
            begun_s = time.process_time()
            for _ in range(requests):
                await served.chat()
            return (time.process_time() - begun_s) / requests * 1e6


def main() -> None:
    """Print the cost of each variant, and the difference."""
    rounds, requests = [int(word) for word in (*sys.argv[1:], "9", "200")[:2]]
    variants: dict[str, Any] = {"no hook": None, "one idle hook": {"idle": Idle()}}
    costs_us: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, hooks in variants.items():
            costs_us[name].append(asyncio.run(cpu_us(hooks, requests)))
    for name, values in costs_us.items():
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{name:14} {statistics.median(values):7.0f} µs a request ({spread})")
    pairs = zip(*costs_us.values(), strict=True)
    print(f"difference     {statistics.median(b - a for a, b in pairs):7.0f} µs")


if __name__ == "__main__":
    main()
