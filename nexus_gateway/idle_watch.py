"""Silence noticed: an upstream that says nothing for too long is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from nexus_gateway.stream_errors import BrokenStream, IdleStream


class IdleWatch:
    """Notice silence without a timer for each chunk: one timer that looks back when it fires.

    It looks for as long as its `with` block runs; a stream that breaks in there because of the
    silence leaves it as IdleStream.

    Args:
        limit_s: how long a wait may last.
        expire: called once when a wait has lasted so long.
    """

    def __init__(self, limit_s: float, expire: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit_s = limit_s
        self._expire = expire
        self.waiting_since: float | None = None
        self.expired = False
        self._timer = self._loop.call_later(limit_s, self._look)

    def wait(self) -> None:
        """A wait for the upstream begins; set `waiting_since` to None when it ends."""
        self.waiting_since = self._loop.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self.expired and isinstance(error, BrokenStream):
            raise IdleStream from error

    def _look(self) -> None:
        now = self._loop.time()
        since = self.waiting_since if self.waiting_since is not None else now
        left = since + self._limit_s - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.expired = True
            self._expire()
