"""Shared state between workers: exported by each, merged by the supervisor, applied by each.

`InstanceSync` exports what a worker knows of its instances and applies what the others know. `Hub`
and `EventBoard` are the supervisor's side: they merge what all workers send, and return for each
what the others sent. Pure, no socket; `nexus_gateway.telemetry.shared` defines what is shared.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Self, TypeVar

from nexus_gateway.routing.health import MEANS, WINDOW
from nexus_gateway.routing.instance import (
    INSTANCE_MARKS,
    MODEL_MARKS,
    Deployment,
    Instance,
    InstanceState,
    ModelState,
)
from nexus_gateway.telemetry import shared
from nexus_gateway.telemetry.shared import Ended, WorkerState

T = TypeVar("T")
_IDENTITY = re.compile(r".*? [0-9a-f]{16}(?= )", re.DOTALL)  # as `_identity` returns it
# Marks that belong to an instance's name whatever its key: the operator toggled it by name.
_BY_NAME = frozenset({"toggle"})


class InstanceSync:
    """Exports and applies the state of a worker's instances; the workers share the secret salt."""

    def __init__(self, instances: Iterable[Instance], salt: bytes) -> None:
        self._identities = [(instance, _identity(instance, salt)) for instance in instances]

    def local_state(self) -> WorkerState:
        state = WorkerState()
        for instance, identity in self._identities:
            own = instance.export_state()
            for mark, value in own.marks.items():
                state.marks[_mark_name(instance, identity, mark)] = value
            if own.total_requests:
                state.counts[f"{identity} requests"] = own.total_requests
                state.gauges[f"{identity} in_flight"] = own.in_flight
        for deployment, identity in self._deployments():
            model = deployment.export_state()
            state.marks |= {f"{identity} {mark}": value for mark, value in model.marks.items()}
            state.means |= {f"{identity} {name}": sample for name, sample in model.means.items()}
        return state

    def apply(self, others: WorkerState) -> None:
        for instance, identity in self._identities:
            names = {mark: _mark_name(instance, identity, mark) for mark in INSTANCE_MARKS}
            state = InstanceState(
                marks=_present(names, others.marks),
                total_requests=int(others.counts.get(f"{identity} requests", 0)),
                in_flight=int(others.gauges.get(f"{identity} in_flight", 0)),
            )
            instance.merge_state(state)
        for deployment, identity in self._deployments():
            marks = {mark: f"{identity} {mark}" for mark in MODEL_MARKS}
            means = {name: f"{identity} {name}" for name in MEANS}
            model = ModelState(_present(marks, others.marks), _present(means, others.means))
            deployment.merge_state(model)

    def new_first_tokens_ms(self) -> dict[str, list[float]]:
        """Return those since the last call, by the deployment's identity."""
        new = {i: deployment.health.new_first_tokens_ms() for deployment, i in self._deployments()}
        return {identity: times_ms for identity, times_ms in new.items() if times_ms}

    def merge_first_tokens(self, times_ms: Mapping[str, list[float]]) -> None:
        for deployment, identity in self._deployments() if times_ms else ():
            deployment.health.merge_first_tokens(times_ms.get(identity, ()))

    def _deployments(self) -> Iterator[tuple[Deployment, str]]:
        for instance, identity in self._identities:
            for model, deployment in instance.deployments.items():
                yield deployment, f"{identity} {model}"


def _present(names: Mapping[str, str], values: Mapping[str, T]) -> dict[str, T]:
    """Return the values that exist, by the keys of `names`, whose values are their names here."""
    return {key: values[name] for key, name in names.items() if name in values}


def _identity(instance: Instance, salt: bytes) -> str:
    account = f"{instance.key.reveal()}\n{instance.account.base_url}".encode()
    return f"{instance.name} {blake2b(account, key=salt, digest_size=8).hexdigest()}"


def _mark_name(instance: Instance, identity: str, mark: str) -> str:
    return f"{instance.name if mark in _BY_NAME else identity} {mark}"


