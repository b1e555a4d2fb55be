"""The line between the supervisor and one worker: JSON, a message a line, over a socket pair.

    supervisor says   share   what all others know (`shared_state`); how many workers serve, and
                              whether all there was to show was told as news
                      news    what is new with the others (`news`)
                      listen  on whose sockets to accept: its own, and those of absent workers
                      retire  somebody takes your place: accept no more, end what you have
                      drain   the gateway ends
    worker says       ready   it accepts
                      refused its settings are wrong
                      share   what it knows
                      news    what is new with it
                      leave   it was asked by a signal to go

When the other end is gone the line ends; a worker then leaves as well.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any, Self

# Names a worker's place; set by the supervisor for its workers alone.
PLACE = "NEXUS_GATEWAY_WORKER"
LONGEST_MESSAGE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is born with.

    Args:
        slot: its number, from 0.
        control: the descriptor of its end of the line.
        listening: for each slot the descriptors of its sockets.
        host: as the supervisor was told.
        port: where the sockets listen.
        salt: see `shared_state.Names`, in hex.
        keyed: whether the gateway has real keys, and so must not begin to serve the demo alone.
    """

    slot: int
    control: int
    listening: list[list[int]]
    host: str
    port: int
    salt: str
    keyed: bool = False

    def as_text(self) -> str:
        """Write it for the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read it from the environment; no child of the worker inherits what it names."""
        place = cls(**json.loads(text))
        for number in (place.control, *(n for slot in place.listening for n in slot)):
            os.set_inheritable(number, False)
        return place

    def refuse(self, problems: tuple[str, ...]) -> None:
        """Say that the settings are wrong, before there is a loop."""
        with socket.socket(fileno=self.control) as end:
            end.sendall(_line("refused", {"problems": problems}))


def _line(kind: str, more: dict[str, Any]) -> bytes:
    return json.dumps({"kind": kind, **more}).encode() + b"\n"


class ControlChannel:
    """One end of the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Make one of an end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=LONGEST_MESSAGE))

    @property
    def is_clear(self) -> bool:
        """Whether all that was said has gone out; if not, the other end is slow."""
        return self._writer.transport.get_write_buffer_size() == 0

    def send(self, kind: str, **more: Any) -> None:
        """Say something; never waits, and is lost when the other end is gone."""
        if not self._writer.transport.is_closing():
            self._writer.write(_line(kind, more))

    async def messages(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Give what the other end says, by kind, until it is gone."""
        try:
            while (line := await self._reader.readline()).endswith(b"\n"):
                found: dict[str, Any] = json.loads(line)
                yield found.pop("kind"), found
        except ConnectionError:
            pass

    async def close(self) -> None:
        """Send what was said, and close."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass
