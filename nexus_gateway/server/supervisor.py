"""The supervisor: holds the port, and keeps one worker in each slot.

It serves no requests and loads no plugin. Each worker is a new run of the same command, so that one
that starts later reads `.env` again and finds the plugins that are installed by then.

1. A worker that dies is replaced at once; one that keeps dying early, after growing pauses.
   Meanwhile the others accept on its sockets as well.
2. SIGHUP replaces one worker after the other. The old one stays until the new one accepts. If the
   new one refuses its settings, the old ones stay.
3. SIGTERM or SIGINT drains them all; a second one ends them at once.
4. A worker whose event loop hangs is no longer counted; the others accept on its sockets as well.
   If it goes on hanging, it is killed and replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.errors import ConfigError
from nexus_gateway.server.channel import BEAT_S, PLACE, TOGETHER_S, ControlChannel, WorkerSpec
from nexus_gateway.server.process import FORCED, Terminal, unblock_sighup
from nexus_gateway.server.sync import EventBoard, Hub, RecentEvents
from nexus_gateway.telemetry import stderr
from nexus_gateway.telemetry.shared import WorkerState

logger = logging.getLogger("nexus_gateway")

START_LIMIT_S = 60.0
EARLY_DEATH_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# After SHUTDOWN_TIMEOUT_MS a worker aborts what is left; if it takes longer than this, it hangs.
ABORT_S = 5.0
LAST_MESSAGES_S = 1.0
# Beats that a worker misses before others take its connections, and before it is killed.
HANGS_AFTER = 3
KILLED_AFTER = 10
DIED = 1

# They belong to the port, and so to the supervisor.
FIXED = ("HOST", "PORT", "WEB_CONCURRENCY")

Introduction = dict[str, Any]  # the fields of a worker's `ready` message


class Supervisor:
    """Keeps the workers; `announce` gets the first one's introduction once it accepts."""

    def __init__(self, spawner: WorkerSpawner, announce: Callable[[Introduction], None]) -> None:
        self._spawner = spawner
        self._announce = announce
        self._slots: list[WorkerProcess | None] = [None] * len(spawner.sockets)
        self._locks = [asyncio.Lock() for _ in self._slots]
        self._early_deaths = [0 for _ in self._slots]
        self._workers: set[WorkerProcess] = set()
        self._broker = StateBroker(self._workers, self._slots)
        self._first: Introduction = {}
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._worker_gone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._terminal = Terminal()

    async def run(self) -> int:
        """Serve until a signal ends it; return 0, or the first worker's code if it cannot start.

        Raises ConfigError if the first worker refused its settings, OSError if the system cannot
        start another process.
        """
        self._on_signals()
        # The first starts alone, so that wrong settings are reported once.
        first = await self._start(0)
        if first.introduction is None:
            code = await first.process.wait()
            if first.problems:
                raise ConfigError(list(first.problems))
            return 0 if self._stop.is_set() else max(code, DIED)
        self._place(first)
        self._first = first.introduction
        self._spawner.keyed = self._first["keyed"]
        self._announce(self._first)
        for slot in range(1, len(self._slots)):
            self._begin(self._fill(slot))
        self._begin(self._reload_on_request())
        self._begin(self._watch_beats())
        await self._stop.wait()
        await self._drain()
        return 0

    def _begin(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Signals

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        unblock_sighup()

    def stop(self) -> None:
        """Drain all workers; the second time, end at once."""
        if self._stop.is_set():
            for worker in self._workers:
                worker.kill()
            stderr.flush()
            os._exit(FORCED)
        self._stop.set()
        for worker in self._workers:
            worker.drain()

    def _on_hangup(self) -> None:
        if self._terminal.is_gone:
            self.stop()
        else:
            self.reload()

    def reload(self) -> None:
        self._reload.set()

    async def _drain(self) -> None:
        """Wait until all workers have ended, and kill those that hang."""
        for task in self._tasks:
            task.cancel()
        limits_ms = [w.introduction["shutdown_timeout_ms"] for w in self._workers if w.introduction]
        limit_s = max(limits_ms, default=0) / 1000
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s + ABORT_S):
                await self._all_gone()
        for worker in self._workers:
            logger.error("%s does not end and is killed", worker)
            worker.kill()
        await self._all_gone()

    async def _all_gone(self) -> None:
        while self._workers:
            self._worker_gone.clear()
            await self._worker_gone.wait()

    # Workers

    async def _start(self, slot: int) -> WorkerProcess:
        """Start a worker, and wait until it is ready or has failed."""
        worker = await self._spawner.spawn(slot)
        self._workers.add(worker)
        worker.watching = asyncio.create_task(self._watch(worker))
        self._broker.publish_to(worker)
        if self._stop.is_set():
            worker.drain()
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await worker.settled.wait()
        except TimeoutError:
            worker.kill()
        return worker

    async def _watch(self, worker: WorkerProcess) -> None:
        """Receive a worker's messages until it ends, then fill its slot again."""
        receiving = asyncio.create_task(self._receive(worker))
        code = await worker.process.wait()
        # A child process of the worker may hold its end of the channel open.
        await asyncio.wait([receiving], timeout=LAST_MESSAGES_S)
        receiving.cancel()
        await worker.channel.close()
        self._workers.discard(worker)
        self._broker.remove(worker)
        worker.settled.set()
        self._worker_gone.set()
        if self._slots[worker.slot] is not worker:
            return
        self._slots[worker.slot] = None
        self._assign_sockets()
        if not self._stop.is_set():
            logger.warning("%s ended with %s and is being replaced", worker, code)
            is_early = time.monotonic() - worker.started_s < EARLY_DEATH_S
            deaths = self._early_deaths[worker.slot]
            self._early_deaths[worker.slot] = deaths + 1 if is_early else 0
            self._begin(self._fill(worker.slot))

    async def _receive(self, worker: WorkerProcess) -> None:
        async for kind, message in worker.channel.messages():
            if kind == "beat" or worker.missed is not None:  # workers of older versions do not beat
                self._hear(worker)
            if kind == "share":
                self._broker.merge_state(worker, message)
            elif kind == "news":
                self._broker.merge_events(worker, message)
            elif kind == "ready":
                worker.introduction = message
                worker.settled.set()
            elif kind == "refused":
                worker.problems = tuple(message["problems"])
            elif kind == "leave" and not self._stop.is_set():
                self._begin(self._replace(worker))

    async def _fill(self, slot: int) -> None:
        """Start workers until an empty slot has one."""
        async with self._locks[slot]:
            while self._slots[slot] is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s(self._early_deaths[slot])):
                        await self._reload.wait()  # the cause may have been fixed
                if problem := await self._start_in(slot):
                    self._early_deaths[slot] += 1
                    logger.error("worker %d cannot start: %s", slot + 1, problem)

    async def _start_in(self, slot: int) -> str | None:
        """Start a worker and give it a slot; return the problem if it fails."""
        try:
            worker = await self._start(slot)
        except OSError as error:
            return f"the system cannot start another process ({error.strerror})"
        if worker.introduction is None or worker not in self._workers:
            return "; ".join(worker.problems) or f"{worker} ended before it was ready"
        self._place(worker)
        return None

    def _place(self, worker: WorkerProcess) -> None:
        logger.info("%s is serving", worker)
        old, self._slots[worker.slot] = self._slots[worker.slot], worker
        self._assign_sockets()
        if old is not None:
            old.channel.send("retire")

    def _assign_sockets(self) -> None:
        """Let each worker accept on its own sockets and on those of vacant slots."""
        vacant = [n for n, worker in enumerate(self._slots) if worker is None or worker.hangs]
        for worker in self._slots:
            if worker is not None:
                worker.channel.send("listen", slots=[worker.slot, *vacant])
        self._broker.publish_soon()

    async def _replace(self, worker: WorkerProcess) -> None:
        """Replace a worker that received a signal, unless all processes received it."""
        await asyncio.sleep(TOGETHER_S)
        if self._slots[worker.slot] is worker:
            await self._roll([worker.slot])

    # Beats

    def _hear(self, worker: WorkerProcess) -> None:
        hung = worker.hangs
        worker.missed = 0
        if hung:
            logger.warning("%s runs again", worker)
            self._assign_sockets()

    async def _watch_beats(self) -> None:
        """Count the beats that each worker misses while this process runs itself.

        Thus no worker is to blame if the machine sleeps or all processes are stopped.
        """
        while True:
            begun_s = time.monotonic()
            await asyncio.sleep(BEAT_S)
            ran = time.monotonic() - begun_s < 2 * BEAT_S
            for worker in self._workers if ran else ():
                if worker.missed is not None:
                    worker.missed += 1
                    self._judge(worker, worker.missed)

    def _judge(self, worker: WorkerProcess, missed: int) -> None:
        if missed == HANGS_AFTER + 1:
            logger.error("%s hangs: the others take its new connections", worker)
            self._assign_sockets()
        elif missed == KILLED_AFTER:
            worker.dump_stacks()
        elif missed == KILLED_AFTER + 1:
            logger.error("%s still hangs and is killed", worker)
            worker.kill()

    # Reload

    async def _reload_on_request(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._broker.unpark()
            if await self._roll(range(len(self._slots))):
                logger.info("reloaded: %d workers", len(self._slots))

    async def _roll(self, slots: Iterable[int]) -> bool:
        """Replace workers one by one; stop at the first new one that cannot start."""
        for slot in slots:
            async with self._locks[slot]:
                if problem := await self._start_in(slot):
                    logger.error("reload failed, keeping the old workers: %s", problem)
                    return False
                self._warn_of_fixed(self._slots[slot])
        return True

    def _warn_of_fixed(self, worker: WorkerProcess | None) -> None:
        if worker is None or worker.introduction is None or worker.slot:
            return
        if fixed := [n for n in FIXED if worker.introduction[n] != self._first[n]]:
            logger.warning("%s: changed, but read at the start only", ", ".join(fixed))


def pause_s(early_deaths: int) -> float:
    """Return the pause before a slot's next start: none after one early death."""
    if early_deaths < 2:
        return 0.0
    return min(FIRST_PAUSE_S * 2.0 ** min(early_deaths - 2, 10), LONGEST_PAUSE_S)


@dataclass
class WorkerSpawner:
    command: Sequence[str]
    env: Mapping[str, str]  # without a `WorkerSpec`
    host: str  # HOST as the supervisor read it
    sockets: Sequence[Sequence[socket.socket]]  # the listening sockets of each slot
    keyed: bool = False  # the gateway has real keys; known once the first worker is ready
    _salt: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def port(self) -> int:
        port: int = self.sockets[0][0].getsockname()[1]
        return port

    async def spawn(self, slot: int) -> WorkerProcess:
        """Start a worker for a slot; raises OSError if the system starts no more processes."""
        ours, theirs = socket.socketpair()
        with theirs:
            control, port = theirs.fileno(), self.port
            listening = [[listener.fileno() for listener in sockets] for sockets in self.sockets]
            spec = WorkerSpec(slot, control, listening, self.host, port, self._salt, self.keyed)
            try:
                process = await asyncio.create_subprocess_exec(
                    *self.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**self.env, PLACE: spec.as_text()},
                    pass_fds=[control, *itertools.chain(*listening)],
                    # Ctrl-C in a terminal reaches the supervisor alone, which drains the workers.
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        return WorkerProcess(slot, process, await ControlChannel.open(ours))


@dataclass(eq=False)
class WorkerProcess:
    """A worker as the supervisor sees it: a process and the channel to it."""

    slot: int
    process: asyncio.subprocess.Process
    channel: ControlChannel
    number: int = field(default_factory=itertools.count(1).__next__)  # unique
    introduction: Introduction | None = None  # its `ready` message
    problems: tuple[str, ...] = ()  # in its settings, if it refused to start
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # it is ready or has failed
    published: dict[str, Any] = field(default_factory=dict)  # the state that was last sent to it
    missed: int | None = None  # beats since the last one; None before the first
    watching: asyncio.Task[None] | None = None
    started_s: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"worker {self.slot + 1} (pid {self.process.pid})"

    @property
    def hangs(self) -> bool:
        return self.missed is not None and self.missed > HANGS_AFTER

    def drain(self) -> None:
        self.channel.send("drain")
        if self.introduction is None:
            self._signal(signal.SIGTERM)  # it may not read the channel yet

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def dump_stacks(self) -> None:
        """Let it write the stacks of its threads on stderr, even if its event loop hangs."""
        self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


PUBLISH_AFTER_S = 0.1
# With much state to publish, publishing takes no more than a tenth of the time.
PUBLISH_REST = 10


class StateBroker:
    """Merges the states and events of all workers, and publishes to each those of the others."""

    def __init__(
        self, workers: Collection[WorkerProcess], slots: Sequence[WorkerProcess | None]
    ) -> None:
        self._workers = workers
        self._slots = slots
        self._hub = Hub()
        self._board = EventBoard()
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = PUBLISH_AFTER_S

    def merge_state(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        self._hub.merge(worker.number, WorkerState.from_json(message))
        self.publish_soon()

    def merge_events(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        self._board.add(worker.number, RecentEvents.from_json(message))
        self.publish_soon()

    def remove(self, worker: WorkerProcess) -> None:
        self._hub.remove(worker.number)
        self._board.remove(worker.number)
        self.publish_soon()

    def unpark(self) -> None:
        self._hub.unpark(time.monotonic())
        self.publish_soon()

    def publish_to(self, worker: WorkerProcess) -> None:
        """Send a worker what is new since it was last sent anything."""
        listens = self._hub.has_listeners(worker.number)
        if events := self._board.new_for(worker.number, with_requests=listens):
            worker.channel.send("news", **events.as_json())
        state = {
            **self._hub.state_for(worker.number).as_json(),
            "workers": sum(w is not None and not w.hangs for w in self._slots),
            "shown": listens and self._hub.others_hand_over(worker.number),
        }
        if state != worker.published:
            worker.published = state
            worker.channel.send("share", **state)

    def publish_soon(self) -> None:
        """Publish to all workers, once for everything that happens within a moment."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._pause_s, self._publish_all)

    def _publish_all(self) -> None:
        self._timer = None
        begun_s = time.thread_time()
        for worker in self._workers:
            if worker.channel.is_clear:
                self.publish_to(worker)
            else:  # it is slow: skip to the latest state when it has caught up
                self.publish_soon()
        self._pause_s = max(PUBLISH_AFTER_S, (time.thread_time() - begun_s) * PUBLISH_REST)
