"""Responses in an SQLite file: they survive a restart, and all workers have the same ones."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from nexus_gateway.errors import StoreUnavailable
from nexus_gateway.store.base import ResponseStore, StoredResponse, counted_size
from nexus_gateway.store.database import DatabaseRefused, Schema

logger = logging.getLogger("nexus_gateway")

T = TypeVar("T")

SCHEMA = Schema(
    "response store",
    1,
    (
        """
        CREATE TABLE responses (
            number INTEGER PRIMARY KEY, owner TEXT NOT NULL, id TEXT NOT NULL,
            kept_s REAL NOT NULL, size INTEGER NOT NULL, input BLOB NOT NULL, output BLOB NOT NULL,
            UNIQUE (owner, id)
        )
        """,
        # It has all that is needed to find what gives way: their content is not read for that.
        "CREATE INDEX responses_by_time ON responses (kept_s, size)",
        """
        CREATE TABLE items (
            owner TEXT NOT NULL, id TEXT NOT NULL,
            response INTEGER NOT NULL REFERENCES responses ON DELETE CASCADE,
            PRIMARY KEY (owner, id)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX items_by_response ON items (response)",
    ),
)
# What was deleted is overwritten: a conversation that has expired is nobody's.
SETUP = ("PRAGMA foreign_keys = ON", "PRAGMA secure_delete = ON")
BUSY_S = 2.0
_FAULTS = (sqlite3.Error, OSError, DatabaseRefused)
_TOO_MANY = """
    DELETE FROM responses WHERE number IN (
        SELECT number FROM (
            SELECT number, SUM(size) OVER (ORDER BY number DESC) AS newer FROM responses
        ) WHERE newer > ?
    )
"""


class ResponseFile:
    """The file, opened by the thread that uses it; its methods are those of a `ResponseStore`."""

    def __init__(
        self, path: str, limit_bytes: int, ttl_s: float, wall: Callable[[], float]
    ) -> None:
        self._limit_bytes = limit_bytes
        self._ttl_s = ttl_s
        self._wall = wall
        self._connection = SCHEMA.open(path, BUSY_S, SETUP)
        self._expire()

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        with self._connection:  # ends it
            self._connection.execute(f"BEGIN {kind}")
            yield self._connection

    def _expired_s(self) -> float:
        """Return when those were kept that expire now."""
        return self._wall() - self._ttl_s

    def put(self, owner: str, response: StoredResponse, item_ids: Collection[str]) -> None:
        size = counted_size(response, item_ids)
        with self._transaction() as connection:
            self._expire()
            self._delete(owner, response.id)
            if size > self._limit_bytes:
                return
            row = (owner, response.id, self._wall(), size, response.input, response.output)
            number = connection.execute(
                "INSERT INTO responses (owner, id, kept_s, size, input, output) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            connection.executemany(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?)",
                [(owner, id, number) for id in item_ids],
            )
            connection.execute(_TOO_MANY, (self._limit_bytes,))

    def get(self, owner: str, id: str) -> StoredResponse | None:
        row = self._connection.execute(
            "SELECT id, input, output FROM responses WHERE owner = ? AND id = ? AND kept_s > ?",
            (owner, id, self._expired_s()),
        ).fetchone()
        return None if row is None else StoredResponse(*row)

    def find(self, owner: str, item_ids: Collection[str]) -> Mapping[str, StoredResponse]:
        expired_s, found, responses = self._expired_s(), {}, {}
        with self._transaction("DEFERRED") as connection:  # all see the same state
            for id in item_ids:
                row = connection.execute(
                    "SELECT response FROM items WHERE owner = ? AND id = ?", (owner, id)
                ).fetchone()
                if row is not None:
                    found[id] = row[0]
            for number in dict.fromkeys(found.values()):
                row = connection.execute(
                    "SELECT id, input, output FROM responses WHERE number = ? AND kept_s > ?",
                    (number, expired_s),
                ).fetchone()
                if row is not None:
                    responses[number] = StoredResponse(*row)
        return {id: responses[number] for id, number in found.items() if number in responses}

    def delete(self, owner: str, id: str) -> bool:
        with self._transaction():
            self._expire()
            return self._delete(owner, id)

    def _expire(self) -> None:
        expired = (self._expired_s(),)
        self._connection.execute("DELETE FROM responses WHERE kept_s <= ?", expired)

    def _delete(self, owner: str, id: str) -> bool:
        return (
            self._connection.execute(
                "DELETE FROM responses WHERE owner = ? AND id = ?", (owner, id)
            ).rowcount
            > 0
        )

    def close(self) -> None:
        self._connection.close()


class SQLiteStore(ResponseStore):
    """A file, used by one thread of its own.

    Args:
        path: the file's.
        limit_bytes: the most that is kept.
        ttl_s: how long a response is kept.
        wall: Unix time in seconds, as the file outlives the process.
    """

    def __init__(
        self, path: str, limit_bytes: int, ttl_s: float, wall: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._make = partial(ResponseFile, path, limit_bytes, ttl_s, wall)
        self._file: ResponseFile | None = None
        self._thread = ThreadPoolExecutor(1, "responses")

    async def open(self) -> None:
        """Open the file, or log why that is impossible; each call tries it again."""
        with suppress(StoreUnavailable):
            await self._use(lambda _: None)

    async def _use(self, use: Callable[[ResponseFile], T]) -> T:
        def run() -> T:
            if self._file is None:
                self._file = self._make()
            return use(self._file)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except _FAULTS as error:
            logger.warning("the response store %s cannot be used: %s", self._path, error)
            raise StoreUnavailable from error

    async def put(self, owner: str, response: StoredResponse, item_ids: Collection[str]) -> None:
        await self._use(lambda file: file.put(owner, response, item_ids))

    async def get(self, owner: str, id: str) -> StoredResponse | None:
        return await self._use(lambda file: file.get(owner, id))

    async def find(self, owner: str, item_ids: Collection[str]) -> Mapping[str, StoredResponse]:
        return await self._use(lambda file: file.find(owner, item_ids))

    async def delete(self, owner: str, id: str) -> bool:
        return await self._use(lambda file: file.delete(owner, id))

    async def close(self) -> None:
        def close() -> None:
            if self._file is not None:
                self._file.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown()
