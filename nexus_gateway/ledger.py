"""The ledger: one row for each request that has ended; what stands in it, and nothing of how.

No word of a conversation and no key is ever in a row, as none is in the record it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

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
MOST_TOKENS = 2**53

Row = tuple[object, ...]


@lru_cache
def insert(count: int) -> str:
    """Return the SQL that writes so many rows, their values one after the other."""
    row = f"({', '.join('?' * COLUMNS)})"
    return f"INSERT INTO requests VALUES {', '.join([row] * count)}"  # noqa: S608 - no input


class Tokens(NamedTuple):
    """What a request used; None where nobody said.

    Args:
        prompt: what was read, the cached part included.
        cached: how much of that an upstream's cache had.
        completion: what was written, the reasoning included.
        reasoning: how much of that was thought only.
        is_text: whether all of it was text, as far as is known.
    """

    prompt: int | None
    cached: int | None
    completion: int | None
    reasoning: int | None
    is_text: bool


def tokens_of(usage: Mapping[str, Any]) -> Tokens:
    """Read a usage in OpenAI's shape, whatever an upstream put into it."""
    prompt = _count(usage.get("prompt_tokens"))
    completion = _count(usage.get("completion_tokens"))
    total = _count(usage.get("total_tokens"))
    read, written = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    # Some leave reasoning out of what was written, and have it in the total alone.
    if prompt is not None and completion is not None and total is not None:
        completion = max(completion, total - prompt)
    cached = reasoning = audio = None
    if isinstance(read, dict):
        cached, audio = _count(read.get("cached_tokens")), _count(read.get("audio_tokens"))
    if isinstance(written, dict):
        reasoning = _count(written.get("reasoning_tokens"))
        audio = audio or _count(written.get("audio_tokens"))
    return Tokens(prompt, cached, completion, reasoning, not audio)


def _count(value: object) -> int | None:
    """Return a count of tokens; None for anything else."""
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None


def row_of(record: RequestRecord, tokens: Tokens, cost_usd: float | None) -> Row:
    """Make a row.

    Args:
        record: what became of a request.
        tokens: what it used.
        cost_usd: what that cost, None when unknown.
    """
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
