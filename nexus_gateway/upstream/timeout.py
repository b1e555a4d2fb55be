"""A limit on how long an attempt may take: as `asyncio.timeout`, at half its cost."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class TimeLimit:
    """Ends its `with` block with TimeoutError once the time is up.

    `asyncio.timeout` does the same with two coroutines and a state machine, which shows where a
    request has a few hundred microseconds in all.

    Args:
        limit_s: how long the block may take.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._expired = False
        self._over = False
        self._timer = self._loop.call_later(limit_s, self._expire)

    def restart(self) -> None:
        """Count from now on."""
        if not (self._over or self._expired):
            self._timer.cancel()
            self._timer = self._loop.call_later(self._limit_s, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        self._timer.cancel()
        # Whoever else has cancelled the task meanwhile is to have it cancelled.
        ours = self._expired and self._task.uncancel() <= self._cancelling
        if ours and kind is asyncio.CancelledError:
            raise TimeoutError from error
