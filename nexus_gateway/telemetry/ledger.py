"""The ledger's file, in SQLite: several processes write it, others read it meanwhile.

One row for each request that has ended. No part of a conversation and no key is ever in a row, as
none is in the record it is made of.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from urllib.parse import quote

from nexus_gateway.store.database import DatabaseRefused, Schema
from nexus_gateway.telemetry.ledger_writer import Row
from nexus_gateway.telemetry.usage import UsageQuery, UsageReport, queries, report_of

# A change of the table raises the version, and adds how an older file is upgraded.
VERSION = 2
SCHEMA = Schema(
    "ledger",
    VERSION,
    (
        """
    CREATE TABLE requests (
        ended_s REAL NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL, endpoint TEXT NOT NULL,
        asked_model TEXT, stream INTEGER NOT NULL,
        instance TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
        prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER,
        reasoning_tokens INTEGER, cost_usd REAL,
        first_ms REAL NOT NULL, total_ms REAL NOT NULL, attempts INTEGER NOT NULL,
        status INTEGER NOT NULL, outcome TEXT NOT NULL,
        affinity TEXT NOT NULL DEFAULT 'none', saved_usd REAL
    )
    """,
        "CREATE INDEX requests_by_time ON requests (ended_s)",
    ),
    upgrades=(
        (
            "ALTER TABLE requests ADD COLUMN affinity TEXT NOT NULL DEFAULT 'none'",
            "ALTER TABLE requests ADD COLUMN saved_usd REAL",
        ),
    ),
)
COLUMNS = 21
# How long to wait while another process writes.
BUSY_S = 0.5
READ_BUSY_S = 5.0
# Each statement releases and takes the interpreter lock, at the event loop's cost: few statements
# for many rows, of few sizes, so that SQLite has them prepared.
AT_ONCE = (64, 8, 1)
_TRANSIENT = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
)


@lru_cache
def insert(count: int) -> str:
    """Return the SQL that inserts `count` rows, their values one after the other."""
    row = f"({', '.join('?' * COLUMNS)})"
    return f"INSERT INTO requests VALUES {', '.join([row] * count)}"  # noqa: S608 - no input


def is_transient(error: Exception) -> bool:
    """Whether an error may pass, such as a lock or a full disk."""
    # An extended code holds the plain one in its lowest byte.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _TRANSIENT


def is_storage_error(error: Exception) -> bool:
    """Whether an error is the file's or the disk's, and not that of the rows."""
    kinds = (sqlite3.OperationalError, OSError, DatabaseRefused)
    return isinstance(error, kinds) or type(error) is sqlite3.DatabaseError


class LedgerFile:
    """A ledger that is open for writing, by one thread.

    Opening it creates the file and its folder if they are missing. It raises DatabaseRefused if the
    file is no ledger of ours, else OSError or sqlite3.Error, see `is_transient`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection = SCHEMA.open(path, BUSY_S)
        self._identity = _identity(path)

    @property
    def is_gone(self) -> bool:
        """Whether the file was moved or removed, so that its rows would never be read."""
        return _identity(self._path) != self._identity

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows, all or none."""
        at = 0
        with self._connection:  # ends the transaction
            self._connection.execute("BEGIN IMMEDIATE")
            for size in AT_ONCE:
                while len(rows) - at >= size:
                    values = chain.from_iterable(rows[at : at + size])
                    self._connection.execute(insert(size), tuple(values))
                    at += size

    def close(self) -> None:
        self._connection.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _opened(path: str, mode: str) -> Iterator[sqlite3.Connection | None]:
    """Open a ledger; None if there is no file, or if it is still empty."""
    if not os.path.exists(path):
        yield None
        return
    address = f"file:{quote(os.path.abspath(path))}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, timeout=READ_BUSY_S, isolation_level=None)
    with contextlib.closing(connection):
        version = SCHEMA.version_of(connection)
        if 0 < version < VERSION:
            SCHEMA.open(path, READ_BUSY_S).close()
        yield connection if version else None


def ask(path: str, query: UsageQuery) -> UsageReport | None:
    """Query a ledger, which other processes may be writing; None if nothing was ever written.

    Raises DatabaseRefused or sqlite3.Error if it cannot be read.
    """
    by_group, of_all, parameters = queries(query)
    with _opened(path, "ro") as connection:
        if connection is None:
            return None
        connection.execute("BEGIN")  # both read the same state
        rows = connection.execute(by_group, parameters).fetchall()
        return report_of(rows, connection.execute(of_all, parameters).fetchone())


def prune(path: str, before_s: float) -> int:
    """Remove the requests that ended before a Unix time, and return how many those were.

    Their space is used again, the file does not shrink. Raises as `ask`.
    """
    with _opened(path, "rw") as connection:
        if connection is None:
            return 0
        return connection.execute("DELETE FROM requests WHERE ended_s < ?", (before_s,)).rowcount
