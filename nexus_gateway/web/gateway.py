"""The running gateway: built complete by `open_gateway`, and closed with it."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from nexus_gateway.errors import Overloaded
from nexus_gateway.hooks import Hook
from nexus_gateway.proxy.hook_runner import HookRunner
from nexus_gateway.proxy.relay import Relay
from nexus_gateway.proxy.resumption import Resuming
from nexus_gateway.routing.policies import Policy
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.resolver import ModelResolver
from nexus_gateway.routing.scheduler import Scheduler
from nexus_gateway.settings import Settings
from nexus_gateway.store import ResponseStore, open_store
from nexus_gateway.telemetry.feed import Feed
from nexus_gateway.telemetry.ledger_writer import LedgerWriter
from nexus_gateway.telemetry.log import log_request
from nexus_gateway.telemetry.metrics.meter import Meter, is_installed
from nexus_gateway.telemetry.recorder import Recorder
from nexus_gateway.telemetry.shared import WorkerState
from nexus_gateway.upstream.attempt import Upstream
from nexus_gateway.upstream.client import Client, open_client
from nexus_gateway.web.bodies import BodyBudget

if TYPE_CHECKING:
    from nexus_gateway.telemetry.tracing import Tracing

Contributor = Callable[[WorkerState], None]


class Cancellable(Protocol):
    """A request in flight: a task, or what serves it without one."""

    def cancel(self) -> object: ...


class Drain:
    """The requests in flight, and the time between SIGTERM and exit.

    A worker that is replaced leaves without a drain: it still answers, and asks callers to connect
    again.

    Attributes:
        begun: new requests are refused.
        leaving: this process ends, with or without a drain.
        expired: the time limit is over; what is left was cancelled and ends with an error.
        places: for how many requests there are file descriptors.
    """

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.leaving = asyncio.Event()
        self.expired = False
        self.places = math.inf
        self._tasks: set[Cancellable] = set()
        self._receiving: set[Cancellable] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    def exceeds(self, limit: int, more: int = 0) -> bool:
        """Return whether more requests are in flight than a limit, 0 for none, or than `places`.

        `more` are counted as well.

        Those whose body is still arriving do not count: slow callers must not keep others out.
        """
        taken = len(self._tasks) - len(self._receiving) + more
        return 0 < limit < taken or taken > self.places

    @contextmanager
    def receiving(self, limit: int) -> Iterator[None]:
        """Receive the body of the current task's request; then it counts towards a limit.

        Raises:
            Overloaded: there is no place for it.
        """
        task = asyncio.current_task()
        if task is None or task not in self._tasks:  # an admin call
            yield
            return
        self._receiving.add(task)
        try:
            yield
        finally:
            self._receiving.discard(task)
        if self.exceeds(limit):
            raise Overloaded

    def begin(self) -> None:
        self.begun.set()
        self.leaving.set()

    def __enter__(self) -> None:
        """Count the current task as a request in flight until the block ends."""
        task = asyncio.current_task()
        assert task is not None
        self.add(task)

    def __exit__(self, *error: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.remove(task)

    def add(self, request: Cancellable) -> None:
        """Count a request as in flight until it is removed."""
        self._tasks.add(request)
        self._idle.clear()

    def remove(self, request: Cancellable) -> None:
        self._tasks.discard(request)
        if not self._tasks:
            self._idle.set()

    async def wait(self, limit_s: float) -> bool:
        """Wait until no request is in flight; False if the time is over before."""
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def expire(self) -> None:
        """Cancel what is left."""
        self.expired = True
        for task in list(self._tasks):
            task.cancel()


@dataclass(slots=True)
class Gateway:
    """The parts of the running gateway.

    A reload replaces `settings`, `resolver` and `relay`, and changes the instances of the pool.

    Attributes:
        recorder: passes the records of ended requests to their observers.
        contributors: each adds figures to the state that this worker publishes to the others.
        meter: counts for /metrics, if METRICS is on and its extra is installed.
        store: the responses that callers may refer to, unless it is off.
        workers: how many processes serve.
        others: the state of the other workers; figures of this one are added to it.
        decided: set if the other workers must know something at once.
    """

    settings: Settings
    pool: Pool
    resolver: ModelResolver
    relay: Relay
    scheduler: Scheduler
    client: Client
    drain: Drain
    bodies: BodyBudget
    recorder: Recorder
    contributors: list[Contributor]
    feed: Feed
    meter: Meter | None
    ledger: LedgerWriter | None
    hooks: HookRunner | None
    tracing: Tracing | None
    store: ResponseStore | None
    workers: int = 1
    others: WorkerState = field(default_factory=WorkerState)
    decided: asyncio.Event = field(default_factory=asyncio.Event)

    def configure(self, settings: Settings) -> None:
        """Serve with new settings from now on; requests in flight keep the former ones."""
        self.settings = settings
        self.bodies.configure(settings)
        self.resolver = ModelResolver(self.pool, strict=settings.strict_models)
        self.relay = _relay(self.scheduler, self.client, settings)

    def merge(self, others: WorkerState, workers: int) -> None:
        """Take over the state of the other workers."""
        self.workers, self.others = workers, others
        names = [instance.name for instance in self.pool.instances]
        self.feed.timelines.merge(others.counts, names, self.feed.wall())


GATEWAY = web.AppKey("gateway", Gateway)


def gateway_of(request: web.Request) -> Gateway:
    return request.app[GATEWAY]


@asynccontextmanager
async def open_gateway(
    settings: Settings,
    pool: Pool,
    policies: Mapping[str, Policy],
    hooks: Mapping[str, Hook],
    clock: Callable[[], float],
    rng: random.Random,
    pseudonym: str,
    backoff_ms: Sequence[int],
) -> AsyncIterator[Gateway]:
    """Open what the gateway needs, and close it at the end: the recorder first, the client last."""
    scheduler = Scheduler(clock, rng, policies, backoff_ms)
    feed = Feed(pool)
    meter = Meter(pool, scheduler) if settings.metrics and is_installed() else None
    ledger = LedgerWriter(settings.ledger) if settings.ledger else None
    runner = HookRunner(hooks) if hooks else None
    parts = [part for part in (feed, meter, ledger) if part is not None]
    recorder = Recorder([*(part.observe for part in parts), log_request])
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(settings, pseudonym))
        tracing = None
        if settings.traces:
            from nexus_gateway.telemetry.export import open_tracing

            tracing = await stack.enter_async_context(open_tracing())
        store = await open_store(settings, clock)
        if store is not None:
            stack.push_async_callback(store.close)
        if runner is not None:
            stack.push_async_callback(runner.close)
        if ledger is not None:
            ledger.start()
            stack.push_async_callback(asyncio.to_thread, ledger.close)
        stack.callback(recorder.close)
        yield Gateway(
            settings,
            pool,
            ModelResolver(pool, strict=settings.strict_models),
            _relay(scheduler, client, settings),
            scheduler,
            client,
            Drain(),
            BodyBudget(settings),
            recorder,
            [part.contribute for part in parts],
            feed,
            meter,
            ledger,
            runner,
            tracing,
            store,
        )


def _relay(scheduler: Scheduler, client: Client, settings: Settings) -> Relay:
    kind = Resuming if settings.resume else Relay
    return kind(scheduler, Upstream(client, settings), settings)
