"""The gateway's own SQLite files: private to its user, and written by several processes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

# A killed process loses nothing that was written; a machine that crashes, the last moments.
SETUP = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL")


class DatabaseRefused(Exception):
    """A file that is not ours, or one of a newer version; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one kind of file; `version` is in the file's `user_version`.

    Args:
        statements: create the tables.
        upgrades: for each older version, the oldest first, what makes the next one of it.
    """

    kind: str
    version: int
    statements: Sequence[str]
    upgrades: Sequence[Sequence[str]] = ()

    def version_of(self, connection: sqlite3.Connection) -> int:
        """Return a file's version, 0 if it is empty; DatabaseRefused if it is newer."""
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > self.version:
            raise DatabaseRefused(
                f"a newer gateway wrote it (version {version}, here {self.version})"
            )
        return version

    def open(self, path: str, busy_s: float, setup: Sequence[str] = ()) -> sqlite3.Connection:
        """Open a file for writing; create it, its folder and its tables if they are missing.

        Args:
            path: the file's.
            busy_s: how long to wait while another process writes.
            setup: more statements for the connection.

        Raises:
            DatabaseRefused: it is no file of this kind.
            OSError, sqlite3.Error: it cannot be opened, perhaps only for now.
        """
        if folder := os.path.dirname(path):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            # What is in it is for the operator's eyes.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None)
        try:
            has_tables = self._has_tables(connection)  # a file that is not ours stays as it is
            for statement in (*SETUP, *setup):
                connection.execute(statement)
            if not has_tables:
                self._create_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _has_tables(self, connection: sqlite3.Connection) -> bool:
        # In this order: another process may create the tables in between, with their version.
        tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        version = self.version_of(connection)
        if version == self.version:
            return True
        if tables and not version:
            raise DatabaseRefused(f"it is a database, but no {self.kind}")
        return False

    def _create_tables(self, connection: sqlite3.Connection) -> None:
        with connection:  # ends the transaction
            connection.execute("BEGIN IMMEDIATE")
            if not self._has_tables(connection):  # another process may have been faster
                version = self.version_of(connection)
                steps = self.upgrades[version - 1 :] if version else (self.statements,)
                for statement in (*chain(*steps), f"PRAGMA user_version = {self.version}"):
                    connection.execute(statement)
