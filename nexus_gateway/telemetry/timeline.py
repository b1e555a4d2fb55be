"""The last quarter of an hour in buckets, for all requests and for each instance.

Buckets last ten seconds and are numbered by the wall clock (Unix seconds // BUCKET_S), so that a
chart needs no other scale. Only buckets in which something ended are kept, at most BUCKETS for each
instance and without any text: memory is bounded whatever callers send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nexus_gateway.proxy.record import AttemptRecord, RequestRecord

BUCKET_S = 10
BUCKETS = 90
RATE_OVER_S = 5
ALL = ""
COUNTED = ("requests", "failures", "failovers", "tokens", "first_ms", "firsts")
HURTING = frozenset({"failure", "rate_limited", "bad_key"})


def failed(record: RequestRecord) -> bool:
    """Whether a request failed through no fault of its caller."""
    return record.status >= 500 or record.status == 429 or record.outcome == "failure"


@dataclass(slots=True)
class Bucket:
    """What ended within ten seconds.

    Args:
        number: Unix seconds // BUCKET_S.
        requests: of an instance, its attempts.
        failures: how many of those failed.
        failovers: attempts on a different instance; of an instance, the answers it gave after one.
        tokens: of the completions.
        first_ms: the sum of the times to the first token.
        firsts: how many times that sum has.
    """

    number: int
    requests: int = 0
    failures: int = 0
    failovers: int = 0
    tokens: int = 0
    first_ms: float = 0.0
    firsts: int = 0

    def add(self, requests: int, failures: int, failovers: int, tokens: int) -> None:
        self.requests += requests
        self.failures += failures
        self.failovers += failovers
        self.tokens += tokens

    def add_firsts(self, first_ms: float, firsts: int = 1) -> None:
        self.first_ms += first_ms
        self.firsts += firsts

    def as_json(self) -> list[float | None]:
        """Return number, requests, failures, fail-overs, tokens and the mean TTFT in ms."""
        mean = round(self.first_ms / self.firsts) if self.firsts else None
        return [self.number, self.requests, self.failures, self.failovers, self.tokens, mean]


class Timeline:
    """The buckets of one instance, or of all.

    Attributes:
        counted: the sum of what ended in this process since it started.
    """

    def __init__(self) -> None:
        self.counted = Bucket(0)
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

    def add(self, at_s: float, *counts: int, first_ms: float | None) -> None:
        """Count what ended in this process; see `Bucket.add`."""
        for bucket in (self.at(at_s), self.counted):
            bucket.add(*counts)
            if first_ms is not None:
                bucket.add_firsts(first_ms)

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
        self.rate = Rate()
        self.of: dict[str, Timeline] = {ALL: Timeline()}
        self._merged: dict[str, list[int]] | None = None

    def _line(self, name: str) -> Timeline:
        line = self.of.get(name)
        if line is None:
            line = self.of[name] = Timeline()
        return line

    def observe(self, record: RequestRecord) -> None:
        self.rate.add(record.ended_s)
        tokens = record.tokens.completion or 0
        first_ms = record.first_ms if record.stream and record.began else None
        counts = (1, failed(record), len(record.moves), tokens)
        self.of[ALL].add(record.ended_s, *counts, first_ms=first_ms)
        for attempt in record.attempts:
            self._observe_attempt(attempt, record, tokens)

    def _observe_attempt(self, attempt: AttemptRecord, record: RequestRecord, tokens: int) -> None:
        hurt = attempt.outcome in HURTING
        line = self._line(attempt.instance)
        if attempt is not record.attempts[-1] or attempt.instance != record.instance:
            line.add(record.ended_s, 1, hurt, 0, 0, first_ms=None)
            return
        first_ms = attempt.duration_ms if record.stream and attempt.outcome == "success" else None
        line.add(record.ended_s, 1, hurt, bool(record.moves), tokens, first_ms=first_ms)

    def publish(self, counts: dict[str, float]) -> None:
        """Add this process's totals to what the other processes get."""
        for name, line in self.of.items():
            for field in COUNTED:
                if count := round(getattr(line.counted, field)):
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
                bucket = self._line(name).at(now_s)
                bucket.add(*growth[:-2])
                bucket.add_firsts(*growth[-2:])
                if name == ALL:
                    self.rate.add(now_s, growth[0])

    def as_json(self, since_s: float) -> dict[str, list[list[float | None]]]:
        """Return each timeline's buckets since a time, by instance; those of all under ""."""
        lines = {n: [b.as_json() for b in line.since(since_s)] for n, line in self.of.items()}
        return {name: buckets for name, buckets in lines.items() if buckets}


def _key(field: str, name: str) -> str:
    return f"page {field} {name}"
