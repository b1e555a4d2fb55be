"""What workers share: the state of each, and the requests that ended. Pure, no socket.

A worker sends its state (`WorkerState`) in full, again and again, so that a lost or late message is
repaired by the next one. The supervisor merges the states of all and sends each worker those of the
others. There are four kinds of figures, each with one rule to merge it:

    marks    decisions: a toggle, a park, a circuit's change   the larger one wins
    counts   what only grows                                   added; those of ended workers stay
    gauges   what rises and falls                              added; those of ended workers go
    means    decaying means (`health.Sample`)                  added, each at its own age

Other modules, such as metrics, add their own names to the counts and gauges; what carries them need
not know these.

Times are seconds of CLOCK_MONOTONIC (`time.monotonic`): one clock for all processes of a machine,
which is never set. Provider keys are never part of a state: an instance is known by its name and by
a keyed digest of its key and address, so that another key under the same name has no history.

Ended requests and times to the first token are sent once and never change: a worker sends what is
new, and of that only the most recent. A slow worker later receives what it has missed, again the
most recent. Requests are many and long, and only the live page needs them. So a worker hands them
over only while a client listens at any worker, beginning with those that had ended before; and only
workers with a listener receive them. The most recent of all workers are kept, so that a new
listener sees the requests of ended workers too. Failed requests are kept for longer, because a busy
gateway would soon push them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Self, TypeVar

from nexus_gateway.routing.health import Sample

REQUESTS_IN_FLIGHT = "requests_in_flight"
LISTENERS = "listeners"  # to the live events
HANDING_OVER = "handing_over"  # 1 while a worker sends its ended requests
MOST_REQUESTS = 200
MOST_TROUBLED = 100

Ended = dict[str, Any]  # an ended request as the page shows it, without any content
ended_ms = itemgetter("endedAt")
T = TypeVar("T")


@dataclass(slots=True)
class WorkerState:
    """The state of one worker, or the merged state of several."""

    marks: dict[str, list[Any]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    means: dict[str, Sample] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object; it shares its parts, as a copy each time would be expensive."""
        means = {name: [m.at_s, m.weight, m.sum] for name, m in self.means.items()}
        return {"marks": self.marks, "counts": self.counts, "gauges": self.gauges, "means": means}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        means = {name: Sample(*numbers) for name, numbers in fields["means"].items()}
        return cls(fields["marks"], fields["counts"], fields["gauges"], means)

    def merge_marks(self, marks: dict[str, list[Any]]) -> None:
        for name, mark in marks.items():
            if name not in self.marks or mark > self.marks[name]:
                self.marks[name] = mark

    def add(self, other: WorkerState, *, living: bool) -> None:
        """Add another's figures, the gauges only if its worker lives."""
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for name, mean in other.means.items():
            self.means[name] = self.means[name].plus(mean) if name in self.means else mean
        for name, gauge in other.gauges.items() if living else ():
            self.gauges[name] = self.gauges.get(name, 0) + gauge


def is_troubled(request: Ended) -> bool:
    return bool(request["failed"] or request["failedOver"])


def to_keep(entries: Sequence[T], request_of: Callable[[T], Ended]) -> list[T]:
    """Return the most recent entries, and before them older ones with trouble, oldest first."""
    older, recent = entries[:-MOST_REQUESTS], entries[-MOST_REQUESTS:]
    if not older:
        return list(recent)
    room = MOST_TROUBLED - sum(is_troubled(request_of(entry)) for entry in recent)
    troubled = [entry for entry in older if is_troubled(request_of(entry))]
    return [*(troubled[-room:] if room > 0 else ()), *recent]
