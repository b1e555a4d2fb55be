"""Looks host names up, so that a name whose servers don't answer delays only its own requests.

getaddrinfo blocks, for half a minute or more, and cannot be cancelled. Here each lookup has a
thread of its own (a daemon, as the process must be able to exit), a name has one lookup at a time,
and requests wait for it up to LOOKUP_S. Addresses are used for an hour: after a minute they are
looked up again while the old ones are served, so an outage of the name server is not noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from dataclasses import dataclass

from aiohttp.abc import AbstractResolver, ResolveResult

LOOKUP_S = 2.0
FRESH_S = 60.0
STALE_S = 3600.0
MOST_LOOKUPS = 64  # at once
MOST_NAMES = 1024
_Name = tuple[str, int, socket.AddressFamily]
_Found = list[ResolveResult]


@dataclass(frozen=True, slots=True)
class _Lookup:
    found: asyncio.Future[_Found]
    until_s: float


class Resolver(AbstractResolver):
    """Looks names up for aiohttp's connector."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._known: dict[_Name, tuple[float, _Found]] = {}  # by age, the oldest first
        self._lookups: dict[_Name, _Lookup] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> _Found:
        """Return a name's addresses; OSError if there are none, or not in time."""
        name, now = (host, port, family), self._loop.time()
        since_s, addresses = self._known.get(name, (-STALE_S, []))
        if now - since_s < FRESH_S:
            return addresses
        lookup = self._lookups.get(name) or self._look_up(name)
        if now - since_s < STALE_S:
            return addresses
        if lookup is not None:
            await asyncio.wait([lookup.found], timeout=max(0.0, lookup.until_s - now))
            if lookup.found.done():
                return lookup.found.result()
        raise socket.gaierror(socket.EAI_AGAIN, "the lookup takes too long")

    def _look_up(self, name: _Name) -> _Lookup | None:
        """Begin a lookup; None if too many are stuck already, or if there is no thread for it."""
        if len(self._lookups) >= MOST_LOOKUPS:
            return None
        try:
            threading.Thread(target=self._run, args=(name,), name="resolver", daemon=True).start()
        except RuntimeError:
            return None
        lookup = _Lookup(self._loop.create_future(), self._loop.time() + LOOKUP_S)
        self._lookups[name] = lookup
        return lookup

    def _run(self, name: _Name) -> None:
        found: _Found | OSError
        try:
            found = _addresses(*name)
        except OSError as error:
            found = error
        except UnicodeError as error:  # the name cannot be encoded
            found = socket.gaierror(socket.EAI_NONAME, str(error))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._finish, name, found)

    def _finish(self, name: _Name, found: _Found | OSError) -> None:
        future = self._lookups.pop(name).found
        if isinstance(found, OSError):
            future.set_exception(found)
            future.exception()  # there may be no one left who waits
            return
        future.set_result(found)
        self._known.pop(name, None)
        self._known[name] = self._loop.time(), found
        if len(self._known) > MOST_NAMES:
            del self._known[next(iter(self._known))]

    async def close(self) -> None:
        """Nothing to do: threads that are stuck end with the process."""


def _addresses(host: str, port: int, family: socket.AddressFamily) -> _Found:
    infos = socket.getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return [
        ResolveResult(
            hostname=host, host=str(at[0]), port=port, family=kind, proto=proto, flags=numeric
        )
        for kind, _, proto, _, at in infos
    ]
