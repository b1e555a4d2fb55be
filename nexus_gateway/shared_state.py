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
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Self

from nexus_gateway.health import Sample
from nexus_gateway.instance import MARKS, Elsewhere, Instance

REQUESTS_IN_FLIGHT = "requests_in_flight"
LISTENERS = "listeners"  # to the live events
HANDING_OVER = "handing_over"  # 1 where a worker tells its requests as `news`
# Known by an instance's name alone, as it was in the operator's words.
_BY_NAME = frozenset({"toggle"})


@dataclass(slots=True)
class Shared:
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

    def add(self, other: Shared, *, living: bool) -> None:
        """Add another's figures, the gauges only if it lives."""
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for name, mean in other.means.items():
            self.means[name] = self.means[name].plus(mean) if name in self.means else mean
        for name, gauge in other.gauges.items() if living else ():
            self.gauges[name] = self.gauges.get(name, 0) + gauge


class Hub:
    """What all workers said, and what each of them is to hear."""

    def __init__(self) -> None:
        self._said: dict[int, Shared] = {}
        self._all = Shared()  # its marks are everybody's, its figures those of the gone

    def hear(self, worker: int, said: Shared) -> None:
        """Note what a worker says, in the place of what it said before."""
        self._said[worker] = said
        self._all.heed_marks(said.marks)

    def forget(self, worker: int) -> None:
        """Note that a worker is gone; what it counted stays."""
        said = self._said.pop(worker, None)
        if said is not None:
            self._all.add(said, living=False)

    def tell(self, worker: int) -> Shared:
        """Return what a worker is to hear: the marks of all, the figures of all others."""
        found = Shared(dict(self._all.marks))
        found.add(self._all, living=False)
        for other, said in self._said.items():
            if other != worker:
                found.add(said, living=True)
        return found

    def listens(self, worker: int) -> bool:
        """Tell whether somebody listens at a worker."""
        said = self._said.get(worker)
        return said is not None and said.gauges.get(LISTENERS, 0) > 0

    def others_hand_over(self, worker: int) -> bool:
        """Tell whether all others hand over their requests."""
        others = [said for other, said in self._said.items() if other != worker]
        return all(said.gauges.get(HANDING_OVER) for said in others)

    def free_bad_keys(self, now_s: float) -> None:
        """Give every key that was refused another chance, as enabling its instance does."""
        for name in [n for n in self._all.marks if n.endswith(" bad_key")]:
            self._all.marks[name.removesuffix("bad_key") + "freed"] = [now_s]


class Names:
    """By which names the workers speak of the instances.

    Args:
        instances: those of this worker.
        salt: the same in all workers, and a secret of theirs.
    """

    def __init__(self, instances: Iterable[Instance], salt: bytes) -> None:
        self.of = [(instance, _identity(instance, salt)) for instance in instances]

    def said_of(self) -> Shared:
        """Say what this worker knows of the instances."""
        said = Shared()
        for instance, identity in self.of:
            for mark, value in instance.marks().items():
                said.marks[_mark_name(instance, identity, mark)] = value
            if not instance.total_requests:
                continue
            said.counts[f"{identity} requests"] = instance.total_requests
            said.gauges[f"{identity} in_flight"] = instance.in_flight
            for name, sample in instance.health.seen().items():
                if sample.weight:
                    said.means[f"{identity} {name}"] = sample
        return said

    def first_tokens_ms(self) -> dict[str, list[float]]:
        """Return the times to the first token that were seen here since this was last asked."""
        seen = {identity: instance.health.new_first_tokens_ms() for instance, identity in self.of}
        return {identity: times_ms for identity, times_ms in seen.items() if times_ms}

    def hear_first_tokens(self, heard_ms: Mapping[str, list[float]]) -> None:
        """Note the times to the first token that the others have seen."""
        for instance, identity in self.of if heard_ms else ():
            instance.health.hear_first_tokens(heard_ms.get(identity, ()))

    def heed(self, heard: Shared) -> None:
        """Take over what the others know of the instances."""
        for instance, identity in self.of:
            names = {mark: _mark_name(instance, identity, mark) for mark in MARKS}
            instance.follow({m: heard.marks[n] for m, n in names.items() if n in heard.marks})
            instance.elsewhere = Elsewhere(
                in_flight=int(heard.gauges.get(f"{identity} in_flight", 0)),
                total_requests=int(heard.counts.get(f"{identity} requests", 0)),
            )
            means = {name: f"{identity} {name}" for name in instance.health.seen()}
            instance.health.hear({m: heard.means[n] for m, n in means.items() if n in heard.means})


def _identity(instance: Instance, salt: bytes) -> str:
    account = f"{instance.key.reveal()}\n{instance.account.base_url}".encode()
    return f"{instance.name} {blake2b(account, key=salt, digest_size=8).hexdigest()}"


def _mark_name(instance: Instance, identity: str, mark: str) -> str:
    return f"{instance.name if mark in _BY_NAME else identity} {mark}"
