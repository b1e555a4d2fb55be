from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Self

from nexus_gateway.routing.health import MEANS, WINDOW
from nexus_gateway.routing.instance import MARKS, Instance, InstanceState
from nexus_gateway.telemetry.shared import (
    HANDING_OVER,
    LISTENERS,
    Ended,
    WorkerState,
    ended_ms,
    to_keep,
)


@dataclass(slots=True)
class RecentEvents:
    """What is new.

    Args:
        requests: those that ended, the oldest first.
        first_tokens_ms: times to the first token, by the instance.
    """

    requests: list[Ended] = field(default_factory=list)
    first_tokens_ms: dict[str, list[float]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self.requests or self.first_tokens_ms)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"requests": self.requests, "first_tokens_ms": self.first_tokens_ms}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        return cls(found["requests"], found["first_tokens_ms"])


_Kept = tuple[int, int, Any]  # a number, which worker told it, and what


def _recent(kept: list[_Kept]) -> list[_Kept]:
    return kept[-WINDOW:]


def _latest_requests(kept: list[_Kept]) -> list[_Kept]:
    kept.sort(key=lambda entry: ended_ms(entry[2]))
    return to_keep(kept, lambda entry: entry[2])


class _Latest:
    """The latest of one sort, whoever told it, and how far each worker was told.

    Args:
        choose: which of all are kept.
    """

    def __init__(self, choose: Callable[[list[_Kept]], list[_Kept]]) -> None:
        self._choose = choose
        self._number = 0
        self._told: dict[int, int] = {}
        self._kept: list[_Kept] = []

    def add(self, worker: int, items: Sequence[Any]) -> None:
        if not items:
            return
        for item in items:
            self._number += 1
            self._kept.append((self._number, worker, item))
        self._kept[:] = self._choose(self._kept)

    def new_to(self, worker: int) -> list[Any]:
        """Return what others told and this worker was not told yet; from now on it was."""
        told = self._told.get(worker, 0)
        if told == self._number:
            return []
        self._told[worker] = self._number
        return [item for number, by, item in self._kept if number > told and by != worker]

    def forget(self, worker: int) -> None:
        self._told.pop(worker, None)


class EventBoard:
    """The latest news of all workers, and what each of them is to hear of it."""

    def __init__(self) -> None:
        self._requests = _Latest(_latest_requests)
        self._first_tokens: dict[str, _Latest] = defaultdict(lambda: _Latest(_recent))

    def hear(self, worker: int, news: RecentEvents) -> None:
        """Note what is new with a worker."""
        self._requests.add(worker, news.requests)
        for name, times_ms in news.first_tokens_ms.items():
            self._first_tokens[name].add(worker, times_ms)

    def tell(self, worker: int, *, listens: bool) -> RecentEvents:
        """Return what is new to a worker; of requests only if somebody listens there."""
        found = RecentEvents(self._requests.new_to(worker) if listens else [])
        for name, latest in self._first_tokens.items():
            if times_ms := latest.new_to(worker):
                found.first_tokens_ms[name] = times_ms
        return found

    def forget(self, worker: int) -> None:
        """Note that a worker is gone; what it told stays."""
        for latest in (self._requests, *self._first_tokens.values()):
            latest.forget(worker)


# Known by an instance's name alone, as it was in the operator's words.
_BY_NAME = frozenset({"toggle"})


class Hub:
    """What all workers said, and what each of them is to hear."""

    def __init__(self) -> None:
        self._said: dict[int, WorkerState] = {}
        self._all = WorkerState()  # its marks are everybody's, its figures those of the gone

    def hear(self, worker: int, said: WorkerState) -> None:
        """Note what a worker says, in the place of what it said before."""
        self._said[worker] = said
        self._all.heed_marks(said.marks)

    def forget(self, worker: int) -> None:
        """Note that a worker is gone; what it counted stays."""
        said = self._said.pop(worker, None)
        if said is not None:
            self._all.add(said, living=False)

    def tell(self, worker: int) -> WorkerState:
        """Return what a worker is to hear: the marks of all, the figures of all others."""
        found = WorkerState(dict(self._all.marks))
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


class InstanceSync:
    """By which names the workers speak of the instances.

    Args:
        instances: those of this worker.
        salt: the same in all workers, and a secret of theirs.
    """

    def __init__(self, instances: Iterable[Instance], salt: bytes) -> None:
        self.of = [(instance, _identity(instance, salt)) for instance in instances]

    def said_of(self) -> WorkerState:
        """Say what this worker knows of the instances."""
        said = WorkerState()
        for instance, identity in self.of:
            state = instance.export_state()
            for mark, value in state.marks.items():
                said.marks[_mark_name(instance, identity, mark)] = value
            if not state.total_requests:
                continue
            said.counts[f"{identity} requests"] = state.total_requests
            said.gauges[f"{identity} in_flight"] = state.in_flight
            for name, sample in state.means.items():
                said.means[f"{identity} {name}"] = sample
        return said

    def first_tokens_ms(self) -> dict[str, list[float]]:
        """Return the times to the first token that were seen here since this was last asked."""
        seen = {identity: instance.health.new_first_tokens_ms() for instance, identity in self.of}
        return {identity: times_ms for identity, times_ms in seen.items() if times_ms}

    def hear_first_tokens(self, heard_ms: Mapping[str, list[float]]) -> None:
        """Note the times to the first token that the others have seen."""
        for instance, identity in self.of if heard_ms else ():
            instance.health.merge_first_tokens(heard_ms.get(identity, ()))

    def heed(self, heard: WorkerState) -> None:
        """Take over what the others know of the instances."""
        for instance, identity in self.of:
            marks = {mark: _mark_name(instance, identity, mark) for mark in MARKS}
            means = {name: f"{identity} {name}" for name in MEANS}
            state = InstanceState(
                marks={m: heard.marks[n] for m, n in marks.items() if n in heard.marks},
                total_requests=int(heard.counts.get(f"{identity} requests", 0)),
                in_flight=int(heard.gauges.get(f"{identity} in_flight", 0)),
                means={m: heard.means[n] for m, n in means.items() if n in heard.means},
            )
            instance.merge_state(state)


def _identity(instance: Instance, salt: bytes) -> str:
    account = f"{instance.key.reveal()}\n{instance.account.base_url}".encode()
    return f"{instance.name} {blake2b(account, key=salt, digest_size=8).hexdigest()}"


def _mark_name(instance: Instance, identity: str, mark: str) -> str:
    return f"{instance.name if mark in _BY_NAME else identity} {mark}"
