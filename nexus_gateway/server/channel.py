"""The control channel between the supervisor and one worker: JSON lines over a socket pair.

    from the supervisor  share    the state of all other workers (`WorkerState`), how many workers
                                  serve, and whether this worker has received all recent requests
                         news     events of the other workers (`RecentEvents`)
                         listen   the slots to accept on: the worker's own and the vacant ones
                         retire   the worker was replaced: accept no more, finish what is running
                         drain    the gateway shuts down
    from the worker      ready    it accepts connections
                         refused  its settings are wrong
                         share    its state
                         news     its events
                         leave    it received a signal and asks to be replaced
                         beat     its event loop runs; once a second

Supervisor and worker may be of different versions: a reload starts workers from the code that is
installed by then. So kinds and keys stay as they are, and unknown ones are ignored. Without a
supervisor a worker shuts down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Self

# The environment variable by which the supervisor passes a `WorkerSpec`.
PLACE = "NEXUS_GATEWAY_WORKER"
VERSION = 1  # of the messages; part of `ready`
LONGEST_MESSAGE = 16 * 1024 * 1024
BEAT_S = 1.0
TOGETHER_S = 0.1  # what concerns all processes reaches each within that time


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    slot: int  # its number, from 0
    control: int  # the file descriptor of its end of the channel
    listening: list[list[int]]  # the file descriptors of the listening sockets, by slot
    host: str  # HOST as the supervisor read it
    port: int
    salt: str  # of the instances' identities (`sync.InstanceSync`), in hex; a secret
    keyed: bool = False  # the gateway has real keys, and so must not fall back to the demo

    @property
    def pseudonym(self) -> str:
        """The name in `Via` that all workers of a supervisor share."""
        return blake2b(b"Via", key=bytes.fromhex(self.salt), digest_size=8).hexdigest()

    def as_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse `as_text`'s result; child processes of the worker inherit no descriptor of it."""
        spec = cls(**json.loads(text))
        for number in (spec.control, *(n for slot in spec.listening for n in slot)):
            os.set_inheritable(number, False)
        return spec

    def refuse(self, problems: tuple[str, ...]) -> None:
        """Report wrong settings, before there is an event loop."""
        with socket.socket(fileno=self.control) as end:
            end.sendall(_encode("refused", {"problems": problems}))


def _encode(kind: str, fields: dict[str, Any]) -> bytes:
    return json.dumps({"kind": kind, **fields}).encode() + b"\n"


class ControlChannel:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        return cls(*await asyncio.open_unix_connection(sock=end, limit=LONGEST_MESSAGE))

    @property
    def is_clear(self) -> bool:
        """Whether everything sent has left the buffer; if not, the other end is slow."""
        return self._writer.transport.get_write_buffer_size() == 0

    def send(self, kind: str, **fields: Any) -> None:
        """Send a message without waiting; it is lost if the other end is gone."""
        if not self._writer.transport.is_closing():
            self._writer.write(_encode(kind, fields))

    async def messages(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield the kind and the fields of each message until the other end is gone."""
        with contextlib.suppress(ConnectionError):
            while (line := await self._reader.readline()).endswith(b"\n"):
                fields: dict[str, Any] = json.loads(line)
                yield fields.pop("kind"), fields

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
