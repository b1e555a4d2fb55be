"""Writes the ledger: requests that have ended wait in a queue, and a thread of its own writes them.

Nothing that is wrong with the file ever reaches a request. What can't be written waits, up to a
number; what comes beyond that is dropped, counted, and said on the log. Where the file can't be
used from the start, none is kept, and that is said there as well, and to who asks what was used.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.telemetry.pricing import Prices, Spent, has_cost, spent_on
from nexus_gateway.telemetry.shared import WorkerState

if TYPE_CHECKING:
    from nexus_gateway.telemetry.ledger import LedgerFile

logger = logging.getLogger("nexus_gateway")

Row = tuple[object, ...]


def row_of(record: RequestRecord, cost_usd: float | None) -> Row:
    """Make a row.

    Args:
        record: what became of a request.
        cost_usd: what it cost, None when unknown.
    """
    tokens = record.tokens
    return (
        record.ended_s,
        record.id,
        record.caller,
        record.endpoint,
        None if record.asked_model is None else _storable(record.asked_model),
        record.stream,
        record.instance,
        record.provider,
        _storable(record.model),
        tokens.prompt,
        tokens.cached,
        tokens.completion,
        tokens.reasoning,
        cost_usd,
        record.first_ms,
        record.total_ms,
        len(record.attempts),
        record.status,
        record.outcome,
    )


def _storable(text: str) -> str:
    """Return a caller's text as a database takes it: JSON can hold half a character."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


# How long what has ended waits for more of its kind.
GATHER_S = 0.5
RETRY_S = 1.0
MOST_WAITING = 10_000
BATCH = 500
SAY_EVERY_S = 60.0
SPENT_USD, PRICED, UNPRICED = "spent_usd", "spent_on", "spent_on_unknown"
# A shutdown waits no longer for the last rows.
CLOSE_S = 1.0


