"""One worker of several: serves like a single process, and shares its state with the others.

Only the supervisor's messages control it, so that a signal sent to all processes at once does not
count twice. SIGTERM makes a worker ask for its replacement; it ignores other signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import os
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nexus_gateway.server import process
from nexus_gateway.server.channel import BEAT_S, TOGETHER_S, VERSION, ControlChannel, WorkerSpec
from nexus_gateway.server.process import unblock_sighup
from nexus_gateway.server.sync import InstanceSync, RecentEvents
from nexus_gateway.telemetry.shared import HANDING_OVER, LISTENERS, REQUESTS_IN_FLIGHT, WorkerState
from nexus_gateway.web.gateway import GATEWAY, gateway_of

STDERR = 2
PUBLISH_EVERY_S = 0.2
# With thousands of instances, publishing takes no more than a twentieth of the time.
PUBLISH_REST = 20
# A client that uses its connection within that time is asked to connect again.
LINGER_S = 2.0
LOOK_EVERY_S = 0.05
# Nothing waits for a replaced worker, so its streams have all the time they need.
LONGEST_RETIREMENT_S = 600.0


async def work(app: web.Application, spec: WorkerSpec, introduction: Mapping[str, Any]) -> int:
    """Serve until the supervisor ends it or is gone; `introduction` is the fields of `ready`."""
    channel = await ControlChannel.open(socket.socket(fileno=spec.control))
    app.on_response_prepare.append(_close_on_retire)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(channel.close)
        runner = await stack.enter_async_context(process.application_runner(app))
        await Worker(app, runner, spec, channel).work(introduction)
    return 0


async def _close_on_retire(request: web.Request, response: web.StreamResponse) -> None:
    """Make the client connect again, to another worker, if this one is leaving."""
    if gateway_of(request).drain.leaving.is_set():
        response.headers["Connection"] = "close"
        response.force_close()


class Worker:
    """A running worker; `runner` is set up and does not listen yet."""

    def __init__(
        self, app: web.Application, runner: web.AppRunner, spec: WorkerSpec, channel: ControlChannel
    ) -> None:
        self._gateway = app[GATEWAY]
        self._feed = self._gateway.feed
        self._drain = self._gateway.drain
        self._runner = runner
        self._spec = spec
        self._channel = channel
        self._sync = InstanceSync(self._gateway.pool.instances, bytes.fromhex(spec.salt))
        self._listeners = [[socket.socket(fileno=n) for n in slot] for slot in spec.listening]
        self._sites: dict[int, list[tuple[socket.socket, web.SockSite]]] = {}
        self._has_state = asyncio.Event()
        self._published: dict[str, Any] = {}

    async def work(self, introduction: Mapping[str, Any]) -> None:
        self._on_signals()
        receiving = asyncio.create_task(self._receive())
        publishing = asyncio.create_task(self._publish_changes())
        beating = asyncio.create_task(self._beat())
        try:
            # Toggles and parks of the others apply to the first request already.
            await self._has_state.wait()
            if not self._drain.leaving.is_set():
                await self._listen([self._spec.slot])
                self._channel.send("ready", version=VERSION, **introduction)
            await self._drain.leaving.wait()
            if not self._drain.begun.is_set():
                await self._retire()
            if self._drain.begun.is_set():
                limit_s = self._gateway.settings.shutdown_timeout_ms / 1000
                await process.drain(self._drain, limit_s)
        finally:
            for task in (tasks := (receiving, publishing, beating)):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._gateway.recorder.flush()
            self._publish_events(with_requests=True)
            self.publish()
            for listener in itertools.chain.from_iterable(self._listeners):
                listener.close()

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._channel.send, "leave")
        for number in (signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)
        unblock_sighup()
        faulthandler.register(signal.SIGUSR1, STDERR)

    async def _receive(self) -> None:
        """Follow the supervisor's messages; without a supervisor, close the port and drain."""
        async for kind, message in self._channel.messages():
            if kind == "share":
                self._apply(message)
            elif kind == "news":
                events = RecentEvents.from_json(message)
                self._feed.merge(events.requests)
                self._sync.merge_first_tokens(events.first_tokens_ms)
            elif kind == "listen":
                await self._listen(message["slots"])
            elif kind == "retire":
                self._drain.leaving.set()
            elif kind == "drain":
                self._drain.begin()
        await self._listen([])
        await asyncio.sleep(TOGETHER_S)  # the other workers stop accepting as well
        self._close_port()
        self._drain.begin()
        self._has_state.set()

    def _close_port(self) -> None:
        """Refuse new connections, which would wait in vain, and let a new gateway have the port.

        `shutdown` ends the listening also for a worker that hangs.
        """
        for listener in itertools.chain.from_iterable(self._listeners):
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    async def _beat(self) -> None:
        while True:
            # What the supervisor has still to read is a sign of life as well.
            if self._channel.is_clear:
                self._channel.send("beat")
            await asyncio.sleep(BEAT_S)

    def _apply(self, message: dict[str, Any]) -> None:
        handed_over = self._hands_over
        others = WorkerState.from_json(message)
        self._gateway.merge(others, message["workers"])
        self._sync.apply(others)
        (self._feed.whole.set if message["shown"] else self._feed.whole.clear)()
        if self._hands_over and not handed_over:
            self._gateway.decided.set()  # a client waits for the requests of all workers
        self._has_state.set()

    @property
    def _hands_over(self) -> bool:
        """Whether a client listens to the live events, at any worker."""
        elsewhere = self._gateway.others.gauges.get(LISTENERS, 0)
        return self._feed.listeners + elsewhere > 0

    async def _publish_changes(self) -> None:
        decided = self._gateway.decided
        pause_s = PUBLISH_EVERY_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await decided.wait()
            decided.clear()
            # A slow supervisor gets the latest state when it has caught up.
            if self._channel.is_clear:
                begun_s = time.thread_time()
                self.publish()
                spent_s = time.thread_time() - begun_s
                pause_s = max(PUBLISH_EVERY_S, spent_s * PUBLISH_REST)

    def publish(self) -> None:
        """Send the supervisor what is new in this worker."""
        self._gateway.recorder.flush()
        self._publish_events(with_requests=self._hands_over)
        state = self._sync.local_state()
        state.gauges[REQUESTS_IN_FLIGHT] = self._drain.in_flight
        if self._hands_over:
            state.gauges[HANDING_OVER] = 1
        for contribute in self._gateway.contributors:
            contribute(state)
        fields = state.as_json()
        if fields != self._published:
            self._published = fields
            self._channel.send("share", **fields)

    def _publish_events(self, *, with_requests: bool) -> None:
        requests = self._feed.unpublished() if with_requests else []
        if events := RecentEvents(requests, self._sync.new_first_tokens_ms()):
            self._channel.send("news", **events.as_json())

    async def _listen(self, slots: list[int]) -> None:
        """Accept on the sockets of these slots, and on no others."""
        for slot in self._sites.keys() - set(slots):
            for listener, site in self._sites.pop(slot):
                # Closing the server would lose a connection that asyncio has accepted and not set
                # up yet: stop accepting, let it be set up, and only then close.
                asyncio.get_running_loop().remove_reader(listener.fileno())
                await asyncio.sleep(0)
                await site.stop()
        for slot in set(slots) - self._sites.keys():
            self._sites[slot] = []
            for held in self._listeners[slot]:
                listener = socket.socket(fileno=os.dup(held.fileno()))
                site = await process.accept(self._runner, listener)
                self._sites[slot].append((listener, site))

    async def _retire(self) -> None:
        """Accept no more; serve open connections until they are idle or closed."""
        await self._listen([])
        loop = asyncio.get_running_loop()
        until_s = loop.time() + LONGEST_RETIREMENT_S
        quiet_until_s = loop.time() + LINGER_S
        while self._runner.server and self._runner.server.connections:
            if self._drain.in_flight:
                quiet_until_s = min(loop.time() + LINGER_S, until_s)
            if loop.time() >= quiet_until_s:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._drain.begun.wait()
                return
        if self._drain.in_flight:
            await process.drain(self._drain, 0)
