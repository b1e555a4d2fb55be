"""Passes records of ended requests to their observers, in batches, off the answer's path."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from nexus_gateway.proxy.record import Observer, RequestRecord
from nexus_gateway.telemetry import log

logger = logging.getLogger("nexus_gateway")

BATCH_S = 0.1  # a kill -9 loses no more of the log
MAX_BATCH = 32  # observed at once, it holds the loop for some milliseconds
Later = Callable[[float, Callable[[], None]], Any]


class Recorder:
    """Observes records in batches if `later` is set, else at once.

    Attributes:
        observers: each is called with every record, in order; none may wait.
        later: calls a function after so many seconds, such as `loop.call_later`.
    """

    def __init__(self, observers: list[Observer]) -> None:
        self.observers = observers
        self.later: Later | None = None
        self._batch: list[RequestRecord] = []

    def record(self, record: RequestRecord) -> None:
        self._batch.append(record)
        if self.later is None or len(self._batch) >= MAX_BATCH:
            self.flush()
        elif len(self._batch) == 1:
            self.later(BATCH_S, self.flush)

    def flush(self) -> None:
        """Pass on what was recorded so far."""
        records, self._batch = self._batch, []
        for record in records:
            for observe in self.observers:
                try:
                    observe(record)
                except Exception:
                    logger.exception("an observer failed")
        log.flush()

    def close(self) -> None:
        """Pass on what was recorded so far, and from now on each record at once."""
        self.later = None
        self.flush()
