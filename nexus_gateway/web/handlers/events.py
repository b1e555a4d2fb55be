"""GET /v1/events: a snapshot of all instances, then what changes and what ends.

    snapshot   all instances, the last requests, the timelines, the gateway's own figures;
               once more, without the latter two, when an instance is gone, in place of
               whatever else was new
    instance   one that changed
    request    one that has ended, with its attempts; never a word of it
    gateway    once a second: its own figures, and the timelines' newest buckets

Ids are `RUN-NUMBER`: with the `Last-Event-ID` of this run a reconnecting listener gets only what
it missed, with any other, or where that is much, a snapshot. `gateway` events have none.

All of it is of all worker processes, whichever answers. The others hand over their requests only
while somebody listens: the snapshot waits for that, and a request of theirs is told a moment later
than one that ended here. Who wants them in order has `endedAt`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response

from nexus_gateway import __version__
from nexus_gateway.settings import Settings
from nexus_gateway.telemetry.feed import EVERY_S, Feed
from nexus_gateway.telemetry.pricing import Spent
from nexus_gateway.telemetry.shared import LISTENERS, REQUESTS_IN_FLIGHT, WorkerState
from nexus_gateway.web.gateway import Gateway, gateway_of
from nexus_gateway.web.handlers.health import status_of

TICK_S = 1.0
# The other workers take a quarter of a second to hand over their requests; one may hang.
LONGEST_WAIT_S = 1.0
FEED = web.AppKey("feed", Feed)


def feed_of(gateway: Gateway) -> Feed:
    """Make the feed of a gateway, told of its requests and in step with the other workers."""
    feed = Feed(gateway.pool)
    alone = gateway.others

    def share(said: WorkerState) -> None:
        if feed.listeners:
            said.gauges[LISTENERS] = feed.listeners
        feed.timelines.publish(said.counts)
        if gateway.others is not alone:
            names = [instance.name for instance in gateway.pool.instances]
            feed.timelines.merge(gateway.others.counts, names, feed.wall())

    gateway.observers.append(feed.observe)
    gateway.shares.append(share)
    return feed


async def events(request: web.Request) -> web.StreamResponse:
    """Stream what changes until the caller leaves, or this process, or a key changes."""
    async with sse_response(request, sep="\n") as response:
        await _Listener(request, response).listen()
    return response


def figures(gateway: Gateway, feed: Feed) -> dict[str, Any]:
    """Return the gateway's own figures.

    `since` is when this process began to remember what the timelines tell, in Unix ms. What was
    spent counts on where a worker is replaced; it is null where nothing of it is known, and
    `priced` is the share of the requests whose cost is.
    """
    others, ledger = gateway.others, gateway.ledger
    elsewhere = int(others.gauges.get(REQUESTS_IN_FLIGHT, 0))
    spent = Spent(None, None) if ledger is None else ledger.spent(others.counts)
    draining = gateway.drain.begun.is_set()
    return {
        "version": __version__,
        "status": "draining" if draining else status_of(gateway.pool.instances),
        "at": round(feed.wall() * 1000),
        "since": round(feed.since_s * 1000),
        "workers": gateway.workers,
        "inFlight": gateway.drain.in_flight + elsewhere,
        "requestsPerSecond": round(feed.rate(), 1),
        "spentUsd": None if spent.usd is None else round(spent.usd, 6),
        "priced": None if spent.priced is None else round(spent.priced, 4),
        "policies": list(gateway.scheduler.policies),
    }


def _keys(settings: Settings) -> list[str]:
    """Return what opens this door."""
    return [secret.reveal() for secret in settings.secrets]


class _Listener:
    """One who listens.

    Args:
        request: its own.
        response: where it hears.
    """

    def __init__(self, request: web.Request, response: EventSourceResponse) -> None:
        self._gateway = gateway_of(request)
        self._feed = request.config_dict[FEED]
        self._response = response
        self._last_id = request.headers.get("Last-Event-ID")
        self._sent = 0
        self._whole = False

    async def listen(self) -> None:
        """Tell it what happens, as long as this process stays, and what opened the door."""
        self._feed.listeners += 1
        self._gateway.decided.set()
        try:
            await self._tell_all()
        finally:
            self._feed.listeners -= 1

    async def _tell_all(self) -> None:
        leaving = self._gateway.drain.leaving
        opened_by = _keys(self._gateway.settings)
        await self._begin()
        loop = asyncio.get_running_loop()
        tick_s = loop.time() + TICK_S
        while not leaving.is_set() and _keys(self._gateway.settings) == opened_by:
            await self._catch_up()
            if loop.time() >= tick_s:
                tick_s += TICK_S
                await self._tick()
            try:
                async with asyncio.timeout(EVERY_S):
                    await leaving.wait()
            except TimeoutError:
                self._feed.look()

    async def _begin(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_WAIT_S):
                await self._feed.whole.wait()
        newest = self._feed.look()
        number = self._feed.number_of(self._last_id)
        if number is not None:
            self._sent = number
            return
        self._sent = newest
        data = {**self._feed.snapshot(), **self._figures()}
        await self._say("snapshot", data, newest)

    async def _catch_up(self) -> None:
        for number, event, data in self._feed.since(self._sent):
            await self._say(event, data, number)
            self._sent = number

    async def _tick(self) -> None:
        await self._say("gateway", self._figures())

    def _figures(self) -> dict[str, Any]:
        """Return the figures; with the whole timelines the first time."""
        buckets = self._feed.buckets(whole=not self._whole)
        self._whole = True
        return {"gateway": figures(self._gateway, self._feed), "timelines": buckets}

    async def _say(self, event: str, data: object, number: int | None = None) -> None:
        id = None if number is None else self._feed.id_of(number)
        await self._response.send(json.dumps(data), id=id, event=event)
