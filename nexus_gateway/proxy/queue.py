"""Requests that wait for somebody to return: bounded in number and time, in order.

Without it a request is refused at once when everybody is parked or broken. With it (the owner
sets QUEUE_TIMEOUT_MS) it waits, if the soonest return is near enough: first come, first served,
among the requests for the same model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from nexus_gateway.errors import NoCandidate
from nexus_gateway.routing.lease import Lease
from nexus_gateway.routing.scheduler import RoutingTarget

# Somebody may return sooner than was said: switched on, or proved well by another request.
LOOK_EVERY_S = 0.1


@dataclass(slots=True)
class _Waiters:
    """Those who wait for the same; whoever holds `turn` is the first of them."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class RequestQueue:
    """Lets requests wait.

    Args:
        timeout_s: how long, at most; 0 for not at all.
        limit: how many, at most.
    """

    def __init__(self, timeout_s: float, limit: int) -> None:
        self._timeout_s = timeout_s
        self._limit = limit
        self._length = 0
        self._lines: dict[int, _Waiters] = {}

    @property
    def open(self) -> bool:
        """Whether requests may wait at all."""
        return self._timeout_s > 0

    async def lease(
        self, target: RoutingTarget, give: Callable[[], Lease], longest_s: float
    ) -> Lease:
        """Give a lease, at once or after a wait in line.

        Args:
            target: who may serve the request.
            give: gives a lease, or raises NoCandidate.
            longest_s: how much time the request has left.

        Raises:
            NoCandidate: nobody returns in time, or too many wait.
        """
        until_s = asyncio.get_running_loop().time() + min(self._timeout_s, longest_s)
        line = self._lines.get(id(target))
        if line is None:
            try:
                return give()
            except NoCandidate as nobody:
                if self._length >= self._limit or not _returns_by(until_s, nobody):
                    raise
            line = self._lines[id(target)] = _Waiters()
        elif self._length >= self._limit:
            raise NoCandidate(
                "Everybody who could serve this is away, and too many wait already (QUEUE_LIMIT).",
                retry_after_s=self._timeout_s,
                should_retry=True,
                code="queue_full",
            )
        return await self._wait(target, line, give, until_s)

    async def _wait(
        self, target: RoutingTarget, line: _Waiters, give: Callable[[], Lease], until_s: float
    ) -> Lease:
        line.length += 1
        self._length += 1
        try:
            async with asyncio.timeout_at(until_s), line.turn:
                return await _first_in_line(give, until_s)
        except TimeoutError:
            return give()  # which says why there is nobody
        finally:
            self._length -= 1
            line.length -= 1
            if not line.length:
                del self._lines[id(target)]


def _returns_by(until_s: float, nobody: NoCandidate) -> bool:
    """Tell whether somebody returns before a time of the loop's clock.

    Where somebody is there, and not for this request, to wait would change nothing, and keep the
    others of the line from him.
    """
    soonest_s = nobody.retry_after_s or 0.0
    return soonest_s > 0 and asyncio.get_running_loop().time() + soonest_s <= until_s


async def _first_in_line(give: Callable[[], Lease], until_s: float) -> Lease:
    while True:
        try:
            return give()
        except NoCandidate as nobody:
            if nobody.retry_after_s == 0:
                return give()  # unless he has come in this very moment, it says the same again
            if not _returns_by(until_s, nobody):
                raise
            await asyncio.sleep(min((nobody.retry_after_s or 0.0) + 0.001, LOOK_EVERY_S))
