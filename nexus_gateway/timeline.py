"""What the last quarter of an hour was like: for all requests, and for each instance.

Time is cut into buckets of ten seconds, numbered by the wall clock (Unix seconds // BUCKET_S), so
that whoever draws them needs no other scale. Only buckets in which something ended are kept, at
most BUCKETS for each instance and no text in any of them: the memory is bounded whatever comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from nexus_gateway.record import AttemptRecord, RequestRecord

BUCKET_S = 10
BUCKETS = 90
RATE_OVER_S = 5
HURTING = frozenset({"failure", "rate_limited", "bad_key"})


def failed(record: RequestRecord) -> bool:
    """Tell whether a request went badly for its caller, by no fault of his own."""
    return record.status >= 500 or record.status == 429 or record.outcome == "failure"


def tokens_of(record: RequestRecord) -> tuple[int, int]:
    """Return the tokens that went in and came out, 0 where unknown."""
    went, came = record.usage.get("prompt_tokens"), record.usage.get("completion_tokens")
    return went if isinstance(went, int) else 0, came if isinstance(came, int) else 0


@dataclass(slots=True)
class Bucket:
    """What ended within ten seconds.

    Args:
        number: when that was, in Unix seconds // BUCKET_S.
        requests: how many, or how many attempts where it is an instance's.
        failures: how many of them failed.
        failovers: how many attempts were made after a first one.
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

    def as_json(self) -> list[float | None]:
        """Return number, requests, failures, fail-overs, tokens and the mean TTFT in ms."""
        mean = round(self.first_ms / self.firsts) if self.firsts else None
        return [self.number, self.requests, self.failures, self.failovers, self.tokens, mean]


class Timeline:
    """The buckets of one instance, or of all."""

    def __init__(self) -> None:
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

    def since(self, at_s: float) -> list[Bucket]:
        """Return the buckets that had not ended at a time, in Unix seconds."""
        return [b for b in self._buckets if b.number >= at_s // BUCKET_S]


class Rate:
    """How many a second, over the last few whole seconds."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=RATE_OVER_S + 2)

    def add(self, at_s: float) -> None:
        """Count one at a time, in Unix seconds."""
        if not self._seconds or self._seconds[-1][0] != int(at_s):
            self._seconds.append([int(at_s), 0])
        self._seconds[-1][1] += 1

    def at(self, now_s: float) -> float:
        """Return the rate; the second that is running does not count yet."""
        known = range(int(now_s) - RATE_OVER_S, int(now_s))
        return sum(count for second, count in self._seconds if second in known) / RATE_OVER_S


class Timelines:
    """The timelines of all requests and of each instance; `observe` is an Observer."""

    def __init__(self) -> None:
        self.rate = Rate()
        self.all = Timeline()
        self.of: dict[str, Timeline] = {}

    def observe(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        self.rate.add(record.ended_s)
        bucket = self.all.at(record.ended_s)
        bucket.requests += 1
        bucket.failures += failed(record)
        bucket.failovers += max(0, len(record.attempts) - 1)
        tokens = tokens_of(record)[1]
        bucket.tokens += tokens
        if record.stream and record.first_ms:
            bucket.first_ms += record.first_ms
            bucket.firsts += 1
        for attempt in record.attempts:
            self._observe_attempt(attempt, record, tokens)

    def _observe_attempt(self, attempt: AttemptRecord, record: RequestRecord, tokens: int) -> None:
        timeline = self.of.get(attempt.instance)
        if timeline is None:
            timeline = self.of[attempt.instance] = Timeline()
        bucket = timeline.at(record.ended_s)
        bucket.requests += 1
        bucket.failures += attempt.outcome in HURTING
        if attempt is record.attempts[-1] and attempt.instance == record.instance:
            bucket.failovers += len(record.attempts) > 1
            bucket.tokens += tokens
            if record.stream and attempt.outcome == "success":
                bucket.first_ms += attempt.duration_ms
                bucket.firsts += 1

    def as_json(self, since_s: float) -> dict[str, list[list[float | None]]]:
        """Return each timeline's buckets since a time, by the instance; "" for that of all."""
        named: Iterable[tuple[str, Timeline]] = [("", self.all), *self.of.items()]
        found = {name: [b.as_json() for b in line.since(since_s)] for name, line in named}
        return {name: buckets for name, buckets in found.items() if buckets}
