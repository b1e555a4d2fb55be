"""How near an instance is to its rate limits, by what its upstream said last.

An answer tells what is left at its time; requests that were sent since are taken off, so that a
burst does not run into a limit that everybody could see coming. What is said holds until the
limit is whole again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nexus_gateway.wire.rate_limits import LONGEST_PARK_S, Quota

LOW = 0.1  # below this share of a limit an instance is spared
PLENTY = 10.0  # where no limit is told, so much left is enough
FLOOR = 0.01  # nobody is spared so much that he could never be chosen
MOST = 32  # limits; nobody has so many
UNTIL_S = 60.0  # how long a quota holds that does not say when it is whole again


@dataclass(frozen=True, slots=True)
class _Said:
    quota: Quota
    until_s: float
    asked: int


class Quotas:
    """What is left of an instance's rate limits.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: dict[str, _Said] = {}

    def update(self, quotas: Iterable[Quota], asked: int) -> None:
        """Take what an answer said.

        Args:
            quotas: what is left.
            asked: how many requests the instance had had when this one was sent.
        """
        for quota in quotas:
            if quota.remaining is not None:
                known = self._said.get(quota.what)
                if known is None and len(self._said) >= MOST:
                    continue
                if known is None or known.asked <= asked:  # answers may overtake each other
                    whole_in_s = UNTIL_S if quota.reset_in_s is None else quota.reset_in_s
                    # Whoever is not asked has no answer that could set it right.
                    until_s = self._clock() + min(whole_in_s, LONGEST_PARK_S)
                    self._said[quota.what] = _Said(quota, until_s, asked)

    def known(self, asked: int) -> list[Quota]:
        """Return what is left of each limit now, with the time until it is whole again.

        Args:
            asked: how many requests the instance has had by now.
        """
        now_s = self._clock()
        return [
            said.quota._replace(
                remaining=max(0.0, _remaining(said, asked)), reset_in_s=said.until_s - now_s
            )
            for said in self._said.values()
            if said.until_s > now_s
        ]

    def share_left(self, asked: int) -> float | None:
        """Return the share that is left of the limit that is nearest, None when none is known.

        Args:
            asked: how many requests the instance has had by now.
        """
        if not self._said:
            return None
        now_s = self._clock()
        over = [what for what, said in self._said.items() if said.until_s <= now_s]
        for what in over:
            del self._said[what]
        return min((_share(said, asked) for said in self._said.values()), default=None)


def _remaining(said: _Said, asked: int) -> float:
    left = said.quota.remaining or 0.0
    return left - (asked - said.asked) if said.quota.counts_requests else left


def _share(said: _Said, asked: int) -> float:
    left = _remaining(said, asked)
    if left < 1:
        return 0.0
    return min(1.0, left / (said.quota.limit or PLENTY))


def quota_factor(left: float | None) -> float:
    """Return by how much to like an instance less, from FLOOR to 1, by what `left` says."""
    return 1.0 if left is None or left >= LOW else max(FLOOR, left / LOW)
