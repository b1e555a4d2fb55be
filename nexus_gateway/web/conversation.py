"""A request of Responses with what it continues, and what is kept of it for the next one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nexus_gateway.dialects.base import Request
from nexus_gateway.dialects.body import optional, parse_object
from nexus_gateway.dialects.responses import RESPONSES
from nexus_gateway.dialects.responses.references import (
    PREVIOUS,
    Item,
    Items,
    as_items,
    final_response,
    ids_of,
    is_id,
    no_item,
    no_previous,
    previous_id,
    referenced_ids,
    resolved,
    with_ids,
)
from nexus_gateway.errors import StoreUnavailable, TooLarge
from nexus_gateway.settings import Settings
from nexus_gateway.store import ResponseStore, StoredResponse
from nexus_gateway.upstream.large import LARGE, apart
from nexus_gateway.web.auth import owner
from nexus_gateway.web.bodies import MB, BodyBudget
from nexus_gateway.web.gateway import gateway_of
from nexus_gateway.web.request import CALLER
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.chunks import new_id

logger = logging.getLogger("nexus_gateway")


def owner_of(request: web.Request) -> str:
    """Return whose the responses to a request are; to be called before anything is awaited."""
    return owner(request[CALLER], gateway_of(request).settings)


class Conversation:
    """One request, read and kept.

    The answer is kept before its end is sent, as its caller may refer to it at once. If that fails,
    the caller gets it all the same.
    """

    def __init__(
        self, store: ResponseStore, owner: str, bodies: BodyBudget, settings: Settings
    ) -> None:
        self._store = store
        self._owner = owner
        self._bodies = bodies
        self._limit_mb = settings.max_body_mb
        self._size = 0
        self._input: Items = []
        self._is_kept = False
        self._is_stream = False

    async def read(self, data: bytes) -> Request:
        """Parse a request and what it refers to.

        Raises:
            InvalidRequest: it is malformed, or refers to what is not kept for its owner.
            TooLarge: with what it refers to, it is larger than MAX_BODY_MB.
            StoreUnavailable: nobody knows.
        """
        size = len(data)
        fields = await apart(size, parse_object, data)
        del data  # it may be large, and the store may take its time
        previous, ids = previous_id(fields), referenced_ids(fields)
        native_input = None
        if previous is not None or ids:
            found = await self._find(previous, ids)
            size += self._checked_size(found, size)
            history, items = await apart(size, _recalled, found, previous, ids)
            fields["input"], native_input = resolved(fields, history, items)
        self._is_kept = optional(fields, "store", bool) is not False
        # Its own id, as a backend's may not be unique and callers will refer to this one.
        own = {"id": new_id(), "store": self._is_kept, PREVIOUS: fields.pop(PREVIOUS, None)}
        request = await apart(size, RESPONSES.read_fields, fields, size, own, native_input)
        self._size = size
        self._input, self._is_stream = as_items(fields["input"]), request.stream
        return request

    async def _find(self, previous: str | None, ids: list[str]) -> dict[str, StoredResponse]:
        """Return the responses that a request refers to, by the ids by which it does."""
        known = [id for id in ids if is_id(id)]
        found = {**await self._store.find(self._owner, known)} if known else {}
        if previous is not None:
            last = await self._store.get(self._owner, previous) if is_id(previous) else None
            if last is None:
                raise no_previous(previous)
            found[previous] = last
        return found

    def _checked_size(self, found: Mapping[str, StoredResponse], size: int) -> int:
        """Return the size of what a request of `size` bytes refers to, and take room for it."""
        recalled = sum(response.size for response in {r.id: r for r in found.values()}.values())
        if size + recalled > self._limit_mb * MB:
            raise TooLarge(
                f"The body with what it refers to is larger than {self._limit_mb} MB (MAX_BODY_MB)."
            )
        if recalled > LARGE:
            self._bodies.take(recalled)
        return recalled

    async def keep(self, answer: bytes) -> None:
        """Keep the answer, unless the caller does not want that.

        Args:
            answer: a response, or the last events of a stream; an error is not kept.
        """
        if not self._is_kept:
            return
        try:
            size = self._size + len(answer)
            kept = await apart(size, self._stored, answer)
            if kept is not None:
                await self._store.put(self._owner, *kept)
        except (StoreUnavailable, json_codec.JSONError) as error:
            logger.warning("a response was not kept: %s", error)

    def _stored(self, answer: bytes) -> tuple[StoredResponse, list[str]] | None:
        """Return what is kept of an answer, and the ids of the items in it; None if nothing is."""
        output = final_response(answer) if self._is_stream else answer
        if output is None:
            return None
        response = json_codec.loads(output)
        if not isinstance(response, dict):  # a hook's, or that of a backend with mistakes
            return None
        id, items = response.get("id"), response.get("output")
        if not (isinstance(id, str) and is_id(id) and isinstance(items, list)):
            return None
        kept = with_ids(self._input)
        stored = StoredResponse(id, json_codec.dumps(kept, self._size), output)
        return stored, ids_of([*kept, *items])


def _recalled(
    found: Mapping[str, StoredResponse], previous: str | None, ids: list[str]
) -> tuple[list[Item], dict[str, Item]]:
    """Return the items of the response that is continued, and those of a request's references."""
    items_of = {response.id: _items(response) for response in found.values()}
    by_id = {
        response: {item["id"]: item for item in items if isinstance(item.get("id"), str)}
        for response, items in items_of.items()
    }
    recalled = {}
    for id in ids:
        item = by_id[found[id].id].get(id) if id in found else None
        if item is None:
            raise no_item(id)
        recalled[id] = item
    return [] if previous is None else items_of[found[previous].id], recalled


def _items(response: StoredResponse) -> list[Item]:
    """Return the items of a response's input and output that are items, in their order."""
    before: list[Item] = json_codec.loads_exact(response.input)
    after: list[Any] = json_codec.loads_exact(response.output)["output"]
    return [*before, *(i for i in after if isinstance(i, dict) and isinstance(i.get("type"), str))]
