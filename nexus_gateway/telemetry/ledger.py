"""The ledger's file, in SQLite: several processes write it, others read it meanwhile.

The ledger: one row for each request that has ended; what stands in it, and nothing of how.

No word of a conversation and no key is ever in a row, as none is in the record it is made of.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from urllib.parse import quote

from nexus_gateway.telemetry.ledger_writer import Row
from nexus_gateway.telemetry.usage import UsageQuery, UsageReport, answer_of, queries

# The layout's version, in the file's `user_version`. Whoever changes the table raises it, and
# says in `ledger_file` how an older file becomes a newer one.
VERSION = 1
SCHEMA = (
    """
    CREATE TABLE requests (
        ended_s REAL NOT NULL,
        id TEXT NOT NULL,
        key TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        asked_model TEXT,
        stream INTEGER NOT NULL,
        instance TEXT NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        prompt_tokens INTEGER,
        cached_tokens INTEGER,
        completion_tokens INTEGER,
        reasoning_tokens INTEGER,
        cost_usd REAL,
        first_ms REAL NOT NULL,
        total_ms REAL NOT NULL,
        attempts INTEGER NOT NULL,
        status INTEGER NOT NULL,
        outcome TEXT NOT NULL
    )
    """,
    "CREATE INDEX requests_by_time ON requests (ended_s)",
)
COLUMNS = 19


@lru_cache
def insert(count: int) -> str:
    """Return the SQL that writes so many rows, their values one after the other."""
    row = f"({', '.join('?' * COLUMNS)})"
    return f"INSERT INTO requests VALUES {', '.join([row] * count)}"  # noqa: S608 - no input


# How long to wait for another process that writes.
BUSY_S = 0.5
PATIENT_S = 5.0
# A process that is killed loses nothing that was written; a machine that is, the last moments.
SETUP = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL")
# With every statement the thread stands aside and comes back, at the cost of the event loop's:
# few statements for many rows, of few kinds, so that SQLite knows them already.
AT_ONCE = (64, 8, 1)
# What may be over in a moment, and is no reason to give up.
_PASSING = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
)


class LedgerRefused(Exception):
    """A file that is no ledger, or one of a newer version; the text says which."""


def is_transient(error: Exception) -> bool:
    """Tell whether a failure may be over in a moment: a lock, a full disk."""
    if isinstance(error, sqlite3.Error):
        # An extended code holds the plain one in its lowest byte.
        code: int = getattr(error, "sqlite_errorcode", 0)
        return code & 0xFF in _PASSING
    return False


def is_storage_error(error: Exception) -> bool:
    """Tell whether a failure is the file's or the disk's, and not that of what was written."""
    kinds = (sqlite3.OperationalError, OSError, LedgerRefused)
    return isinstance(error, kinds) or type(error) is sqlite3.DatabaseError


class LedgerFile:
    """A ledger that is open for writing, for one thread.

    Args:
        path: where; the folder is made where it is missing.

    Raises:
        LedgerRefused: what is there is no ledger of ours.
        OSError: the folder can't be made, or the file.
        sqlite3.Error: it can't be opened, or not just now, see `is_transient`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        if folder := os.path.dirname(path):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            # What somebody asked for, and when, is for the owner's eyes.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        self._identity = _identity(path)
        self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        try:
            self._is_ready()  # a file that is not ours stays as it is
            for statement in SETUP:
                self._connection.execute(statement)
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _is_ready(self) -> bool:
        """Tell whether the table is there.

        Raises:
            LedgerRefused: something else is.
        """
        # In this order: another process may make the table in between, and its version with it.
        tables = self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if _version(self._connection) == VERSION:
            return True
        if tables:
            raise LedgerRefused("it is a database, but no ledger")
        return False

    def _prepare(self) -> None:
        """Make the table where there is none."""
        if self._is_ready():
            return
        with self._transaction():
            if self._is_ready():  # another process was quicker
                return
            for statement in SCHEMA:
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @property
    def is_gone(self) -> bool:
        """Whether the file was moved or removed, so that nobody would ever read what is written."""
        return _identity(self._path) != self._identity

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows, all or none.

        Raises:
            sqlite3.Error: it is not possible, or not just now.
        """
        at = 0
        with self._transaction():
            for size in AT_ONCE:
                while len(rows) - at >= size:
                    values = tuple(chain.from_iterable(rows[at : at + size]))
                    self._connection.execute(insert(size), values)
                    at += size

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _version(connection: sqlite3.Connection) -> int:
    """Return the layout's version, 0 for an empty file.

    Raises:
        LedgerRefused: it is newer than this program.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise LedgerRefused(f"a newer gateway wrote it (version {version}, here {VERSION})")
    return version


@contextlib.contextmanager
def _opened(path: str, mode: str) -> Iterator[sqlite3.Connection | None]:
    """Open a ledger that is there; None where it is not, or is still empty."""
    if not os.path.exists(path):
        yield None
        return
    address = f"file:{quote(os.path.abspath(path))}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, timeout=PATIENT_S, isolation_level=None)
    with contextlib.closing(connection):
        yield connection if _version(connection) else None


def ask(path: str, question: UsageQuery) -> UsageReport | None:
    """Ask a ledger; other processes may be writing it.

    Returns:
        What it says, None where nothing was ever written.

    Raises:
        LedgerRefused: a newer gateway wrote it.
        sqlite3.Error: it can't be read.
    """
    by_group, of_all, values = queries(question)
    with _opened(path, "ro") as connection:
        if connection is None:
            return None
        connection.execute("BEGIN")  # both see the same
        rows = connection.execute(by_group, values).fetchall()
        total = connection.execute(of_all, values).fetchone()
        return answer_of(rows, total)


def prune(path: str, before_s: float) -> int:
    """Remove what ended before a moment; the room is used again, the file does not shrink.

    Args:
        path: the ledger's.
        before_s: in Unix seconds.

    Returns:
        How many rows there were.

    Raises:
        LedgerRefused: a newer gateway wrote it.
        sqlite3.Error: it can't be written.
    """
    with _opened(path, "rw") as connection:
        if connection is None:
            return 0
        return connection.execute("DELETE FROM requests WHERE ended_s < ?", (before_s,)).rowcount
