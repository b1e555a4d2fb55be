"""One timer for the time limits of all requests."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Protocol

logger = logging.getLogger("nexus_gateway")

# So long at least is between two looks, as each is at all that is watched.
LEAST_S = 0.005


class Watched(Protocol):
    """Something that has a limit."""

    def check(self, now_s: float) -> float:
        """Act if the limit is over; return when it will be, in the loop's time."""


class Wheel:
    """Checks what it watches when the soonest limit may be over."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._at_s = math.inf

    def add(self, watched: Watched, until_s: float) -> None:
        """Check it no later than that; again, to check it sooner."""
        self._watched.add(watched)
        if until_s < self._at_s:
            self._set(until_s)

    def discard(self, watched: Watched) -> None:
        self._watched.discard(watched)

    def _set(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at_s = at_s
        self._timer = asyncio.get_running_loop().call_at(at_s, self._look)

    def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._timer, self._at_s = None, math.inf
        soonest_s = min([self._check(w, now_s) for w in list(self._watched)], default=math.inf)
        if self._watched and soonest_s < self._at_s:
            self._set(max(soonest_s, now_s + LEAST_S))

    def _check(self, watched: Watched, now_s: float) -> float:
        try:
            return watched.check(now_s)
        except Exception:  # it costs no other request its limits
            logger.exception("a time limit could not be kept")
            self.discard(watched)
            return math.inf
