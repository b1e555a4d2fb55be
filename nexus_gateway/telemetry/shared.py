"""What worker processes know of each other: pure, no socket.

Each worker says what it knows (`said_of`), a hub puts together what all the others know (`Hub`),
and each worker takes that over (`heed`). Always whole, never what changed since: a message that
is lost or late is healed by the next one. Four sorts of things are shared, and each has one rule:

    marks    what was decided: a toggle, a park, a circuit's turn   of two the larger one holds
    counts   what only goes up                                      added; those of the gone stay
    gauges   what goes up and down                                  added; those of the gone go
    means    decayed means (`health.Sample`)                        added, each as old as it is

What happens to each request is told once only, see `news`.

Whoever has more to count, such as metrics, adds it under names of its own to the counts and the
gauges; nothing between the workers needs to know them.

Times are seconds of CLOCK_MONOTONIC (`time.monotonic`): it is one clock for all processes of a
machine, and nobody sets it. Keys of providers are never in it: an instance is known by its name
and by a keyed digest of its key and address, so that another key under the same name begins anew.

What workers tell each other once: the requests that ended, and their times to the first token.

Decisions and figures are told whole, again and again (`shared_state`). Here each worker tells what
is new since it last told, and of that the newest only. What has happened never changes, so there
is nothing that a later message would have to put right; the line between two processes loses
nothing while both live; and who is slow is told later all that it has missed, again the newest.

Requests are many and long, and wanted by nobody but those who look at the live page. So they are
handed over only while somebody listens, at whichever worker, and told only to workers where
somebody does. What had ended before is handed over when that begins. The board keeps the latest of
all workers, so that whoever listens next sees them whoever of these is gone. Where much goes well,
what went badly is soon not among the latest any more: of that the latest are kept beside.

Pure, no socket. An instance is known by the name that `shared_state.Names` gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from nexus_gateway.routing.health import Sample

MOST_REQUESTS = 200
MOST_TROUBLED = 100

Ended = dict[str, Any]  # a request as the page shows it: no word of what was said
T = TypeVar("T")


def ended_ms(request: Ended) -> int:
    """Return when a request ended, in Unix ms."""
    found: int = request["endedAt"]
    return found


def is_troubled(request: Ended) -> bool:
    """Tell whether a request failed, or another instance had to be asked."""
    return bool(request["failed"] or request["failedOver"])


def to_keep(entries: Sequence[T], request_of: Callable[[T], Ended]) -> list[T]:
    """Return the latest of all, and before them the latest of those that went badly.

    Args:
        entries: the oldest first.
        request_of: the request that an entry is about.
    """
    before, latest = entries[:-MOST_REQUESTS], entries[-MOST_REQUESTS:]
    if not before:
        return list(latest)
    room = MOST_TROUBLED - sum(is_troubled(request_of(entry)) for entry in latest)
    troubled = [entry for entry in before if is_troubled(request_of(entry))]
    return [*(troubled[-room:] if room > 0 else ()), *latest]


REQUESTS_IN_FLIGHT = "requests_in_flight"
LISTENERS = "listeners"  # to the live events
HANDING_OVER = "handing_over"  # 1 where a worker tells its requests as `news`


@dataclass(slots=True)
class WorkerState:
    """What one worker knows, or several together; see the module for the four sorts."""

    marks: dict[str, list[Any]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    means: dict[str, Sample] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it; not a copy, as there may be much of it many times a second."""
        means = {name: [m.at_s, m.weight, m.sum] for name, m in self.means.items()}
        return {"marks": self.marks, "counts": self.counts, "gauges": self.gauges, "means": means}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        means = {name: Sample(*numbers) for name, numbers in found["means"].items()}
        return cls(found["marks"], found["counts"], found["gauges"], means)

    def heed_marks(self, marks: dict[str, list[Any]]) -> None:
        """Take over the marks that are larger than its own."""
        for name, mark in marks.items():
            if name not in self.marks or mark > self.marks[name]:
                self.marks[name] = mark

    def add(self, other: WorkerState, *, living: bool) -> None:
        """Add another's figures, the gauges only if it lives."""
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for name, mean in other.means.items():
            self.means[name] = self.means[name].plus(mean) if name in self.means else mean
        for name, gauge in other.gauges.items() if living else ():
            self.gauges[name] = self.gauges.get(name, 0) + gauge
