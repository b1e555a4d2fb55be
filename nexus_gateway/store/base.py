"""What a store is. A response is kept for its owner alone: for anyone else it does not exist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

# What the entry of a response, and that of an item, take beside their own bytes.
ENTRY_BYTES, ITEM_BYTES = 1000, 300


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and the input that it answers.

    Attributes:
        id: the response's.
        input: an array of items in JSON. What the request referred to is among them, so that a
            conversation continues from its last response, whatever became of the earlier ones.
        output: the response in JSON, as its caller has got it.
    """

    id: str
    input: bytes = field(repr=False)
    output: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.input) + len(self.output)


def counted_size(response: StoredResponse, item_ids: Collection[str]) -> int:
    """Return the bytes that a response counts for, with its entries for the items in it."""
    return ENTRY_BYTES + response.size + sum(ITEM_BYTES + len(id) for id in item_ids)


class ResponseStore(ABC):
    """Keeps responses for a time, and no more bytes than its limit: the oldest give way.

    Each method raises StoreUnavailable if the store cannot be reached.
    """

    @abstractmethod
    async def put(self, owner: str, response: StoredResponse, item_ids: Collection[str]) -> None:
        """Keep a response, in place of an earlier one with its id.

        One that alone exceeds the limit is not kept.

        Args:
            owner: who may have it.
            response: the response.
            item_ids: of the items in it, by which `find` finds it.
        """

    @abstractmethod
    async def get(self, owner: str, id: str) -> StoredResponse | None:
        """Return a response."""

    @abstractmethod
    async def find(self, owner: str, item_ids: Collection[str]) -> Mapping[str, StoredResponse]:
        """Return the latest response that contains each item; without those that none does."""

    @abstractmethod
    async def delete(self, owner: str, id: str) -> bool:
        """Remove a response; return whether there was one."""

    async def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close the store after the last request."""
