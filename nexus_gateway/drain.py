"""The time between SIGTERM and exit: nothing new begins, what runs may end.

Every request in flight is tracked. When the time is up, what is left is cancelled with
`expired` set, by which its handler knows to say goodbye instead of just stopping.

A worker process that is replaced leaves without a drain: it answers whoever still comes by, and
asks them to connect anew.
"""

from __future__ import annotations

import asyncio


class Drain:
    """Track requests in flight, and wait for their end.

    Attributes:
        begun: nothing new is accepted.
        leaving: this process goes, with or without a drain.
        expired: the time is up.
    """

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.leaving = asyncio.Event()
        self.expired = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """How many requests are being served."""
        return len(self._tasks)

    def begin(self) -> None:
        """Accept nothing new from now on."""
        self.begun.set()
        self.leaving.set()

    def __enter__(self) -> None:
        """Count the current task as a request in flight, until the `with` block ends."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._idle.clear()

    def __exit__(self, *error: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def wait(self, limit_s: float) -> bool:
        """Wait until no request is in flight; False when the time was not enough."""
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def expire(self) -> None:
        """The time is up: cancel what is left."""
        self.expired = True
        for task in list(self._tasks):
            task.cancel()
