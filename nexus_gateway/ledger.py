"""The ledger: one row for each request that has ended; what stands in it, and nothing of how.

No word of a conversation and no key is ever in a row, as none is in the record it is made of.
"""

from __future__ import annotations

from functools import lru_cache

from nexus_gateway.record import RequestRecord

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

Row = tuple[object, ...]


@lru_cache
def insert(count: int) -> str:
    """Return the SQL that writes so many rows, their values one after the other."""
    row = f"({', '.join('?' * COLUMNS)})"
    return f"INSERT INTO requests VALUES {', '.join([row] * count)}"  # noqa: S608 - no input


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
