"""Responses in memory. Pure: no method waits for anything."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from nexus_gateway.store.base import ResponseStore, StoredResponse, counted_size

_Key = tuple[str, str]  # an owner and an id


@dataclass(frozen=True, slots=True)
class _Entry:
    response: StoredResponse
    item_ids: Collection[str]
    size: int
    until_s: float


class MemoryStore(ResponseStore):
    """The store of one process.

    Args:
        limit_bytes: the most that is kept.
        ttl_s: how long a response is kept.
        clock: monotonic seconds.

    Attributes:
        size: what is kept, in bytes.
    """

    def __init__(self, limit_bytes: int, ttl_s: float, clock: Callable[[], float]) -> None:
        self.size = 0
        self._limit_bytes = limit_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: dict[_Key, _Entry] = {}  # the oldest first, which also ends first
        self._response_of: dict[_Key, _Key] = {}  # by items

    async def put(self, owner: str, response: StoredResponse, item_ids: Collection[str]) -> None:
        self._expire()
        key = owner, response.id
        self._remove(key)
        size = counted_size(response, item_ids)
        if size > self._limit_bytes:
            return
        while self.size + size > self._limit_bytes:
            self._remove(next(iter(self._entries)))
        self._entries[key] = _Entry(response, item_ids, size, self._clock() + self._ttl_s)
        self._response_of.update(((owner, id), key) for id in item_ids)
        self.size += size

    async def get(self, owner: str, id: str) -> StoredResponse | None:
        self._expire()
        entry = self._entries.get((owner, id))
        return None if entry is None else entry.response

    async def find(self, owner: str, item_ids: Collection[str]) -> Mapping[str, StoredResponse]:
        self._expire()
        known = (id for id in item_ids if (owner, id) in self._response_of)
        return {id: self._entries[self._response_of[owner, id]].response for id in known}

    async def delete(self, owner: str, id: str) -> bool:
        self._expire()
        return self._remove((owner, id))

    def _expire(self) -> None:
        now_s = self._clock()
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if entry.until_s > now_s:
                break
            self._remove(key)

    def _remove(self, key: _Key) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self.size -= entry.size
        for id in entry.item_ids:
            item = key[0], id
            if self._response_of.get(item) == key:
                del self._response_of[item]
        return True
