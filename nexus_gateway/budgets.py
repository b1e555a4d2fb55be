"""How many more attempts may be made than there are requests.

Retries help where somebody is in trouble, and multiply the load where everybody is. So they are a
share of the recent requests, and no more (the idea of Finagle's and Envoy's retry budgets).
"""

from __future__ import annotations

from collections.abc import Callable

RETRY_SHARE = 0.2
RETRY_FLOOR = 10
WINDOW_S = 10
HEDGE_SHARE = 0.05
MOST_HEDGES_SAVED = 10.0


class RetryBudget:
    """Counts requests and retries of the last WINDOW_S seconds.

    Args:
        clock: monotonic seconds.
        share: how many retries there may be for each request.
        floor: how many there may be in any case.

    Attributes:
        denied: how many were not allowed, since the start.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        share: float = RETRY_SHARE,
        floor: int = RETRY_FLOOR,
    ) -> None:
        self._clock = clock
        self._share = share
        self._floor = floor
        self._second = int(clock())
        self._requests = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S
        self.denied = 0

    def request(self) -> None:
        """Count a request's first attempt."""
        self._requests[self._slot()] += 1

    def retry(self) -> None:
        """Count a further attempt."""
        self._retries[self._slot()] += 1

    def allows(self) -> bool:
        """Tell whether one more retry may be made."""
        self._slot()
        return sum(self._retries) < self._floor + self._share * sum(self._requests)

    def _slot(self) -> int:
        """Return the slot of the present second; those that it has passed are emptied."""
        second = int(self._clock())
        for passed in range(self._second + 1, min(second, self._second + WINDOW_S) + 1):
            self._requests[passed % WINDOW_S] = self._retries[passed % WINDOW_S] = 0
        self._second = max(self._second, second)
        return self._second % WINDOW_S


class HedgeBudget:
    """Saves up for hedges: each request brings HEDGE_SHARE of one."""

    def __init__(self) -> None:
        self._saved = 0.0

    def request(self) -> None:
        """Save for a request that may be hedged."""
        self._saved = min(self._saved + HEDGE_SHARE, MOST_HEDGES_SAVED)

    def take(self) -> bool:
        """Take one, if there is one."""
        # A sum of twentieths is never quite whole.
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        return True
