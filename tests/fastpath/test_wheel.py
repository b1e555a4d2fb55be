"""One timer for all limits."""

from __future__ import annotations

import asyncio
import math

import pytest
from waiting import until

from nexus_gateway.fastpath.wheel import Wheel


class Limit:
    """A limit of so many seconds, that is extended so many times when it is over."""

    def __init__(self, wheel: Wheel, limit_s: float, extensions: int = 0) -> None:
        self._wheel = wheel
        self._extensions = extensions
        self._until_s = asyncio.get_running_loop().time() + limit_s
        self.over = False
        wheel.add(self, self._until_s)

    def check(self, now_s: float) -> float:
        if self._until_s > now_s:
            return self._until_s
        if self._extensions:
            self._extensions -= 1
            self._until_s = now_s + 0.01
            return self._until_s
        self.over = True
        self._wheel.discard(self)
        return math.inf


class Broken:
    def check(self, now_s: float) -> float:
        raise RuntimeError("it is broken")


async def test_each_limit_is_looked_at_until_it_is_over() -> None:
    wheel = Wheel()
    late = Limit(wheel, 60)
    extended, soon = Limit(wheel, 0.02, 3), Limit(wheel, 0.01)  # due before the timer for the first
    await until(lambda: soon.over and extended.over)
    assert not late.over


async def test_one_that_fails_costs_no_other_its_limit(caplog: pytest.LogCaptureFixture) -> None:
    wheel = Wheel()
    wheel.add(Broken(), asyncio.get_running_loop().time() + 0.01)
    other = Limit(wheel, 0.01, 2)
    await until(lambda: other.over)
    assert caplog.text.count("a time limit could not be kept") == 1
