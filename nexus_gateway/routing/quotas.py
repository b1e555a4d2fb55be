"""How near an instance is to its rate limits, by its upstream's latest rate-limit headers.

A response reports what was left at its time. Requests sent since then are subtracted, so that a
burst does not run into a limit that was foreseeable. A report expires when its limit resets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nexus_gateway.wire.rate_limits import LONGEST_PARK_S, Quota

LOW = 0.1  # below this share of a limit, an instance is chosen less often
PLENTY = 10.0  # if the limit itself is not reported, this many left are enough
FLOOR = 0.01  # lower bound, so that no instance is excluded for ever
MAX_LIMITS = 32  # per instance; no provider has so many
DEFAULT_RESET_S = 60.0  # for quotas without a time of reset


@dataclass(frozen=True, slots=True)
class _Report:
    quota: Quota
    until_s: float
    asked: int


class Quotas:
    """What is left of an instance's rate limits; `clock` is in monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reports: dict[str, _Report] = {}

    def update(self, quotas: Iterable[Quota], asked: int) -> None:
        """Apply a response's quotas; `asked`: the instance's requests when this one was sent."""
        for quota in quotas:
            if quota.remaining is not None:
                last = self._reports.get(quota.what)
                if last is None and len(self._reports) >= MAX_LIMITS:
                    continue
                if last is None or last.asked <= asked:  # responses may overtake each other
                    reset_s = DEFAULT_RESET_S if quota.reset_in_s is None else quota.reset_in_s
                    # Bounded: an instance that gets no requests gets no report to correct it.
                    until_s = self._clock() + min(reset_s, LONGEST_PARK_S)
                    self._reports[quota.what] = _Report(quota, until_s, asked)

    def known(self, asked: int) -> list[Quota]:
        """Return what is left of each limit; `asked`: the instance's requests by now."""
        now_s = self._clock()
        return [
            report.quota._replace(
                remaining=max(0.0, _remaining(report, asked)), reset_in_s=report.until_s - now_s
            )
            for report in self._reports.values()
            if report.until_s > now_s
        ]

    def share_left(self, asked: int) -> float | None:
        """Return the share left of the most exhausted limit, None if none is known."""
        if not self._reports:
            return None
        now_s = self._clock()
        expired = [what for what, report in self._reports.items() if report.until_s <= now_s]
        for what in expired:
            del self._reports[what]
        return min((_share(report, asked) for report in self._reports.values()), default=None)


def _remaining(report: _Report, asked: int) -> float:
    left = report.quota.remaining or 0.0
    return left - (asked - report.asked) if report.quota.counts_requests else left


def _share(report: _Report, asked: int) -> float:
    left = _remaining(report, asked)
    if left < 1:
        return 0.0
    return min(1.0, left / (report.quota.limit or PLENTY))


def quota_factor(left: float | None) -> float:
    """Return the factor for an instance's score, from FLOOR to 1, by the share left."""
    return 1.0 if left is None or left >= LOW else max(FLOOR, left / LOW)
