"""The live feed: changes of the instances and requests that have ended, numbered and kept.

Besides the last requests it keeps the last that failed or failed over: under much traffic these are
what an operator looks for, and they would be gone within seconds.
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
    LISTENERS,
    MOST_REQUESTS,
    MOST_TROUBLED,
    Ended,
    WorkerState,
    ended_ms,
    is_troubled,
    to_keep,
)
from nexus_gateway.telemetry.snapshot import instance_json, request_json
from nexus_gateway.telemetry.timeline import BUCKET_S, BUCKETS, Timelines, failed

Numbered = tuple[int, RequestRecord]


class LastRequests:
    """The last requests of this worker, and those that other workers have published.

    Each has a number in the order in which it became known here, which is not always the order of
    the ends. A request of this worker is turned into JSON only when the feed is read.
    """

    def __init__(self) -> None:
        self._here: deque[Numbered] = deque(maxlen=MOST_REQUESTS)
        self._troubled: deque[Numbered] = deque(maxlen=MOST_TROUBLED)  # may be in both
        self._elsewhere: list[tuple[int, Ended]] = []
        self._published = 0

    def observe(self, number: int, record: RequestRecord) -> None:
        self._here.append((number, record))
        if failed(record) or record.failovers:
            self._troubled.append((number, record))

    def merge(self, number: int, requests: list[Ended]) -> int:
        """Add new requests of other workers, oldest first; take and return the last number."""
        self._elsewhere += enumerate(requests, number + 1)
        self._elsewhere.sort(key=lambda entry: ended_ms(entry[1]))
        self._elsewhere = to_keep(self._elsewhere, lambda entry: entry[1])
        return number + len(requests)

    def unpublished(self) -> list[Ended]:
        """Return the requests of this worker since the last call, oldest first."""
        new = self._here_since(self._published)
        if new:
            self._published = new[0][0]
        return [request_json(record) for _, record in reversed(new)]

    def since(self, number: int, most: int) -> list[tuple[int, Ended]]:
        """Return what became known after a number, in order.

        These are at most `most` of the newest, and so many more of the newest that went badly.
        """
        entries = [entry for entry in self._elsewhere if entry[0] > number]
        entries += [(n, request_json(record)) for n, record in self._here_since(number)]
        entries.sort(key=lambda entry: entry[0])
        troubled = [entry for entry in entries[:-most] if is_troubled(entry[1])]
        return troubled[-most:] + entries[-most:]

    def count_since(self, number: int) -> int:
        return len(self._here_since(number)) + sum(n > number for n, _ in self._elsewhere)

    def all(self) -> list[Ended]:
        """Return the last requests of all workers, in the order of their ends."""
        requests = [request_json(record) for _, record in reversed(self._here_since(0))]
        requests += [it for _, it in self._elsewhere]
        return to_keep(sorted(requests, key=ended_ms), lambda request: request)

    def _here_since(self, number: int) -> list[Numbered]:
        def after(entries: Iterable[Numbered]) -> list[Numbered]:
            return list(takewhile(lambda entry: entry[0] > number, entries))

        entries = after(reversed(self._here))
        if entries and len(entries) == len(self._here):  # older troubled ones may still be kept
            oldest = entries[-1][0]
            entries += after(entry for entry in reversed(self._troubled) if entry[0] < oldest)
        return entries


EVERY_S = 0.25
REMEMBERED = 1000
# A page shows no more at once; the log has every request.
AT_ONCE = 50
# These count down by themselves, which is no change.
_RUNNING_DOWN = {"parkedForMs", "probeInMs"}
_NUMBER = re.compile(r"[0-9]{1,18}")
_REMOVED = ""  # no instance has this name
Change = tuple[int, str, Any]


class Feed:
    """The changes of the instances and the last requests.

    The instances are compared with their former state when a listener reads, not by a timer:
    without listeners the feed costs no more than to keep a record.
    """

    def __init__(self, pool: Pool, wall: Callable[[], float] = time.time) -> None:
        self.wall = wall
        self.since_s = wall()
        self.timelines = Timelines()
        self.listeners = 0
        self.whole = asyncio.Event()  # set while it has the requests of all workers
        self.whole.set()  # there may be no other worker
        self._pool = pool
        self._run = secrets.token_hex(4)
        self._number = 0
        self._refreshed_s = 0.0
        self._seen: dict[str, dict[str, Any]] = {}
        self._changes: deque[tuple[int, str]] = deque(maxlen=REMEMBERED)
        self._requests = LastRequests()

    def observe(self, record: RequestRecord) -> None:
        """Keep the record of a request (a `record.Observer`)."""
        self._number += 1
        self._requests.observe(self._number, record)
        self.timelines.observe(record)

    def contribute(self, state: WorkerState) -> None:
        """Add this worker's figures to the state that it publishes."""
        if self.listeners:
            state.gauges[LISTENERS] = self.listeners
        self.timelines.publish(state.counts)

    def merge(self, requests: list[Ended]) -> None:
        """Add requests of other workers, none of which was added before."""
        self._number = self._requests.merge(self._number, requests)

    def unpublished(self) -> list[Ended]:
        return self._requests.unpublished()

    def refresh(self) -> int:
        """Compare the instances with their former state; return the newest change's number.

        Many listeners cause no more comparisons than one.
        """
        now_s = self.wall()
        if 0 <= now_s - self._refreshed_s < EVERY_S / 2:
            return self._number
        self._refreshed_s = now_s
        for instance in self._pool.instances:
            now, before = instance_json(instance), self._seen.get(instance.name, {})
            self._seen[instance.name] = now
            if _lasting(before) != _lasting(now):
                self._note(instance.name)
        if gone := self._seen.keys() - {instance.name for instance in self._pool.instances}:
            for name in gone:
                del self._seen[name]
            self._note(_REMOVED)
        return self._number

    def _note(self, name: str) -> None:
        self._number += 1
        self._changes.append((self._number, name))

    def since(self, number: int) -> list[Change]:
        """Return what came after a number: for each its number, its kind and its present state.

        An instance that changed several times occurs once; of the requests those that fit on a
        page.
        If an instance was removed, it is one snapshot, with the newest number.
        """
        latest = {name: n for n, name in self._changes if n > number}
        if _REMOVED in latest:
            return [(self._number, "snapshot", self.snapshot())]
        known = {name: n for name, n in latest.items() if name in self._seen}
        changes: list[Change] = [(n, "instance", self._seen[name]) for name, n in known.items()]
        changes += [(n, "request", it) for n, it in self._requests.since(number, AT_ONCE)]
        return sorted(changes, key=lambda change: change[0])

    def snapshot(self) -> dict[str, Any]:
        """Return all instances at the last refresh, and the requests, oldest first."""
        return {"providers": list(self._seen.values()), "requests": self._requests.all()}

    def buckets(self, *, whole: bool) -> dict[str, Any]:
        """Return the timelines: all of them, or the buckets that may have changed."""
        now_s = self.wall()
        return self.timelines.as_json(now_s - (BUCKETS if whole else 1) * BUCKET_S)

    def rate(self) -> float:
        return self.timelines.rate.at(self.wall())

    def id_of(self, number: int) -> str:
        return f"{self._run}-{number}"

    def number_of(self, id: str | None) -> int | None:
        """Return the number of an event id; None if too much was missed to go on from it."""
        run, _, text = (id or "").partition("-")
        if run != self._run or not _NUMBER.fullmatch(text):
            return None
        number = int(text)
        oldest = self._changes[0][0] if self._changes else 1
        is_known = oldest - 1 <= number <= self._number
        return number if is_known and self._requests.count_since(number) <= AT_ONCE else None


def _lasting(instance: dict[str, Any]) -> dict[str, Any]:
    """Return an instance's state without what runs down by itself."""
    lasting = {name: value for name, value in instance.items() if name not in _RUNNING_DOWN}
    return {**lasting, "models": [_lasting(model) for model in instance.get("models", ())]}
