"""GET /v1/events: a snapshot of all instances, then what changes.

Each event is named `snapshot` (all instances; sent once more when one is gone) or `instance` (one
that changed). Ids are `RUN-NUMBER`: with the `Last-Event-ID` of this run a reconnecting listener
gets only what it missed, with any other a snapshot.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import deque
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp_sse import sse_response

from nexus_gateway.handlers.gateway import gateway_of
from nexus_gateway.handlers.view import view
from nexus_gateway.pool import Pool
from nexus_gateway.settings import Settings

EVERY_S = 0.25
REMEMBERED = 1000
_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Event:
    """An event.

    Args:
        number: its place among all of this run.
        kind: snapshot or instance.
        data: what it tells.
    """

    number: int
    kind: str
    data: dict[str, Any]


class Feed:
    """The changes of the instances, numbered and remembered.

    Looks when a listener asks and not by itself: without listeners it costs nothing.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._run = secrets.token_hex(4)
        self._number = 0
        self._seen: dict[str, dict[str, Any]] = {}
        self._events: deque[Event] = deque(maxlen=REMEMBERED)

    def look(self) -> int:
        """Compare the instances with how they were; return the newest change's number."""
        for instance in self._pool.instances:
            now = view(instance)
            now.pop("parkedForMs")  # it runs down by itself; `parkReason` tells when it ends
            if self._seen.get(instance.name) != now:
                self._seen[instance.name] = now
                self._note("instance", now)
        names = {instance.name for instance in self._pool.instances}
        if gone := self._seen.keys() - names:
            for name in gone:
                del self._seen[name]
            self._note("snapshot", self.snapshot())
        return self._number

    def _note(self, kind: str, data: dict[str, Any]) -> None:
        self._number += 1
        self._events.append(Event(self._number, kind, data))

    def since(self, number: int) -> list[Event]:
        """Return the events after a number."""
        return [event for event in self._events if event.number > number]

    def snapshot(self) -> dict[str, Any]:
        """Return all instances as they were last seen."""
        return {"providers": list(self._seen.values())}

    def id_of(self, number: int) -> str:
        """Return the event id of a change."""
        return f"{self._run}-{number}"

    def number_of(self, id: str | None) -> int | None:
        """Return the number behind an event id, or None where it can't be continued from."""
        run, _, number = (id or "").partition("-")
        if run != self._run or not _NUMBER.fullmatch(number):
            return None
        oldest = self._events[0].number if self._events else 1
        return int(number) if oldest - 1 <= int(number) <= self._number else None


FEED = web.AppKey("feed", Feed)


def _keys(settings: Settings) -> list[str]:
    """Return what opens this door."""
    return [secret.reveal() for secret in (settings.admin_token, *settings.gateway_keys)]


async def events(request: web.Request) -> web.StreamResponse:
    """Stream the instances' changes until the caller leaves, or this process, or a key changes."""
    feed = request.config_dict[FEED]
    gateway = gateway_of(request)
    drain, opened_by = gateway.drain, _keys(gateway.settings)
    async with sse_response(request, sep="\n") as response:
        newest = feed.look()
        sent = feed.number_of(request.headers.get("Last-Event-ID"))
        if sent is None:
            sent = newest
            data = json.dumps(feed.snapshot())
            await response.send(data, id=feed.id_of(sent), event="snapshot")
        while not drain.leaving.is_set() and _keys(gateway.settings) == opened_by:
            for event in feed.since(sent):
                sent = event.number
                await response.send(json.dumps(event.data), id=feed.id_of(sent), event=event.kind)
            try:
                async with asyncio.timeout(EVERY_S):
                    await drain.leaving.wait()
            except TimeoutError:
                feed.look()
    return response
