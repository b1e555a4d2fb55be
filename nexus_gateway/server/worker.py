"""One worker of several: serves like a process of its own, and keeps in step with the others.

It takes its orders from the supervisor and from nobody else: a signal that somebody sends to all
processes at once must not count twice. Asked by a signal to go, it asks to be replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nexus_gateway.server import process
from nexus_gateway.server.channel import ControlChannel, WorkerSpec
from nexus_gateway.server.process import unblock_sighup
from nexus_gateway.server.sockets import QUEUE
from nexus_gateway.server.sync import InstanceSync, RecentEvents
from nexus_gateway.telemetry.feed import Feed
from nexus_gateway.telemetry.shared import HANDING_OVER, LISTENERS, REQUESTS_IN_FLIGHT, WorkerState
from nexus_gateway.web.gateway import GATEWAY, Gateway, gateway_of
from nexus_gateway.web.handlers.events import FEED

PUBLISH_EVERY_S = 0.2
# Thousands of instances have much to tell: it takes no more than a twentieth of the time.
PUBLISH_REST = 20
# A caller who keeps a connection busy comes by within that time and is asked to connect anew.
LINGER_S = 2.0
LOOK_EVERY_S = 0.05
# Nobody waits for a worker that was replaced, so its streams have all the time they need.
LONGEST_RETIREMENT_S = 600.0


async def work(app: web.Application, place: WorkerSpec, introduction: Mapping[str, Any]) -> int:
    """Serve an application in the running loop until the supervisor ends it, or is gone.

    Args:
        app: the application.
        place: what the supervisor gave it.
        introduction: what to tell the supervisor once it accepts.

    Returns:
        The exit code: 0.
    """
    line = await ControlChannel.open(socket.socket(fileno=place.control))
    app.on_response_prepare.append(_see_off)
    async with contextlib.AsyncExitStack() as end:
        end.push_async_callback(line.close)
        runner = await end.enter_async_context(process.application_runner(app))
        await Worker(app[GATEWAY], app[FEED], runner, place, line).work(introduction)
    return 0


async def _see_off(request: web.Request, response: web.StreamResponse) -> None:
    """Ask a caller to connect anew, to another worker, when this one goes."""
    if gateway_of(request).drain.leaving.is_set():
        response.headers["Connection"] = "close"
        response.force_close()


class Worker:
    """A worker at work.

    Args:
        gateway: what it serves.
        feed: what its listeners hear.
        runner: serves it; set up, and listening nowhere yet.
        place: what the supervisor gave it.
        line: to the supervisor.
    """

    def __init__(
        self,
        gateway: Gateway,
        feed: Feed,
        runner: web.AppRunner,
        place: WorkerSpec,
        line: ControlChannel,
    ) -> None:
        self._gateway = gateway
        self._feed = feed
        self._drain = gateway.drain
        self._runner = runner
        self._place = place
        self._line = line
        self._names = InstanceSync(gateway.pool.instances, bytes.fromhex(place.salt))
        self._sites: dict[int, list[tuple[socket.socket, web.SockSite]]] = {}
        self._informed = asyncio.Event()
        self._told: dict[str, Any] = {}

    async def work(self, introduction: Mapping[str, Any]) -> None:
        """Serve until told to go."""
        self._on_signals()
        orders = asyncio.create_task(self._obey())
        telling = asyncio.create_task(self._tell())
        try:
            # What is switched off, or parked, is known before the first request.
            await self._informed.wait()
            if not self._drain.leaving.is_set():
                await self._listen([self._place.slot])
                self._line.send("ready", **introduction)
            await self._drain.leaving.wait()
            if not self._drain.begun.is_set():
                await self._retire()
            if self._drain.begun.is_set():
                limit_s = self._gateway.settings.shutdown_timeout_ms / 1000
                await process.drain(self._drain, limit_s)
        finally:
            for task in (orders, telling):
                task.cancel()
            await asyncio.gather(orders, telling, return_exceptions=True)
            self._tell_news(whoever_listens=True)
            self.tell()

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._line.send, "leave")
        for number in (signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)
        unblock_sighup()

    async def _obey(self) -> None:
        """Do as the supervisor says; without one, leave, and leave the port to its successor."""
        async for kind, message in self._line.messages():
            if kind == "share":
                self._heed(message)
            elif kind == "news":
                self._hear_news(RecentEvents.from_json(message))
            elif kind == "listen":
                await self._listen(message["slots"])
            elif kind == "retire":
                self._drain.leaving.set()
            elif kind == "drain":
                self._drain.begin()
        await self._listen([])
        self._drain.begin()
        self._informed.set()

    def _heed(self, message: dict[str, Any]) -> None:
        self._gateway.workers = message.pop("workers")
        shown = message.pop("shown")
        others = WorkerState.from_json(message)
        handed_over = self._hands_over
        self._gateway.others = others
        self._names.heed(others)
        (self._feed.whole.set if shown else self._feed.whole.clear)()
        if self._hands_over and not handed_over:
            self._gateway.decided.set()  # somebody waits for it
        self._informed.set()

    def _hear_news(self, news: RecentEvents) -> None:
        self._feed.merge(news.requests)
        self._names.hear_first_tokens(news.first_tokens_ms)

    @property
    def _hands_over(self) -> bool:
        """Whether somebody listens to the live events, at whichever worker."""
        elsewhere = self._gateway.others.gauges.get(LISTENERS, 0)
        return self._feed.listeners + elsewhere > 0

    async def _tell(self) -> None:
        decided = self._gateway.decided
        pause_s = PUBLISH_EVERY_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await decided.wait()
            decided.clear()
            # A supervisor that is slow hears the latest when it has caught up.
            if self._line.is_clear:
                begun_s = time.thread_time()
                self.tell()
                spent_s = time.thread_time() - begun_s
                pause_s = max(PUBLISH_EVERY_S, spent_s * PUBLISH_REST)

    def _tell_news(self, *, whoever_listens: bool = False) -> None:
        wanted = self._hands_over or whoever_listens
        requests = self._feed.unpublished() if wanted else []
        if news := RecentEvents(requests, self._names.first_tokens_ms()):
            self._line.send("news", **news.as_json())

    def tell(self) -> None:
        """Tell the supervisor what this worker knows, if there is anything new."""
        self._tell_news()
        said = self._names.said_of()
        said.gauges[REQUESTS_IN_FLIGHT] = self._drain.in_flight
        if self._hands_over:
            said.gauges[HANDING_OVER] = 1
        for share in self._gateway.shares:
            share(said)
        told = said.as_json()
        if told != self._told:
            self._told = told
            self._line.send("share", **told)

    async def _listen(self, slots: list[int]) -> None:
        """Accept on the sockets of some slots, and on no others."""
        for slot in self._sites.keys() - set(slots):
            for shared, site in self._sites.pop(slot):
                # A connection that asyncio has accepted and not yet made anything of would be
                # lost with its server: accept no more, let it be made, and only then close.
                asyncio.get_running_loop().remove_reader(shared.fileno())
                await asyncio.sleep(0)
                await site.stop()
        for slot in set(slots) - self._sites.keys():
            self._sites[slot] = []
            for number in self._place.listening[slot]:
                shared = socket.socket(fileno=os.dup(number))
                site = web.SockSite(self._runner, shared, backlog=QUEUE)
                await site.start()
                self._sites[slot].append((shared, site))

    async def _retire(self) -> None:
        """Accept no more; serve those who are here until they are served and gone elsewhere."""
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
