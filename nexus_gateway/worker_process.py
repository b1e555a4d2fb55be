"""A worker as its supervisor sees it: a process, and the line to it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nexus_gateway.control import PLACE, Line, Place


class Nursery:
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
            place = Place(slot, control, self._listening, self.host, self.port, self._salt)
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
        return WorkerProcess(slot, process, await Line.open(ours))


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

    def __init__(self, slot: int, process: asyncio.subprocess.Process, line: Line) -> None:
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
        self.line.say("drain")
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
