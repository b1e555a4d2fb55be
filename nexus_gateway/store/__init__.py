"""The responses that callers may refer to later, bounded in bytes and in time.

- `base`: what a store is
- `memory`: in this process
- `sqlite`: in a file that several processes share
- `database`: how the gateway's SQLite files are opened, that of the ledger too
"""

from __future__ import annotations

from collections.abc import Callable

from nexus_gateway.settings import MEMORY, Settings
from nexus_gateway.store.base import ResponseStore, StoredResponse
from nexus_gateway.store.memory import MemoryStore

__all__ = ["ResponseStore", "StoredResponse", "open_store"]


async def open_store(settings: Settings, clock: Callable[[], float]) -> ResponseStore | None:
    """Open the store of the settings; None if it is off.

    Args:
        settings: the gateway's.
        clock: monotonic seconds, for what lives no longer than the process.
    """
    limit, ttl_s = settings.response_store_mb * 1024 * 1024, settings.response_store_ttl_ms / 1000
    if settings.response_store == MEMORY:
        return MemoryStore(limit, ttl_s, clock)
    if not settings.response_store:
        return None
    from nexus_gateway.store.sqlite import SQLiteStore

    store = SQLiteStore(settings.response_store, limit, ttl_s)
    await store.open()
    return store
