"""The time between SIGTERM and exit: nothing new begins, what runs may end.

Every request in flight is tracked. When the time is up, what is left is cancelled with
`expired` set, by which its handler knows to say goodbye instead of just stopping.

A worker process that is replaced leaves without a drain: it answers whoever still comes by, and
asks them to connect anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web
from multidict import CIMultiDictProxy

from nexus_gateway.proxy.hook_runner import HookRunner
from nexus_gateway.proxy.record import Observer, Trace
from nexus_gateway.proxy.relay import Relay
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.resolver import ModelResolver
from nexus_gateway.routing.scheduler import Scheduler
from nexus_gateway.settings import Settings
from nexus_gateway.telemetry.pricing import Spent
from nexus_gateway.telemetry.recorder import Recorder
from nexus_gateway.telemetry.shared import WorkerState


class Drain:
    """Track requests in flight, and wait for their end.

    Attributes:
        begun: nothing new is accepted.
        leaving: this process goes, with or without a drain.
        expired: the time is up.
    """

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.leaving = asyncio.Event()
        self.expired = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """How many requests are being served."""
        return len(self._tasks)

    def begin(self) -> None:
        """Accept nothing new from now on."""
        self.begun.set()
        self.leaving.set()

    def __enter__(self) -> None:
        """Count the current task as a request in flight, until the `with` block ends."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._idle.clear()

    def __exit__(self, *error: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def wait(self, limit_s: float) -> bool:
        """Wait until no request is in flight; False when the time was not enough."""
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def expire(self) -> None:
        """The time is up: cancel what is left."""
        self.expired = True
        for task in list(self._tasks):
            task.cancel()


class Ledger(Protocol):
    """Notes what every request used."""

    @property
    def is_refused(self) -> bool:
        """Whether its place cannot be used, so that none is kept."""

    def spent(self, elsewhere: Mapping[str, float]) -> Spent:
        """Return what requests have cost since it began; told what the other processes counted."""


class Tracing(Protocol):
    """Follows requests."""

    def begin(self, headers: CIMultiDictProxy[str], endpoint: str, path: str) -> Trace:
        """Begin to follow one that has just come, by a door and its path."""


@dataclass(slots=True)
class Gateway:
    """The running gateway, as the handlers know it.

    Args:
        settings: what the owner set.
        pool: the instances.
        scheduler: gives leases on them.
        drain: the requests in flight, and their end.
        targets: who may serve a request.
        hooks: what looks at requests.
        relay: serves them; there once the application runs.
        make_relay: makes another one for other settings; there as long as `relay` is.
        workers: how many processes serve.
        others: what the others of them counted; a figure of this process is added to it.
        decided: set when something was decided that the others must know at once.
        recorder: passes the record of every request that has ended to its observers.
        refused: told of every other answer that is an error: its status, and its code or type.
        shares: each adds its figures to what this process tells the others.
        ledger: notes what they use, where that is wanted.
        tracing: follows every request, where there is a collector.
    """

    settings: Settings
    pool: Pool
    scheduler: Scheduler
    drain: Drain
    targets: ModelResolver
    hooks: HookRunner | None = None
    relay: Relay | None = None
    make_relay: Callable[[Settings], Relay] | None = None
    workers: int = 1
    others: WorkerState = field(default_factory=WorkerState)
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    recorder: Recorder = field(default_factory=Recorder)
    refused: Callable[[int, str], None] | None = None
    shares: list[Callable[[WorkerState], None]] = field(default_factory=list)
    ledger: Ledger | None = None
    tracing: Tracing | None = None

    @property
    def observers(self) -> list[Observer]:
        return self.recorder.observers


GATEWAY = web.AppKey("gateway", Gateway)


def gateway_of(request: web.Request) -> Gateway:
    """Return the gateway that serves a request."""
    return request.app[GATEWAY]
