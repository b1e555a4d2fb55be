"""What callers may do with the responses that are kept for them, and with their input."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from nexus_gateway.dialects.base import ESTIMATE
from nexus_gateway.dialects.body import Body
from nexus_gateway.dialects.responses import RESPONSES
from nexus_gateway.dialects.responses.references import is_id, no_response
from nexus_gateway.errors import InvalidRequest, NotFound
from nexus_gateway.store import StoredResponse
from nexus_gateway.upstream.large import apart
from nexus_gateway.web.conversation import Conversation, owner_of
from nexus_gateway.web.gateway import gateway_of
from nexus_gateway.web.request import json_response, read_body
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.usage import estimated_tokens

_COUNTED = ("instructions", "input", "tools", "text")
_MOST_ITEMS = 100


async def _kept(request: web.Request) -> StoredResponse:
    store, id = gateway_of(request).store, request.match_info["id"]
    response = await store.get(owner_of(request), id) if store and is_id(id) else None
    if response is None:
        raise no_response(id)
    return response


async def retrieve(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}: return a response as it was sent."""
    if request.query.get("stream", "").lower() == "true":
        raise InvalidRequest(
            "A kept response is not streamed again; omit `stream`.", param="stream"
        )
    return web.Response(body=(await _kept(request)).output, content_type="application/json")


async def delete(request: web.Request) -> web.Response:
    """DELETE /v1/responses/{id}."""
    store, id = gateway_of(request).store, request.match_info["id"]
    if not (store and is_id(id) and await store.delete(owner_of(request), id)):
        raise no_response(id)
    return json_response({"id": id, "object": "response", "deleted": True})


async def list_input(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}/input_items: return a page of a response's input."""
    query = request.query
    order, text, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after")
    if order not in ("asc", "desc"):
        raise InvalidRequest("`order` must be asc or desc.", param="order")
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= _MOST_ITEMS:
        raise InvalidRequest(f"`limit` must be from 1 to {_MOST_ITEMS}.", param="limit")
    kept = (await _kept(request)).input
    items: list[dict[str, Any]] = await apart(len(kept), json_codec.loads_exact, kept)
    if order == "desc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest("`after` must be the id of one of the items.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[: int(text)]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(page) < len(items),
        }
    )


async def count_input(request: web.Request) -> web.Response:
    """POST /v1/responses/input_tokens: estimate a request's tokens, as models count differently."""
    gateway, owner = gateway_of(request), owner_of(request)
    data = await read_body(request, gateway)
    if gateway.store is None:
        parsed = await apart(len(data), RESPONSES.parse, data, request.headers)
    else:
        conversation = Conversation(gateway.store, owner, gateway.bodies, gateway.settings)
        parsed = await conversation.read(data)
    assert isinstance(parsed.native, Body)
    counted = [parsed.native.fields.get(name) for name in _COUNTED]
    tokens = await apart(parsed.native.size, estimated_tokens, counted)
    response = json_response({"object": "response.input_tokens", "input_tokens": tokens})
    response.headers[ESTIMATE] = "true"
    return response


async def compact(request: web.Request) -> web.Response:
    """POST /v1/responses/compact."""
    raise NotFound(
        "This gateway does not offer to compact conversations: send a shorter `input`, or ask a "
        "model for a summary.",
        code="endpoint_not_offered",
    )
