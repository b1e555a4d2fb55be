"""The last quarter of an hour in buckets, for all requests and for each instance.

Buckets last ten seconds and are numbered by the wall clock (Unix seconds // BUCKET_S), so that a
chart needs no other scale. Only buckets in which something ended are kept, at most BUCKETS for each
instance and without any text: memory is bounded whatever callers send.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from operator import add

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.attempts import Attempt

BUCKET_S = 10
BUCKETS = 90
RATE_OVER_S = 5
# Requests that are counted together.
BATCH = 64
ALL = ""
# Of an instance: its attempts, how many of those failed, and the answers it gave after another one
# was tried. `first_ms` is the sum of the times to the first token, `firsts` how many those are.
COUNTED = ("requests", "failures", "failovers", "tokens", "first_ms", "firsts")
HURTING = frozenset({"failure", "rate_limited", "bad_key"})
Counts = Sequence[float]  # as COUNTED


def failed(record: RequestRecord) -> bool:
    """Whether a request failed through no fault of its caller."""
    return record.status >= 500 or record.status == 429 or record.outcome == "failure"


class Bucket:
    """What ended within ten seconds; `number` is Unix seconds // BUCKET_S."""

    __slots__ = ("counts", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.counts: Counts = [0] * len(COUNTED)

    def add(self, counts: Counts) -> None:
        self.counts = list(map(add, self.counts, counts))

    def as_json(self) -> list[float | None]:
        """Return number, requests, failures, fail-overs, tokens and the mean TTFT in ms."""
        *counts, first_ms, firsts = self.counts
        return [self.number, *counts, round(first_ms / firsts) if firsts else None]


class Timeline:
    def __init__(self) -> None:
        self.counted = Bucket(0)  # the sum of what ended in this process since it started
        self._buckets: deque[Bucket] = deque(maxlen=BUCKETS)

    def at(self, at_s: float) -> Bucket:
        """Return the bucket of a time, in Unix seconds; never one before the last.

        If the wall clock is set back by more than all buckets, they are dropped.
        """
        number = int(at_s // BUCKET_S)
        last = self._buckets[-1].number if self._buckets else number - 1
        if number < last - BUCKETS:
            self._buckets.clear()
        elif number <= last:
            return self._buckets[-1]
        self._buckets.append(Bucket(number))
        return self._buckets[-1]

    def add(self, at_s: float, counts: Counts) -> None:
        self.at(at_s).add(counts)
        self.counted.add(counts)

    def since(self, at_s: float) -> list[Bucket]:
        """Return the buckets that had not ended at a time, in Unix seconds."""
        return [b for b in self._buckets if b.number >= at_s // BUCKET_S]


class Rate:
    """Requests per second, over the last RATE_OVER_S complete seconds."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=RATE_OVER_S + 2)

    def add(self, at_s: float, count: int = 1) -> None:
        if not self._seconds or self._seconds[-1][0] != int(at_s):
            self._seconds.append([int(at_s), 0])
        self._seconds[-1][1] += count

    def at(self, now_s: float) -> float:
        complete = range(int(now_s) - RATE_OVER_S, int(now_s))
        return sum(count for second, count in self._seconds if second in complete) / RATE_OVER_S


class Timelines:
    """The timelines of all requests and of each instance; `observe` is an Observer.

    Each process publishes its totals. What those of the others have grown by since the last merge
    is counted as of now.
    """

    def __init__(self) -> None:
        self._rate = Rate()
        self._of: defaultdict[str, Timeline] = defaultdict(Timeline, {ALL: Timeline()})
        self._merged: dict[str, list[int]] | None = None
        self._waiting: list[RequestRecord] = []

    @property
    def rate(self) -> Rate:
        self._fold()
        return self._rate

    @property
    def of(self) -> defaultdict[str, Timeline]:
        """The timelines by instance; that of all requests under ""."""
        self._fold()
        return self._of

    def observe(self, record: RequestRecord) -> None:
        self._waiting.append(record)
        if len(self._waiting) >= BATCH:
            self._fold()

    def _fold(self) -> None:
        """Count the requests that wait, together if they ended in the same second."""
        records, self._waiting = self._waiting, []
        sums: dict[tuple[int, str], list[float]] = {}
        for record in records:
            second, tokens = int(record.ended_s), record.tokens.completion or 0
            failovers = len(record.failovers)
            firsts = record.stream and record.began
            first_ms = record.first_ms if firsts else 0
            counts: Counts = (1, failed(record), failovers, tokens, first_ms, firsts)
            _add(sums, (second, ALL), counts)
            for attempt in record.attempts:
                name = attempt.instance.name
                counts = _of_attempt(attempt, record, failovers, tokens)
                _add(sums, (second, name), counts)
        for (second, name), summed in sums.items():
            self._of[name].add(second, summed)
            if name == ALL:
                self._rate.add(second, int(summed[0]))

    def publish(self, counts: dict[str, float]) -> None:
        """Add this process's totals to what the other processes get."""
        for name, line in self.of.items():
            for field, count in zip(COUNTED, map(round, line.counted.counts), strict=True):
                if count:
                    counts[_key(field, name)] = count

    def merge(self, counts: Mapping[str, float], names: Iterable[str], now_s: float) -> None:
        """Count the growth of the other processes' totals, of all and of the named instances.

        The first call only remembers them. `now_s` is in Unix seconds.
        """
        before = self._merged
        self._merged = {
            name: [int(counts.get(_key(field, name), 0)) for field in COUNTED]
            for name in (ALL, *names)
        }
        if before is None:
            return
        for name, now in self._merged.items():
            growth = [max(0, n - b) for n, b in zip(now, before.get(name, now), strict=True)]
            if any(growth):
                self.of[name].at(now_s).add(growth)
                if name == ALL:
                    self.rate.add(now_s, growth[0])

    def as_json(self, since_s: float) -> dict[str, list[list[float | None]]]:
        """Return each timeline's buckets since a time, by instance; those of all under ""."""
        lines = {n: [b.as_json() for b in line.since(since_s)] for n, line in self.of.items()}
        return {name: buckets for name, buckets in lines.items() if buckets}


def _add(sums: dict[tuple[int, str], list[float]], key: tuple[int, str], counts: Counts) -> None:
    summed = sums.get(key)
    if summed is None:
        sums[key] = [*counts]
    else:
        for at, count in enumerate(counts):
            if count:
                summed[at] += count


def _of_attempt(attempt: Attempt, record: RequestRecord, failovers: int, tokens: int) -> Counts:
    outcome = attempt.outcome.value
    hurt = outcome in HURTING
    if attempt is not record.attempts[-1] or attempt.instance.name != record.instance:
        return (1, hurt, 0, 0, 0, 0)
    firsts = record.stream and outcome == "success"
    first_ms = attempt.duration_ms if firsts else 0
    return (1, hurt, bool(failovers), tokens, first_ms, firsts)


def _key(field: str, name: str) -> str:
    return f"page {field} {name}"
