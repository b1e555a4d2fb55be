"""The last requests that ended, as the live page lists them.

Beside the last of all, the last that failed or moved to another instance: where much goes well,
these are what somebody looks for, and they would be gone within seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import takewhile

from nexus_gateway.handlers.view import view_of_request
from nexus_gateway.news import (
    MOST_REQUESTS,
    MOST_TROUBLED,
    Ended,
    ended_ms,
    is_troubled,
    to_keep,
)
from nexus_gateway.record import RequestRecord
from nexus_gateway.timeline import failed

Numbered = tuple[int, RequestRecord]


class LastRequests:
    """The last that ended here, and those that other workers handed over.

    Each has a number, by which it became known here; that of another worker is told a moment
    after its end, so that the order of the numbers is not always that of the ends. What ended
    here is described when somebody asks and not before.
    """

    def __init__(self) -> None:
        self._here: deque[Numbered] = deque(maxlen=MOST_REQUESTS)
        self._troubled: deque[Numbered] = deque(maxlen=MOST_TROUBLED)  # may be in both
        self._elsewhere: list[tuple[int, Ended]] = []
        self._handed_over = 0

    def observe(self, number: int, record: RequestRecord) -> None:
        """Note what ended here."""
        self._here.append((number, record))
        if failed(record) or record.moves:
            self._troubled.append((number, record))

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
        self._elsewhere = to_keep(self._elsewhere, lambda entry: entry[1])
        return number + len(requests)

    def hand_over(self) -> list[Ended]:
        """Return what ended here since this was last asked, the oldest first."""
        new = self._here_since(self._handed_over)
        if new:
            self._handed_over = new[0][0]
        return [view_of_request(record) for _, record in reversed(new)]

    def since(self, number: int, most: int) -> list[tuple[int, Ended]]:
        """Return what became known after a number, by number.

        Args:
            number: the last that is known to who asks.
            most: so many of the newest of all, and of the newest that went badly.
        """
        found = [entry for entry in self._elsewhere if entry[0] > number]
        found += [(n, view_of_request(record)) for n, record in self._here_since(number)]
        found.sort(key=lambda entry: entry[0])
        troubled = [entry for entry in found[:-most] if is_troubled(entry[1])]
        return troubled[-most:] + found[-most:]

    def count_since(self, number: int) -> int:
        """Return how many became known after a number, of those that are still known."""
        return len(self._here_since(number)) + sum(n > number for n, _ in self._elsewhere)

    def all(self) -> list[Ended]:
        """Return the last of all workers, in the order of their ends."""
        found = [view_of_request(record) for _, record in reversed(self._here_since(0))]
        found += [it for _, it in self._elsewhere]
        return to_keep(sorted(found, key=ended_ms), lambda request: request)

    def _here_since(self, number: int) -> list[Numbered]:
        """Return what ended here after a number, the newest first."""

        def after(entries: Iterable[Numbered]) -> list[Numbered]:
            return list(takewhile(lambda entry: entry[0] > number, entries))

        found = after(reversed(self._here))
        if found and len(found) == len(self._here):  # what went badly may be known from before
            oldest = found[-1][0]
            found += after(entry for entry in reversed(self._troubled) if entry[0] < oldest)
        return found
