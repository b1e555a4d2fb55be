"""The supervisor: holds the port, and keeps one worker in each slot.

It serves nothing itself and loads no plugin. Each worker is a fresh run of the same command, so
that one that is started later reads `.env` anew and finds the plugins that are installed by then.

1. A worker that dies is replaced at once; one that keeps dying young, after growing pauses.
   Meanwhile the others accept on its sockets too.
2. SIGHUP replaces one worker after the other. The old one stays until the new one accepts, and if
   the new one refuses its settings, the old one goes on and so do all others.
3. SIGTERM or SIGINT drains them all; a second one ends them at once.

A worker as its supervisor sees it: a process, and the line to it.

Passes on what each worker knows to all others, never faster than they listen.
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
from dataclasses import replace
from typing import Any

from nexus_gateway.errors import ConfigError
from nexus_gateway.server.channel import PLACE, ControlChannel, WorkerSpec
from nexus_gateway.server.process import Terminal, unblock_sighup
from nexus_gateway.server.sync import EventBoard, Hub, RecentEvents
from nexus_gateway.telemetry.shared import WorkerState

logger = logging.getLogger("nexus_gateway")


class WorkerSpawner:
    """Where workers come from.

    Args:
        command: what to run.
        env: its environment, but for its place.
        host: the address as the owner wrote it.
        sockets: for each slot those that listen.

    Attributes:
        keyed: whether the gateway has real keys; known once the first worker is ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        host: str,
        sockets: Sequence[Sequence[socket.socket]],
    ) -> None:
        self.host = host
        self.port: int = sockets[0][0].getsockname()[1]
        self.slots = len(sockets)
        self._command = command
        self._env = env
        self._listening = [[one.fileno() for one in slot] for slot in sockets]
        self._salt = secrets.token_hex(16)
        self.keyed = False

    async def spawn(self, slot: int) -> WorkerProcess:
        """Start a worker for a slot.

        Raises:
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            control = theirs.fileno()
            place = WorkerSpec(slot, control, self._listening, self.host, self.port, self._salt)
            place = replace(place, keyed=self.keyed)
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**self._env, PLACE: place.as_text()},
                    pass_fds=[control, *(n for one in self._listening for n in one)],
                    # Ctrl-C in a terminal is for the supervisor alone, which tells the workers.
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        return WorkerProcess(slot, process, await ControlChannel.open(ours))


class WorkerProcess:
    """A worker.

    Args:
        slot: whose sockets it accepts on.
        process: it.
        line: to it.

    Attributes:
        number: no other worker ever has it.
        introduction: what it said when it was ready, None before.
        problems: what is wrong with its settings, where it refused to start.
        told: what it was last told of the others.
    """

    _numbers = itertools.count(1)

    def __init__(
        self, slot: int, process: asyncio.subprocess.Process, line: ControlChannel
    ) -> None:
        self.number = next(self._numbers)
        self.slot = slot
        self.process = process
        self.line = line
        self.introduction: dict[str, Any] | None = None
        self.problems: tuple[str, ...] = ()
        self.told: dict[str, Any] = {}
        self._began_s = time.monotonic()
        self._settled = asyncio.Event()

    def __str__(self) -> str:
        return f"worker {self.slot + 1} (pid {self.process.pid})"

    @property
    def lived_s(self) -> float:
        """For how long it is there."""
        return time.monotonic() - self._began_s

    def introduce(self, introduction: dict[str, Any]) -> None:
        """Note that it is ready."""
        self.introduction = introduction
        self._settled.set()

    def settle(self) -> None:
        """Note that it will never be ready, if it is not yet."""
        self._settled.set()

    async def settled(self, limit_s: float) -> bool:
        """Wait until it is ready; False if it ended before, or took too long and was ended."""
        try:
            async with asyncio.timeout(limit_s):
                await self._settled.wait()
        except TimeoutError:
            self.kill()
        return self.introduction is not None

    def drain(self) -> None:
        """Tell it to end as the gateway does."""
        self.line.send("drain")
        if self.introduction is None:
            self._signal("terminate")  # it may not listen to the line yet

    def kill(self) -> None:
        """End it at once."""
        self._signal("kill")

    def _signal(self, how: str) -> None:
        try:
            getattr(self.process, how)()
        except ProcessLookupError:
            pass


PUBLISH_AFTER_S = 0.1
# Where there is much to tell, it takes no more than a tenth of the time.
PUBLISH_REST = 10


class StateBroker:
    """The hub and the board, with the lines to the workers.

    Args:
        workers: those that live.
        present: tells how many of them serve.
    """

    def __init__(self, workers: Collection[WorkerProcess], present: Callable[[], int]) -> None:
        self._workers = workers
        self._present = present
        self._hub = Hub()
        self._board = EventBoard()
        self._telling: asyncio.TimerHandle | None = None
        self._pause_s = PUBLISH_AFTER_S

    def hear(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        """Note what a worker knows."""
        self._hub.hear(worker.number, WorkerState.from_json(message))
        self.tell_soon()

    def hear_news(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        """Note what is new with a worker."""
        self._board.hear(worker.number, RecentEvents.from_json(message))
        self.tell_soon()

    def forget(self, worker: WorkerProcess) -> None:
        """Note that a worker is gone."""
        self._hub.forget(worker.number)
        self._board.forget(worker.number)
        self.tell_soon()

    def free_bad_keys(self) -> None:
        """Give every key that was refused another chance."""
        self._hub.free_bad_keys(time.monotonic())
        self.tell_soon()

    def tell(self, worker: WorkerProcess) -> None:
        """Tell a worker what all others know, if there is anything new."""
        listens = self._hub.listens(worker.number)
        if news := self._board.tell(worker.number, listens=listens):
            worker.line.send("news", **news.as_json())
        shown = listens and self._hub.others_hand_over(worker.number)
        more = {"workers": self._present(), "shown": shown}
        told = {**self._hub.tell(worker.number).as_json(), **more}
        if told != worker.told:
            worker.told = told
            worker.line.send("share", **told)

    def tell_soon(self) -> None:
        """Tell all workers, once for all that happens within a moment."""
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(self._pause_s, self._tell_all)

    def _tell_all(self) -> None:
        self._telling = None
        begun_s = time.thread_time()
        for worker in self._workers:
            if worker.line.is_clear:
                self.tell(worker)
            else:  # it is slow, and hears the latest when it has caught up
                self.tell_soon()
        self._pause_s = max(PUBLISH_AFTER_S, (time.thread_time() - begun_s) * PUBLISH_REST)


START_LIMIT_S = 60.0
YOUNG_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
TOGETHER_S = 0.1  # signals to all processes arrive within that time
# After SHUTDOWN_TIMEOUT_MS a worker says its goodbyes; if it takes longer than this, it hangs.
GOODBYES_S = 5.0
LAST_WORDS_S = 1.0
DIED = 1
FORCED = 130

# What holds for the port, and so for as long as the supervisor runs.
FIXED = ("HOST", "PORT", "WEB_CONCURRENCY")

Introduction = dict[str, Any]


class Supervisor:
    """Keeps the workers.

    Args:
        nursery: where workers come from.
        announce: told what the first one said, once it accepts.
    """

    def __init__(self, nursery: WorkerSpawner, announce: Callable[[Introduction], None]) -> None:
        self._nursery = nursery
        self._announce = announce
        self._slots: list[WorkerProcess | None] = [None] * nursery.slots
        self._locks = [asyncio.Lock() for _ in self._slots]
        self._young_deaths = [0 for _ in self._slots]
        self._workers: set[WorkerProcess] = set()
        self._switchboard = StateBroker(self._workers, self._present)
        self._first: Introduction = {}
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._empty = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: set[asyncio.Task[None]] = set()
        self._terminal = Terminal()

    async def run(self) -> int:
        """Serve until a signal ends it.

        Returns:
            The exit code: 0 after a drain, else that of the first worker when it cannot start.

        Raises:
            ConfigError: the first worker refused its settings.
            OSError: there is no room for a worker.
        """
        self._on_signals()
        # Alone: what is wrong with the settings is told once.
        first = await self._start(0)
        if first.introduction is None:
            return await self._no_start(first)
        self._place(first)
        self._first = first.introduction
        self._nursery.keyed = self._first["keyed"]
        self._announce(self._first)
        jobs = [self._fill(slot) for slot in range(1, len(self._slots))]
        for job in [*jobs, self._reload_when_told()]:
            self._do(job)
        await self._stop.wait()
        await self._drain()
        return 0

    async def _no_start(self, first: WorkerProcess) -> int:
        code = await first.process.wait()
        if first.problems:
            raise ConfigError(list(first.problems))
        return 0 if self._stop.is_set() else max(code, DIED)

    def _present(self) -> int:
        return sum(worker is not None for worker in self._slots)

    def _do(self, job: Coroutine[Any, Any, None]) -> None:
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
            logging.shutdown()
            os._exit(FORCED)
        self._stop.set()
        for worker in self._workers:
            worker.drain()

    def _on_hangup(self) -> None:
        """Reload; but where the terminal itself hung up, stop."""
        if self._terminal.is_gone:
            self.stop()
        else:
            self.reload()

    def reload(self) -> None:
        """Replace all workers, one by one."""
        self._reload.set()

    async def _drain(self) -> None:
        """Wait until all workers have ended, and end those that hang."""
        for task in self._tasks:
            task.cancel()
        introductions = [w.introduction for w in self._workers if w.introduction]
        limit_s = max([i["shutdown_timeout_ms"] / 1000 for i in introductions], default=0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s + GOODBYES_S):
                await self._all_gone()
        for worker in self._workers:
            logger.error("%s hangs and is killed", worker)
            worker.kill()
        await self._all_gone()

    async def _all_gone(self) -> None:
        while self._workers:
            self._empty.clear()
            await self._empty.wait()

    # Workers

    async def _start(self, slot: int) -> WorkerProcess:
        """Start a worker, and wait until it is ready or known not to become so."""
        worker = await self._nursery.spawn(slot)
        self._workers.add(worker)
        watch = asyncio.create_task(self._watch(worker))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        self._switchboard.tell(worker)
        if self._stop.is_set():
            worker.drain()
        await worker.settled(START_LIMIT_S)
        return worker

    async def _watch(self, worker: WorkerProcess) -> None:
        """Hear a worker as long as it lives, then see to its slot."""
        hearing = asyncio.create_task(self._hear(worker))
        code = await worker.process.wait()
        # A process that the worker forked may hold its end of the line open.
        await asyncio.wait([hearing], timeout=LAST_WORDS_S)
        hearing.cancel()
        await worker.line.close()
        self._workers.discard(worker)
        self._switchboard.forget(worker)
        worker.settle()
        self._empty.set()
        if self._slots[worker.slot] is worker:
            self._slots[worker.slot] = None
            self._tell_slots()
            if not self._stop.is_set():
                logger.warning("%s ended with %s; another takes its place", worker, code)
                young = worker.lived_s < YOUNG_S
                self._young_deaths[worker.slot] = (
                    self._young_deaths[worker.slot] + 1 if young else 0
                )
                self._do(self._fill(worker.slot))

    async def _put(self, slot: int) -> str | None:
        """Start a worker in the place of the one that is there; say why not, if it fails."""
        try:
            worker = await self._start(slot)
        except OSError as error:
            return f"there is no room for another process ({error.strerror})"
        if worker.introduction is None or worker not in self._workers:
            return "; ".join(worker.problems) or f"{worker} ended before it was ready"
        self._place(worker)
        return None

    def _place(self, worker: WorkerProcess) -> None:
        logger.info("%s serves", worker)
        old, self._slots[worker.slot] = self._slots[worker.slot], worker
        self._tell_slots()
        if old is not None:
            old.line.send("retire")

    async def _fill(self, slot: int) -> None:
        """Start workers until an empty slot has one."""
        async with self._locks[slot]:
            while self._slots[slot] is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s(self._young_deaths[slot])):
                        await self._reload.wait()  # what was wrong may be mended by now
                if fault := await self._put(slot):
                    self._young_deaths[slot] += 1
                    logger.error("worker %d cannot start: %s", slot + 1, fault)

    async def _reload_when_told(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._switchboard.free_bad_keys()
            if await self._roll(range(len(self._slots))):
                logger.info("reloaded: %d workers", len(self._slots))

    async def _roll(self, slots: Iterable[int]) -> bool:
        """Replace workers one by one; stop at the first new one that cannot start."""
        for slot in slots:
            async with self._locks[slot]:
                if fault := await self._put(slot):
                    logger.error("reload given up, the old workers go on: %s", fault)
                    return False
                self._warn_of_what_stays(self._slots[slot])
        return True

    def _warn_of_what_stays(self, worker: WorkerProcess | None) -> None:
        if worker is None or worker.introduction is None or worker.slot:
            return
        stays = [n for n in FIXED if worker.introduction[n] != self._first[n]]
        if stays:
            logger.warning("%s: changed, but read at the start only", ", ".join(stays))

    # What they say, and what they are told

    async def _hear(self, worker: WorkerProcess) -> None:
        async for kind, message in worker.line.messages():
            if kind == "share":
                self._switchboard.hear(worker, message)
            elif kind == "news":
                self._switchboard.hear_news(worker, message)
            elif kind == "ready":
                worker.introduce(message)
            elif kind == "refused":
                worker.problems = tuple(message["problems"])
            elif kind == "leave" and not self._stop.is_set():
                self._do(self._replace(worker))

    async def _replace(self, worker: WorkerProcess) -> None:
        """Replace a worker that was sent a signal of its own, unless all of them were."""
        await asyncio.sleep(TOGETHER_S)
        if self._slots[worker.slot] is worker:
            await self._roll([worker.slot])

    def _tell_slots(self) -> None:
        """Let those who are there accept for those who are not."""
        vacant = [slot for slot, worker in enumerate(self._slots) if worker is None]
        for worker in self._slots:
            if worker is not None:
                worker.line.send("listen", slots=[worker.slot, *vacant])
        self._switchboard.tell_soon()


def pause_s(young_deaths: int) -> float:
    """Return how long to wait before a slot's next start: not at all after one early death."""
    if young_deaths < 2:
        return 0.0
    return min(FIRST_PAUSE_S * 2.0 ** min(young_deaths - 2, 10), LONGEST_PAUSE_S)
