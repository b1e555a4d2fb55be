"""What a request of Responses refers to by ids, and what is kept of one for later requests.

A conversation continues in full: the items that are referred to take the place of the reference,
for any backend. Another account of a backend, which may be asked next, knows none of them by their
ids, so the ids are removed for it; and so is reasoning of which there is nothing but an id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nexus_gateway.dialects.body import optional, text_or_list
from nexus_gateway.errors import InvalidRequest, NotFound
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chunks import new_id

Item = dict[str, Any]
Items = list[Any]  # a caller's may be anything

PREVIOUS = "previous_response_id"
_ENDS = frozenset({"response.completed", "response.incomplete"})
# The types of items, and how their ids begin.
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}
_MOST_OF_AN_ID = 100


def previous_id(fields: Mapping[str, Any]) -> str | None:
    """Return the id of the response that a request continues."""
    return optional(fields, PREVIOUS, str)


def referenced_ids(fields: Mapping[str, Any]) -> list[str]:
    """Return the ids of the items that an input refers to; InvalidRequest if one occurs twice."""
    items = fields.get("input")
    found = map(_reference, items) if isinstance(items, list) else ()
    ids = [id for id in found if id is not None]
    known: set[str] = set()
    for id in ids:
        if id in known:
            raise InvalidRequest(
                f"Duplicate item found with id {_shown(id)}. Remove duplicate items from `input` "
                "and try again.",
                param="input",
            )
        known.add(id)
    return ids


def _reference(item: object) -> str | None:
    """Return the id in a reference; None for any other item.

    Without a type, only a message is something else: a backend would look for any other item's id
    among what it has stored for all callers.
    """
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return None
    kind = item.get("type")
    is_one = kind == "item_reference" or (kind is None and "role" not in item)
    return str(item["id"]) if is_one else None


def resolved(
    fields: Mapping[str, Any], history: Sequence[Item], items: Mapping[str, Item]
) -> tuple[Items, Items]:
    """Return a request's input with what it refers to, and the same for a backend of its dialect.

    Args:
        fields: the request's.
        history: of the response that it continues.
        items: that it refers to, by their ids.
    """
    full: Items = [*history]
    native: Items = [*_native(history)]
    for item in as_items(text_or_list(fields, "input", " of items")):
        id = _reference(item)
        stored = item if id is None else items[id]
        full.append(stored)
        native += [item] if id is None else _native([stored])
    return full, native


def _native(items: Iterable[Item]) -> Items:
    """Return stored items as a backend takes them that has not stored them."""
    known = [i for i in items if i.get("type") != "reasoning" or i.get("encrypted_content")]
    return [
        {name: value for name, value in item.items() if name != "id"}
        if item.get("type") in _PREFIXES
        else item
        for item in known
    ]


def as_items(value: str | Items) -> Items:
    """Return an input as items: a text is a message of the user."""
    if isinstance(value, list):
        return value
    return [{"type": "message", "role": "user", "content": value}]


def with_ids(items: Iterable[Item]) -> list[Item]:
    """Return items as they are kept: each with an id, and messages with parts for content."""
    return [_kept(item) for item in items]


def _kept(item: Item) -> Item:
    kind = item.get("type") or "message"
    id = item.get("id") or f"{_PREFIXES.get(kind, 'item')}_{new_id()}"
    kept = {"type": kind, **item, "id": id}
    if kind == "message" and isinstance(item.get("content"), str):
        is_output = item.get("role") == "assistant"
        part = {"type": "output_text" if is_output else "input_text", "text": item["content"]}
        kept["content"] = [{**part, "annotations": []} if is_output else part]
    return kept


def ids_of(items: Iterable[object]) -> list[str]:
    """Return the ids of items, without those that could not be asked for."""
    ids = (item.get("id") for item in items if isinstance(item, dict))
    return list(dict.fromkeys(id for id in ids if isinstance(id, str) and is_id(id)))


def is_id(id: str) -> bool:
    """Whether an id may be one that was kept."""
    return id.isascii()


def final_response(events: bytes) -> bytes | None:
    """Return the response in the last event of a stream; None if that is something else."""
    last = deque(sse.split(events), maxlen=1)
    try:
        event = json_codec.loads(sse.parse_event(*last).data) if last else None
    except json_codec.JSONError:
        return None
    if not isinstance(event, dict) or event.get("type") not in _ENDS:
        return None
    return json_codec.dumps(event.get("response"))


def no_previous(id: str) -> InvalidRequest:
    """Return OpenAI's error for a response that cannot be continued."""
    return InvalidRequest(
        f"Previous response with id '{_shown(id)}' not found. Send the whole conversation in "
        "`input`.",
        param=PREVIOUS,
        code="previous_response_not_found",
    )


def no_item(id: str) -> NotFound:
    """Return OpenAI's error for a reference to an item that is not kept."""
    return NotFound(
        f"Item with id '{_shown(id)}' not found. Send the item itself in `input`.", param="input"
    )


def no_response(id: str) -> NotFound:
    """Return OpenAI's error for a response that is not kept."""
    return NotFound(f"Response with id '{_shown(id)}' not found.")


def _shown(id: str) -> str:
    return id[:_MOST_OF_AN_ID]