class LedgerWriter:
    """Writes a ledger until it is closed.

    Args:
        path: the file.

    Attributes:
        is_refused: whether the file can't be used, so that no ledger is kept.
    """

    def __init__(self, path: str) -> None:
        self.is_refused = False
        self._path = path
        self._limit = MOST_WAITING
        self._queue: deque[RequestRecord] = deque()
        self._rows: list[Row] = []
        # One counter for each thread that counts.
        self._overflow = 0  # what never came to wait
        self._lost = 0  # what could not be noted
        self._file: LedgerFile | None = None
        self._prices = Prices()
        self._spent_usd = 0.0
        self._priced = self._unpriced = 0
        self._came = threading.Event()
        self._closing = threading.Event()
        self._told = 0  # of those dropped
        self._told_before = 0  # it began to fail
        self._quiet_until_s = 0.0
        self._has_begun = self._is_failing = False
        # A daemon: a file that hangs must not keep the process.
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def observe(self, record: RequestRecord) -> None:
        """Take note of a request that has ended (a `record.Observer`)."""
        if len(self._queue) >= self._limit:
            self._overflow += 1
            return
        self._queue.append(record)
        if not self._came.is_set():
            self._came.set()

    @property
    def waiting(self) -> int:
        """How many are not written yet."""
        return len(self._rows) + len(self._queue)

    @property
    def _dropped(self) -> int:
        return self._overflow + self._lost

    def share(self, said: WorkerState) -> None:
        """Add what requests have cost to what this process tells the others."""
        said.counts[SPENT_USD] = self._spent_usd
        said.counts[PRICED] = self._priced
        # Nobody asked what these cost; what was lost later stands where it belongs.
        said.counts[UNPRICED] = self._unpriced + self._overflow

    def spent(self, elsewhere: Mapping[str, float]) -> Spent:
        """Return what requests have cost since it began.

        Args:
            elsewhere: what the other processes told by `share`.
        """
        if self.is_refused:
            return Spent(None, None)
        said = WorkerState()
        self.share(said)
        numbers = [said.counts[n] + elsewhere.get(n, 0) for n in (SPENT_USD, PRICED, UNPRICED)]
        return spent_on(*numbers, may_know=self._prices.is_installed)

    def close(self) -> None:
        """Write what is left, if that is a matter of a moment; blocks for at most CLOSE_S."""
        self._closing.set()
        self._came.set()
        self._thread.join(CLOSE_S)
        lost = self.waiting + self._dropped
        if lost and not self.is_refused:
            logger.warning("the ledger lacks %d requests: they could not be written", lost)

    def _run(self) -> None:
        try:
            from nexus_gateway.telemetry import ledger  # noqa: F401 - SQLite is loaded in this thread
        except ImportError as error:
            self._refuse(error)
            return
        self._write()  # opens the file, so that what is wrong with it is said at once
        while not self.is_refused:
            self._came.wait()
            self._closing.wait(GATHER_S)
            self._came.clear()
            is_last = self._closing.is_set()
            is_written = self._write()
            if is_last:
                break
            if not is_written:
                self._closing.wait(RETRY_S)
                self._came.set()
        if self._file is not None:
            self._file.close()

    def _write(self) -> bool:
        """Write all that waits; say what is wrong where that is not possible."""
        from nexus_gateway.telemetry.ledger import is_storage_error

        try:
            self._open()
            while self._rows or self._queue:
                self._gather()
                assert self._file is not None
                self._file.write(self._rows)
                self._rows = []
        except Exception as error:  # whatever it is, requests go on
            if not is_storage_error(error):
                self._lost += len(self._rows)
                self._rows = []
            self._say(error)
            return False
        if self._is_failing:
            self._say_mended()
        elif self._dropped > self._told:
            self._warn("requests end faster than they can be noted")
        return True

    def _open(self) -> None:
        from nexus_gateway.telemetry import ledger

        if self._file is not None and self._file.is_gone:
            logger.warning("the ledger %s was moved or removed; a new one is begun", self._path)
            self._file.close()
            self._file = None
        if self._file is None:
            try:
                self._file = ledger.LedgerFile(self._path)
            except Exception as error:
                self.is_refused = not (self._has_begun or ledger.is_transient(error))
                raise
            self._has_begun = True

    def _gather(self) -> None:
        """Make rows of what waits, as many as are written at a time."""
        while self._queue and len(self._rows) < BATCH:
            record = self._queue.popleft()
            try:
                self._rows.append(row_of(record, self._cost_usd(record)))
            except Exception as error:  # it costs no other its row
                self._lost += 1
                self._say(error)

    def _cost_usd(self, record: RequestRecord) -> float | None:
        """Return what a request cost, None where nobody knows; it counts as spent either way."""
        cost_usd = None
        try:
            # Who is about to go has no time to read a price list.
            if self._prices.is_loaded or not self._closing.is_set():
                cost_usd = self._prices.cost_usd(record)
        finally:
            self._spent_usd += cost_usd or 0.0
            self._priced += cost_usd is not None
            self._unpriced += cost_usd is None and has_cost(record)
        return cost_usd

    def _refuse(self, error: Exception) -> None:
        """Keep no ledger, and say so."""
        self.is_refused = True
        self._limit = 0
        self._queue.clear()
        logger.warning(
            "no ledger is kept: %s (%s); set LEDGER to another file, or to off",
            self._path,
            _reason(error),
        )

    def _say(self, error: Exception) -> None:
        if self.is_refused:
            self._refuse(error)
            return
        if not self._is_failing:
            self._is_failing, self._told_before = True, self._told
        self._warn(f"it cannot be written just now ({_reason(error)})")

    def _say_mended(self) -> None:
        """Say that it is written again, and what it lacks for ever."""
        self._is_failing, self._told = False, self._dropped
        if lost := self._told - self._told_before:
            logger.warning("the ledger is written again; %d requests are lost", lost)
        else:
            logger.info("the ledger is written again")

    def _warn(self, fault: str) -> None:
        """Say what is wrong with the ledger, now and then."""
        now_s = time.monotonic()
        if now_s < self._quiet_until_s:
            return
        self._quiet_until_s = now_s + SAY_EVERY_S
        self._told = self._dropped
        logger.warning(
            "the ledger is behind: %s; %d requests wait, %d are lost",
            fault,
            self.waiting,
            self._told,
        )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
