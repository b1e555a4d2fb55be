"""Passes on what each worker knows to all others, never faster than they listen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any

from nexus_gateway.news import Board, News
from nexus_gateway.shared_state import Hub, Shared
from nexus_gateway.worker_process import WorkerProcess

TELL_AFTER_S = 0.1
# Where there is much to tell, it takes no more than a tenth of the time.
REST_AFTER_TELLING = 10


class Switchboard:
    """The hub and the board, with the lines to the workers.

    Args:
        workers: those that live.
        present: tells how many of them serve.
    """

    def __init__(self, workers: Collection[WorkerProcess], present: Callable[[], int]) -> None:
        self._workers = workers
        self._present = present
        self._hub = Hub()
        self._board = Board()
        self._telling: asyncio.TimerHandle | None = None
        self._pause_s = TELL_AFTER_S

    def hear(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        """Note what a worker knows."""
        self._hub.hear(worker.number, Shared.from_json(message))
        self.tell_soon()

    def hear_news(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        """Note what is new with a worker."""
        self._board.hear(worker.number, News.from_json(message))
        self.tell_soon()

    def forget(self, worker: WorkerProcess) -> None:
        """Note that a worker is gone."""
        self._hub.forget(worker.number)
        self._board.forget(worker.number)
        self.tell_soon()

    def free_bad_keys(self) -> None:
        """Give every key that was refused another chance."""
        self._hub.free_bad_keys(time.monotonic())
        self.tell_soon()

    def tell(self, worker: WorkerProcess) -> None:
        """Tell a worker what all others know, if there is anything new."""
        listens = self._hub.listens(worker.number)
        if news := self._board.tell(worker.number, listens=listens):
            worker.line.say("news", **news.as_json())
        shown = listens and self._hub.others_hand_over(worker.number)
        more = {"workers": self._present(), "shown": shown}
        told = {**self._hub.tell(worker.number).as_json(), **more}
        if told != worker.told:
            worker.told = told
            worker.line.say("share", **told)

    def tell_soon(self) -> None:
        """Tell all workers, once for all that happens within a moment."""
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(self._pause_s, self._tell_all)

    def _tell_all(self) -> None:
        self._telling = None
        begun_s = time.thread_time()
        for worker in self._workers:
            if worker.line.is_clear:
                self.tell(worker)
            else:  # it is slow, and hears the latest when it has caught up
                self.tell_soon()
        self._pause_s = max(TELL_AFTER_S, (time.thread_time() - begun_s) * REST_AFTER_TELLING)
