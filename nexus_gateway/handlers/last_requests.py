"""The last requests that ended, as the live page lists them."""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from typing import Any

from nexus_gateway.handlers.view import view_of_request
from nexus_gateway.news import MOST_REQUESTS, Ended, ended_ms
from nexus_gateway.record import RequestRecord


class LastRequests:
    """The last that ended here, and those that other workers handed over.

    Each has a number, by which it became known here; that of another worker is told a moment
    after its end, so that the order of the numbers is not always that of the ends. What ended
    here is described when somebody asks and not before.
    """

    def __init__(self) -> None:
        self._here: deque[tuple[int, RequestRecord]] = deque(maxlen=MOST_REQUESTS)
        self._elsewhere: list[tuple[int, Ended]] = []
        self._handed_over = 0

    def observe(self, number: int, record: RequestRecord) -> None:
        """Note what ended here."""
        self._here.append((number, record))

    def hear(self, number: int, requests: list[Ended]) -> int:
        """Note what ended elsewhere, the oldest first.

        Args:
            number: the last that was given to anything.
            requests: none of which was told before.

        Returns:
            The last that is given now.
        """
        self._elsewhere += enumerate(requests, number + 1)
        self._elsewhere.sort(key=lambda entry: ended_ms(entry[1]))
        del self._elsewhere[:-MOST_REQUESTS]
        return number + len(requests)

    def hand_over(self) -> list[Ended]:
        """Return what ended here since this was last asked, the oldest first."""
        new = self._here_since(self._handed_over)
        if new:
            self._handed_over = new[0][0]
        return [view_of_request(record) for _, record in reversed(new)]

    def since(self, number: int, most: int) -> list[tuple[int, Ended]]:
        """Return what became known after a number, the newest of it, by number."""
        found: list[tuple[int, Any]] = [e for e in self._elsewhere if e[0] > number]
        found += self._here_since(number)[:most]
        found.sort(key=lambda entry: entry[0])
        return [
            (n, view_of_request(it) if isinstance(it, RequestRecord) else it)
            for n, it in found[-most:]
        ]

    def count_since(self, number: int) -> int:
        """Return how many became known after a number, of those that are still known."""
        return len(self._here_since(number)) + sum(n > number for n, _ in self._elsewhere)

    def all(self) -> list[Ended]:
        """Return the last of all workers, in the order of their ends."""
        here = [view_of_request(record) for _, record in self._here]
        return sorted(here + [it for _, it in self._elsewhere], key=ended_ms)[-MOST_REQUESTS:]

    def _here_since(self, number: int) -> list[tuple[int, RequestRecord]]:
        """Return what ended here after a number, the newest first."""
        return list(takewhile(lambda entry: entry[0] > number, reversed(self._here)))
