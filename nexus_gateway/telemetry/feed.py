"""What the live page hears: how the instances change, and the requests as they end.

The last requests that ended, as the live page lists them.

Beside the last of all, the last that failed or moved to another instance: where much goes well,
these are what somebody looks for, and they would be gone within seconds.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.pool import Pool
from nexus_gateway.telemetry.shared import (
    MOST_REQUESTS,
    MOST_TROUBLED,
    Ended,
    ended_ms,
    is_troubled,
    to_keep,
)
from nexus_gateway.telemetry.snapshot import instance_json, request_json
from nexus_gateway.telemetry.timeline import BUCKET_S, BUCKETS, Timelines, failed

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
        if failed(record) or record.failovers:
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
        return [request_json(record) for _, record in reversed(new)]

    def since(self, number: int, most: int) -> list[tuple[int, Ended]]:
        """Return what became known after a number, by number.

        Args:
            number: the last that is known to who asks.
            most: so many of the newest of all, and of the newest that went badly.
        """
        found = [entry for entry in self._elsewhere if entry[0] > number]
        found += [(n, request_json(record)) for n, record in self._here_since(number)]
        found.sort(key=lambda entry: entry[0])
        troubled = [entry for entry in found[:-most] if is_troubled(entry[1])]
        return troubled[-most:] + found[-most:]

    def count_since(self, number: int) -> int:
        """Return how many became known after a number, of those that are still known."""
        return len(self._here_since(number)) + sum(n > number for n, _ in self._elsewhere)

    def all(self) -> list[Ended]:
        """Return the last of all workers, in the order of their ends."""
        found = [request_json(record) for _, record in reversed(self._here_since(0))]
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


EVERY_S = 0.25
REMEMBERED = 1000
# Nobody reads more in one go; who wants every request has the log.
AT_ONCE = 50
# These run down by themselves and are no change.
_RUNNING_DOWN = ("parkedForMs", "probeInMs")
_NUMBER = re.compile(r"[0-9]{1,18}")
_REMOVED = ""  # is nobody's name
Change = tuple[int, str, Any]


class Feed:
    """The changes of the instances and the last requests, numbered and remembered.

    It looks at the instances when a listener asks and not by itself: without listeners it costs
    no more than to note what ended.

    Args:
        pool: the instances.
        wall: Unix seconds.

    Attributes:
        listeners: how many there are.
        since_s: when it began to remember, in Unix seconds.
        whole: set while it knows of the requests of all workers.
    """

    def __init__(self, pool: Pool, wall: Callable[[], float] = time.time) -> None:
        self.wall = wall
        self.since_s = wall()
        self.timelines = Timelines()
        self.listeners = 0
        self.whole = asyncio.Event()
        self.whole.set()  # there may be no other worker
        self._pool = pool
        self._run = secrets.token_hex(4)
        self._number = 0
        self._looked_s = 0.0
        self._seen: dict[str, dict[str, Any]] = {}
        self._changes: deque[tuple[int, str]] = deque(maxlen=REMEMBERED)
        self._requests = LastRequests()

    def observe(self, record: RequestRecord) -> None:
        """Note a request that has ended."""
        self._number += 1
        self._requests.observe(self._number, record)
        self.timelines.observe(record)

    def hear(self, requests: list[Ended]) -> None:
        """Note requests that have ended in other workers, none of which was told before."""
        self._number = self._requests.hear(self._number, requests)

    def hand_over(self) -> list[Ended]:
        """Return the requests that have ended here since this was last asked."""
        return self._requests.hand_over()

    def look(self) -> int:
        """Compare the instances with how they were; return the newest change's number.

        However many listen, it looks no more often than one of them would.
        """
        now_s = self.wall()
        if 0 <= now_s - self._looked_s < EVERY_S / 2:
            return self._number
        self._looked_s = now_s
        for instance in self._pool.instances:
            now = instance_json(instance)
            before = self._seen.get(instance.name, {})
            self._seen[instance.name] = now
            if _lasting(before) != _lasting(now):
                self._note(instance.name)
        names = {instance.name for instance in self._pool.instances}
        if gone := self._seen.keys() - names:
            for name in gone:
                del self._seen[name]
            self._note(_REMOVED)
        return self._number

    def _note(self, name: str) -> None:
        self._number += 1
        self._changes.append((self._number, name))

    def since(self, number: int) -> list[Change]:
        """Return what came after a number: each its own number, what it is, and how it is now.

        An instance that changed often is told once; of the requests those that fit on a page.
        Where an instance is gone, a snapshot tells all of it, and has the newest number.
        """
        latest = {name: n for n, name in self._changes if n > number}
        if _REMOVED in latest:
            return [(self._number, "snapshot", self.snapshot())]
        known = {name: n for name, n in latest.items() if name in self._seen}
        changes: list[Change] = [(n, "instance", self._seen[name]) for name, n in known.items()]
        changes += [(n, "request", it) for n, it in self._requests.since(number, AT_ONCE)]
        return sorted(changes, key=lambda change: change[0])

    def snapshot(self) -> dict[str, Any]:
        """Return all instances as they were last seen, and the requests, the oldest first."""
        return {"providers": list(self._seen.values()), "requests": self._requests.all()}

    def buckets(self, *, whole: bool) -> dict[str, Any]:
        """Return the timelines: all that is known, or what may have changed a moment ago."""
        now_s = self.wall()
        return self.timelines.as_json(now_s - (BUCKETS if whole else 1) * BUCKET_S)

    def rate(self) -> float:
        """Return how many requests ended in each of the last seconds."""
        return self.timelines.rate.at(self.wall())

    def id_of(self, number: int) -> str:
        """Return the event id of a change."""
        return f"{self._run}-{number}"

    def number_of(self, id: str | None) -> int | None:
        """Return the number behind an event id; None where too much was missed to go on from it."""
        run, _, number = (id or "").partition("-")
        if run != self._run or not _NUMBER.fullmatch(number):
            return None
        oldest = self._changes[0][0] if self._changes else 1
        if not oldest - 1 <= int(number) <= self._number:
            return None
        missed = self._requests.count_since(int(number))
        return int(number) if missed <= AT_ONCE else None


def _lasting(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in _RUNNING_DOWN}
