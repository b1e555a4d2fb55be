"""What the last quarter of an hour was like: for all requests, and for each instance.

Time is cut into buckets of ten seconds, numbered by the wall clock (Unix seconds // BUCKET_S), so
that whoever draws them needs no other scale. Only buckets in which something ended are kept, at
most BUCKETS for each instance and no text in any of them: the memory is bounded whatever comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.attempts import Attempt

BUCKET_S = 10
BUCKETS = 90
RATE_OVER_S = 5
ALL = ""
COUNTED = ("requests", "failures", "failovers", "tokens", "first_ms", "firsts")
HURTING = frozenset({"failure", "rate_limited", "bad_key"})


def failed(record: RequestRecord) -> bool:
    """Tell whether a request went badly for its caller, by no fault of his own."""
    return record.status >= 500 or record.status == 429 or record.outcome == "failure"


@dataclass(slots=True)
class Bucket:
    """What ended within ten seconds.

    Args:
        number: when that was, in Unix seconds // BUCKET_S.
        requests: how many, or how many attempts where it is an instance's.
        failures: how many of them failed.
        failovers: how often another instance was asked than before, or came to be asked so.
        tokens: those that came out.
        first_ms: all times to the first token, added.
        firsts: how many those were.
    """

    number: int
    requests: int = 0
    failures: int = 0
    failovers: int = 0
    tokens: int = 0
    first_ms: float = 0.0
    firsts: int = 0

    def add(self, requests: int, failures: int, failovers: int, tokens: int) -> None:
        """Count what ended."""
        self.requests += requests
        self.failures += failures
        self.failovers += failovers
        self.tokens += tokens

    def add_firsts(self, first_ms: float, firsts: int = 1) -> None:
        """Count times to the first token."""
        self.first_ms += first_ms
        self.firsts += firsts

    def as_json(self) -> list[float | None]:
        """Return number, requests, failures, fail-overs, tokens and the mean TTFT in ms."""
        mean = round(self.first_ms / self.firsts) if self.firsts else None
        return [self.number, self.requests, self.failures, self.failovers, self.tokens, mean]


class Timeline:
    """The buckets of one instance, or of all.

    Attributes:
        counted: all that ended in this process, since it began.
    """

    def __init__(self) -> None:
        self.counted = Bucket(0)
        self._buckets: deque[Bucket] = deque(maxlen=BUCKETS)

    def at(self, at_s: float) -> Bucket:
        """Return the bucket of a time, in Unix seconds; never one before the last.

        A wall clock that is set back by a lot begins anew.
        """
        number = int(at_s // BUCKET_S)
        last = self._buckets[-1].number if self._buckets else number - 1
        if number < last - BUCKETS:
            self._buckets.clear()
        elif number <= last:
            return self._buckets[-1]
        self._buckets.append(Bucket(number))
        return self._buckets[-1]

    def add(self, at_s: float, *counts: int) -> Bucket:
        """Count what ended in this process; see `Bucket.add`."""
        bucket = self.at(at_s)
        bucket.add(*counts)
        self.counted.add(*counts)
        return bucket

    def since(self, at_s: float) -> list[Bucket]:
        """Return the buckets that had not ended at a time, in Unix seconds."""
        return [b for b in self._buckets if b.number >= at_s // BUCKET_S]


class Rate:
    """How many a second, over the last few whole seconds."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=RATE_OVER_S + 2)

    def add(self, at_s: float, count: int = 1) -> None:
        """Count what ended at a time, in Unix seconds."""
        if not self._seconds or self._seconds[-1][0] != int(at_s):
            self._seconds.append([int(at_s), 0])
        self._seconds[-1][1] += count

    def at(self, now_s: float) -> float:
        """Return the rate; the second that is running does not count yet."""
        known = range(int(now_s) - RATE_OVER_S, int(now_s))
        return sum(count for second, count in self._seconds if second in known) / RATE_OVER_S


class Timelines:
    """The timelines of all requests and of each instance; `observe` is an Observer.

    Other processes tell what they have counted so far (`announce`), and what that has become more since
    the last time is counted as of now (`hear`).
    """

    def __init__(self) -> None:
        self.rate = Rate()
        self.of: dict[str, Timeline] = {ALL: Timeline()}
        self._heard: dict[str, list[int]] | None = None

    def _line(self, name: str) -> Timeline:
        line = self.of.get(name)
        if line is None:
            line = self.of[name] = Timeline()
        return line

    def observe(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        self.rate.add(record.ended_s)
        tokens = record.tokens.completion or 0
        line = self.of[ALL]
        bucket = line.add(record.ended_s, 1, failed(record), len(record.failovers), tokens)
        if record.stream and record.began:
            bucket.add_firsts(record.first_ms)
            line.counted.add_firsts(record.first_ms)
        for attempt in record.attempts:
            self._observe_attempt(attempt, record, tokens)

    def _observe_attempt(self, attempt: Attempt, record: RequestRecord, tokens: int) -> None:
        name, outcome = attempt.instance.name, attempt.outcome.value
        hurt = outcome in HURTING
        line = self._line(name)
        if attempt is not record.attempts[-1] or name != record.instance:
            line.add(record.ended_s, 1, hurt, 0, 0)
            return
        bucket = line.add(record.ended_s, 1, hurt, bool(record.failovers), tokens)
        if record.stream and outcome == "success":
            bucket.add_firsts(attempt.duration_ms)
            line.counted.add_firsts(attempt.duration_ms)

    def tell(self, counts: dict[str, float]) -> None:
        """Add to what the others hear what this process has counted."""
        for name, line in self.of.items():
            for what in COUNTED:
                if count := round(getattr(line.counted, what)):
                    counts[_told_as(what, name)] = count

    def hear(self, counts: Mapping[str, float], names: Iterable[str], now_s: float) -> None:
        """Count what the others have counted since the last time; the first time sets the mark.

        Args:
            counts: all that they tell.
            names: of the instances.
            now_s: in Unix seconds.
        """
        before = self._heard
        self._heard = {
            name: [int(counts.get(_told_as(what, name), 0)) for what in COUNTED]
            for name in (ALL, *names)
        }
        if before is None:
            return
        for name, now in self._heard.items():
            more = [max(0, n - b) for n, b in zip(now, before.get(name, now), strict=True)]
            if any(more):
                bucket = self._line(name).at(now_s)
                bucket.add(*more[:-2])
                bucket.add_firsts(*more[-2:])
                if name == ALL:
                    self.rate.add(now_s, more[0])

    def as_json(self, since_s: float) -> dict[str, list[list[float | None]]]:
        """Return each timeline's buckets since a time, by the instance; "" for that of all."""
        found = {n: [b.as_json() for b in line.since(since_s)] for n, line in self.of.items()}
        return {name: buckets for name, buckets in found.items() if buckets}


def _told_as(what: str, name: str) -> str:
    return f"page {what} {name}"
