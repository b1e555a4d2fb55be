"""GET /v1/events: a snapshot of all instances, then what changes and what ends.

    snapshot   all instances, the last requests, the timelines, the gateway's own figures;
               again, without the latter two, when an instance is removed, in place of
               everything else that is new
    instance   one that changed
    request    one that has ended, with its attempts; no part of its conversation
    gateway    once a second: its own figures, and the timelines' newest buckets

Ids are `RUN-NUMBER`. With a `Last-Event-ID` of this run, a client that reconnects gets only what it
missed; with any other, or if it missed much, a snapshot. `gateway` events have no id.

Events cover all worker processes, whichever answers. The others hand over their requests only while
a client listens: the snapshot waits for that, and their requests arrive a moment later than those
of this process. To order them, use `endedAt`.
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
from nexus_gateway.telemetry.shared import REQUESTS_IN_FLIGHT
from nexus_gateway.web.gateway import Gateway, gateway_of
from nexus_gateway.web.handlers.health import status_of

TICK_S = 1.0
# The other workers take a quarter of a second to hand over their requests; one may hang.
LONGEST_WAIT_S = 1.0


async def events(request: web.Request) -> web.StreamResponse:
    """Stream events until the client leaves, this process leaves, or a key changes."""
    async with sse_response(request, sep="\n") as response:
        await _Listener(request, response).listen()
    return response


def figures(gateway: Gateway, feed: Feed) -> dict[str, Any]:
    """Return the gateway's own figures.

    `since` is when this process began to count the timelines, in Unix ms. `spentUsd` continues when
    a worker is replaced; it is null if no cost is known, and `priced` is the share of the requests
    whose cost is.
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


def _credentials(settings: Settings) -> list[str]:
    return [secret.reveal() for secret in settings.secrets]


class _Listener:
    """One client of the event stream."""

    def __init__(self, request: web.Request, response: EventSourceResponse) -> None:
        self._gateway = gateway_of(request)
        self._feed = self._gateway.feed
        self._response = response
        self._last_id = request.headers.get("Last-Event-ID")
        self._sent = 0
        self._has_timelines = False

    async def listen(self) -> None:
        """Send events as long as this process stays and no credential changes."""
        self._feed.listeners += 1
        self._gateway.decided.set()
        try:
            await self._send_all()
        finally:
            self._feed.listeners -= 1

    async def _send_all(self) -> None:
        leaving = self._gateway.drain.leaving
        credentials = _credentials(self._gateway.settings)
        await self._begin()
        loop = asyncio.get_running_loop()
        tick_s = loop.time() + TICK_S
        while not leaving.is_set() and _credentials(self._gateway.settings) == credentials:
            for number, event, data in self._feed.since(self._sent):
                await self._send(event, data, number)
                self._sent = number
            if loop.time() >= tick_s:
                tick_s += TICK_S
                await self._send("gateway", self._figures())
            try:
                async with asyncio.timeout(EVERY_S):
                    await leaving.wait()
            except TimeoutError:
                self._feed.refresh()

    async def _begin(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_WAIT_S):
                await self._feed.whole.wait()
        self._gateway.recorder.flush()
        newest = self._feed.refresh()
        number = self._feed.number_of(self._last_id)
        if number is not None:
            self._sent = number
            return
        self._sent = newest
        await self._send("snapshot", {**self._feed.snapshot(), **self._figures()}, newest)

    def _figures(self) -> dict[str, Any]:
        """Return the figures, the first time with the complete timelines."""
        buckets = self._feed.buckets(whole=not self._has_timelines)
        self._has_timelines = True
        return {"gateway": figures(self._gateway, self._feed), "timelines": buckets}

    async def _send(self, event: str, data: object, number: int | None = None) -> None:
        id = None if number is None else self._feed.id_of(number)
        await self._response.send(json.dumps(data), id=id, event=event)
