"""Requests that wait for an instance: bounded in number and time, in order.

Without a queue a request is refused at once if all its instances are parked or broken. With one
(QUEUE_TIMEOUT_MS) it waits if the first of them returns soon enough: first come, first served,
among the requests for the same target.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from nexus_gateway.errors import NoCandidate
from nexus_gateway.routing.attempts import Attempt
from nexus_gateway.routing.scheduler import RoutingTarget

# An instance may return earlier than expected: enabled, or healthy again by another request.
POLL_EVERY_S = 0.1


@dataclass(slots=True)
class _Waiters:
    """The requests that wait for one target; the first of them holds `turn`."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class RequestQueue:
    """Lets requests wait.

    Args:
        timeout_s: how long, at most.
        limit: how many, at most.
    """

    def __init__(self, timeout_s: float, limit: int) -> None:
        self._timeout_s = timeout_s
        self._limit = limit
        self._length = 0
        self._waiters: dict[RoutingTarget, _Waiters] = {}

    async def attempt(
        self, target: RoutingTarget, choose: Callable[[], Attempt], left_s: float
    ) -> Attempt:
        """Return the next attempt, at once or after a wait.

        Args:
            target: what the request may go to.
            choose: starts an attempt, or raises NoCandidate.
            left_s: how much time the request has.

        Raises:
            NoCandidate: no instance returns in time, or too many requests wait.
        """
        until_s = asyncio.get_running_loop().time() + min(self._timeout_s, left_s)
        waiters = self._waiters.get(target)
        if waiters is None:
            try:
                return choose()
            except NoCandidate as error:
                if self._length >= self._limit or not _returns_by(until_s, error):
                    raise
            waiters = self._waiters[target] = _Waiters()
        elif self._length >= self._limit:
            raise NoCandidate(
                "All matching instances are unavailable and the queue is full (QUEUE_LIMIT).",
                retry_after_s=self._timeout_s,
                code="queue_full",
            )
        return await self._wait(target, waiters, choose, until_s)

    async def _wait(
        self,
        target: RoutingTarget,
        waiters: _Waiters,
        choose: Callable[[], Attempt],
        until_s: float,
    ) -> Attempt:
        waiters.length += 1
        self._length += 1
        try:
            async with asyncio.timeout_at(until_s), waiters.turn:
                return await _first_in_line(choose, until_s)
        except TimeoutError:
            return choose()  # its error says why there is none
        finally:
            self._length -= 1
            waiters.length -= 1
            if not waiters.length:
                del self._waiters[target]


def _returns_by(until_s: float, error: NoCandidate) -> bool:
    """Whether an instance returns before a time of the loop's clock.

    If one is available, but not for this request, waiting would change nothing and would keep the
    others in the line from it.
    """
    soonest_s = error.retry_after_s or 0.0
    return soonest_s > 0 and asyncio.get_running_loop().time() + soonest_s <= until_s


async def _first_in_line(choose: Callable[[], Attempt], until_s: float) -> Attempt:
    while True:
        try:
            return choose()
        except NoCandidate as error:
            if error.retry_after_s == 0:
                return choose()  # it may have become available just now; else the same error
            if not _returns_by(until_s, error):
                raise
            await asyncio.sleep(min((error.retry_after_s or 0.0) + 0.001, POLL_EVERY_S))
