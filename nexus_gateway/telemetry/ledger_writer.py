"""Writes the ledger: requests that have ended wait in a queue for a thread that writes them.

No fault of the file ever reaches a request. Rows that cannot be written wait, up to a limit; beyond
it they are dropped, counted and logged. If the file is unusable from the start, no ledger is kept;
the log and `GET /v1/usage` report that.
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

# How long a request that has ended waits for others to be written with it.
GATHER_S = 0.5
RETRY_S = 1.0
MOST_WAITING = 10_000
BATCH = 500
LOG_EVERY_S = 60.0
# How long a shutdown waits for the last rows.
CLOSE_S = 1.0
SPENT_USD, PRICED, UNPRICED = "spent_usd", "spent_on", "spent_on_unknown"


def row_of(record: RequestRecord, cost_usd: float | None, saved_usd: float | None = None) -> Row:
    """Return the columns of `ledger.SCHEMA`, in their order."""
    r, tokens = record, record.tokens
    asked_model = None if r.asked_model is None else _storable(r.asked_model)
    request = (r.ended_s, r.id, r.caller, r.endpoint, asked_model, r.stream)
    instance = (r.instance, r.provider, _storable(r.model))
    usage = (tokens.prompt, tokens.cached, tokens.completion, tokens.reasoning, cost_usd)
    result = (r.first_ms, r.total_ms, len(r.attempts), r.status, r.outcome)
    return (*request, *instance, *usage, *result, r.affinity, saved_usd)


def _storable(text: str) -> str:
    """Return a caller's text as valid UTF-8: JSON can hold half a character."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class LedgerWriter:
    def __init__(self, path: str) -> None:
        self.is_refused = False  # the file is unusable, and no ledger is kept
        self._path = path
        self._limit = MOST_WAITING
        self._queue: deque[RequestRecord] = deque()
        self._rows: list[Row] = []
        # One counter for each thread that counts: the queue was full; no row was made or written.
        self._overflow = self._lost = 0
        self._file: LedgerFile | None = None
        self._prices = Prices()
        self._spent_usd = 0.0
        self._priced = self._unpriced = 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._logged = 0  # of the dropped requests, while writing did not fail
        self._quiet_until_s = 0.0
        self._was_opened = self._is_failing = False
        # A daemon: a file that hangs must not keep the process.
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def observe(self, record: RequestRecord) -> None:
        """Queue a request that has ended (a `proxy.record.Observer`)."""
        if len(self._queue) >= self._limit:
            self._overflow += 1
        else:
            self._queue.append(record)
            if not self._wake.is_set():
                self._wake.set()

    @property
    def waiting(self) -> int:
        return len(self._rows) + len(self._queue)

    @property
    def _dropped(self) -> int:
        return self._overflow + self._lost

    def _counts(self) -> dict[str, float]:
        # Nothing priced the overflow; a request that was lost later is priced like any other.
        unpriced = self._unpriced + self._overflow
        return {SPENT_USD: self._spent_usd, PRICED: self._priced, UNPRICED: unpriced}

    def contribute(self, state: WorkerState) -> None:
        """Add what requests have cost to what this process publishes."""
        state.counts.update(self._counts())

    def spent(self, elsewhere: Mapping[str, float]) -> Spent:
        """Return what requests have cost here and in the other processes, by their counts."""
        if self.is_refused:
            return Spent(None, None)
        sums = [count + elsewhere.get(name, 0) for name, count in self._counts().items()]
        return spent_on(*sums, may_know=self._prices.is_installed)

    def close(self) -> None:
        """Write what is left; blocks for at most CLOSE_S."""
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_S)
        missing = self.waiting + self._dropped
        if missing and not self.is_refused:
            logger.warning("%d requests were not written to the ledger", missing)

    def _run(self) -> None:
        try:
            from nexus_gateway.telemetry import ledger  # noqa: F401 - SQLite is loaded in this thread
        except ImportError as error:
            self.is_refused = True
            self._log_failure(error)
            return
        self._write()  # opens the file, so that its faults are logged at once
        while not self.is_refused:
            self._wake.wait()
            self._closing.wait(GATHER_S)
            self._wake.clear()
            is_last = self._closing.is_set()
            is_written = self._write()
            if is_last:
                break
            if not is_written:
                self._closing.wait(RETRY_S)
                self._wake.set()
        if self._file is not None:
            self._file.close()

    def _write(self) -> bool:
        """Write all that waits; log a failure, and return whether there was none."""
        from nexus_gateway.telemetry.ledger import is_storage_error

        try:
            file = self._open()
            while self._rows or self._queue:
                self._gather()
                file.write(self._rows)
                self._rows = []
        except Exception as error:  # requests go on, whatever it is
            if not is_storage_error(error):
                self._lost += len(self._rows)
                self._rows = []
            self._log_failure(error)
            return False
        if self._is_failing:
            self._log_recovery()
        elif self._dropped > self._logged and self._log_behind("requests end too fast for it"):
            self._logged = self._dropped
        return True

    def _open(self) -> LedgerFile:
        from nexus_gateway.telemetry import ledger

        if self._file is not None:
            if not self._file.is_gone:
                return self._file
            logger.warning("the ledger %s was moved or removed; starting a new one", self._path)
            self._file.close()
            self._file = None
        try:
            self._file = ledger.LedgerFile(self._path)
        except Exception as error:
            self.is_refused = not (self._was_opened or ledger.is_transient(error))
            raise
        self._was_opened = True
        return self._file

    def _gather(self) -> None:
        """Make rows of queued requests, up to BATCH."""
        while self._queue and len(self._rows) < BATCH:
            record = self._queue.popleft()
            try:
                cost_usd = self._cost_usd(record)
                saved_usd = None if cost_usd is None else self._prices.saved_usd(record)
                self._rows.append(row_of(record, cost_usd, saved_usd))
            except Exception as error:  # it costs no other request its row
                self._lost += 1
                self._log_failure(error)

    def _cost_usd(self, record: RequestRecord) -> float | None:
        """Price a request and count it, as priced or not, even if pricing fails."""
        cost_usd = None
        try:  # a process that is closing has no time to load the price list
            if self._prices.is_loaded or not self._closing.is_set():
                cost_usd = self._prices.cost_usd(record)
        finally:
            self._spent_usd += cost_usd or 0.0
            self._priced += cost_usd is not None
            self._unpriced += cost_usd is None and has_cost(record)
        return cost_usd

    def _log_failure(self, error: Exception) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if not self.is_refused:
            self._is_failing = True
            self._log_behind(f"it cannot be written at the moment ({reason})")
            return
        self._limit = 0
        self._queue.clear()
        text = "no ledger is kept: %s (%s); set LEDGER to another file, or to off"
        logger.warning(text, self._path, reason)

    def _log_recovery(self) -> None:
        lost = self._dropped - self._logged
        self._is_failing, self._logged = False, self._dropped
        if lost:
            logger.warning("the ledger is written again; %d requests are lost", lost)
        else:
            logger.info("the ledger is written again")

    def _log_behind(self, reason: str) -> bool:
        """Log what is wrong, once in LOG_EVERY_S; return whether it was logged."""
        now_s = time.monotonic()
        if now_s < self._quiet_until_s:
            return False
        self._quiet_until_s = now_s + LOG_EVERY_S
        text = "the ledger is behind: %s; %d requests are waiting, %d are lost"
        logger.warning(text, reason, self.waiting, self._dropped)
        return True