class Hub:
    def __init__(self) -> None:
        self._states: dict[int, WorkerState] = {}  # by worker number
        # The marks of all workers, and the counts and means of those that ended.
        self._merged = WorkerState()

    def merge(self, worker: int, state: WorkerState) -> None:
        self._states[worker] = state
        self._merged.merge_marks(state.marks)

    def remove(self, worker: int) -> None:
        """Remove a worker that ended; what it counted stays."""
        state = self._states.pop(worker, None)
        if state is not None:
            self._merged.add(state, living=False)

    def state_for(self, worker: int) -> WorkerState:
        """Return all marks, and the figures of all other workers."""
        others = WorkerState(dict(self._merged.marks))
        others.add(self._merged, living=False)
        for number, state in self._states.items():
            if number != worker:
                others.add(state, living=True)
        return others

    def has_listeners(self, worker: int) -> bool:
        """Whether a client listens to the live events at a worker."""
        return self._states.get(worker, WorkerState()).gauges.get(shared.LISTENERS, 0) > 0

    def others_hand_over(self, worker: int) -> bool:
        others = (state for number, state in self._states.items() if number != worker)
        return all(state.gauges.get(shared.HANDING_OVER) for state in others)

    def unpark(self, now_s: float) -> None:
        """Give each refused key and unknown model another chance, as enabling an instance does."""
        for name in [n for n in self._merged.marks if n.endswith((" bad_key", " unknown_model"))]:
            if identity := _IDENTITY.match(name):
                self._merged.marks[f"{identity[0]} freed"] = [now_s]


@dataclass(slots=True)
class RecentEvents:
    requests: list[Ended] = field(default_factory=list)  # the oldest first
    first_tokens_ms: dict[str, list[float]] = field(default_factory=dict)  # by identity

    def __bool__(self) -> bool:
        return bool(self.requests or self.first_tokens_ms)

    def as_json(self) -> dict[str, Any]:
        return {"requests": self.requests, "first_tokens_ms": self.first_tokens_ms}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(fields["requests"], fields["first_tokens_ms"])


class EventBoard:
    """The recent events of all workers, each to be sent once to every other worker."""

    def __init__(self) -> None:
        self._requests = _Recent(_recent_requests)
        self._first_tokens: dict[str, _Recent] = defaultdict(
            lambda: _Recent(lambda entries: entries[-WINDOW:])
        )

    def add(self, worker: int, events: RecentEvents) -> None:
        self._requests.add(worker, events.requests)
        for identity, times_ms in events.first_tokens_ms.items():
            self._first_tokens[identity].add(worker, times_ms)

    def new_for(self, worker: int, *, with_requests: bool) -> RecentEvents:
        """Return the events that a worker lacks; from now on it has them."""
        events = RecentEvents(self._requests.new_for(worker) if with_requests else [])
        for identity, recent in self._first_tokens.items():
            if times_ms := recent.new_for(worker):
                events.first_tokens_ms[identity] = times_ms
        return events

    def remove(self, worker: int) -> None:
        """Remove a worker that ended; its events stay."""
        for recent in (self._requests, *self._first_tokens.values()):
            recent.remove(worker)


_Entry = tuple[int, int, Any]  # its number, the worker that added it, the item


def _recent_requests(entries: list[_Entry]) -> list[_Entry]:
    entries.sort(key=lambda entry: shared.ended_ms(entry[2]))
    return shared.to_keep(entries, lambda entry: entry[2])


class _Recent:
    """The recent items of one kind; `select` returns the entries to keep."""

    def __init__(self, select: Callable[[list[_Entry]], list[_Entry]]) -> None:
        self._select = select
        self._number = 0
        self._sent: dict[int, int] = {}  # the last number that each worker was sent
        self._entries: list[_Entry] = []

    def add(self, worker: int, items: Sequence[Any]) -> None:
        if items:
            self._entries += [(n, worker, item) for n, item in enumerate(items, self._number + 1)]
            self._entries[:] = self._select(self._entries)
            self._number += len(items)

    def new_for(self, worker: int) -> list[Any]:
        """Return what others added and this worker lacks; from now on it has it."""
        sent = self._sent.get(worker, 0)
        if sent == self._number:
            return []
        self._sent[worker] = self._number
        return [item for number, by, item in self._entries if number > sent and by != worker]

    def remove(self, worker: int) -> None:
        self._sent.pop(worker, None)
