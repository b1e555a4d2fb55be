"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nexus_gateway.dialects.messages import VERSION
from nexus_gateway.errors import InvalidRequest, NotFound
from nexus_gateway.provider import ANY_MODEL, CHAT
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.resolver import resolve_model
from nexus_gateway.web.gateway import gateway_of
from nexus_gateway.web.request import json_response

_ANY = "auto"
_PAGE, _LONGEST_PAGE = 20, 1000  # Anthropic's
_UNKNOWN_DATE = "1970-01-01T00:00:00Z"


def _entry(id: str, owner: str, instances: list[Instance], model: str | None) -> dict[str, Any]:
    """Describe one model in OpenAI's shape, with context window and modalities added."""
    served = {i: (model,) if model else i.models for i in instances}
    models = [m for i in instances for m in i.provider.models if m.id in served[i]]
    takes_images = any(i.takes_images_with(m) for i in instances for m in served[i])
    return {
        "id": id,
        "object": "model",
        "created": 0,
        "owned_by": owner,
        "kind": models[0].kind if models else CHAT,
        "context_window": max((m.context for m in models), default=0) or None,
        "max_output": max((m.max_output for m in models), default=0) or None,
        "modalities": ["text", "image"] if takes_images else ["text"],
        "instances": [i.name for i in instances],
    }


def catalogue(pool: Pool) -> dict[str, dict[str, Any]]:
    """Return the models that the instances serve, by id; `auto` first."""
    by_model: dict[str, list[Instance]] = {}
    for instance in pool.instances:
        for id in dict.fromkeys([*instance.models, *(m.id for m in instance.provider.models)]):
            by_model.setdefault(id, []).append(instance)
    entries = {_ANY: _entry(_ANY, "nexus-gateway", pool.instances, None)}
    for id, instances in by_model.items():
        entries[id] = _entry(id, instances[0].provider_name, instances, id)
    return entries


async def list_models(request: web.Request) -> web.Response:
    entries = catalogue(gateway_of(request).pool)
    if VERSION in request.headers:
        chats = [entry for entry in entries.values() if entry["kind"] == CHAT]
        return json_response(_page([_in_anthropics_shape(e) for e in chats], request.query))
    return json_response({"object": "list", "data": list(entries.values())})


async def retrieve_model(request: web.Request) -> web.Response:
    """Describe one model, by any name that a request may use for it."""
    pool = gateway_of(request).pool
    id = request.match_info["id"]
    entries = catalogue(pool)
    entry = entries.get(id) or (entries[_ANY] if id in ANY_MODEL else None)
    if entry is None:
        target = resolve_model(pool.instances, id, images=False, strict=True)
        instances = list(dict.fromkeys(d.instance for d in target.deployments))
        if not instances:
            raise NotFound(f"The model {id!r} is not served here.", code="model_not_found")
        entry = _entry(id, instances[0].provider_name, instances, target.model)
    entry = {**entry, "id": id}
    return json_response(_in_anthropics_shape(entry) if VERSION in request.headers else entry)


def _in_anthropics_shape(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": entry["id"],
        "created_at": _UNKNOWN_DATE,
        "lifecycle": "active",
        "max_input_tokens": entry["context_window"],
        "max_tokens": entry["max_output"],
    }


def _page(models: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Return the page of a list that a query asks for, as Anthropic's cursors do."""
    limit = query.get("limit", str(_PAGE))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= _LONGEST_PAGE):
        raise InvalidRequest(f"`limit` must be from 1 to {_LONGEST_PAGE}.", param="limit")
    ids = [model["id"] for model in models]
    after, before = (_position(ids, query, name) for name in ("after_id", "before_id"))
    begin = 0 if after is None else after + 1
    end = len(models) if before is None else before
    found = models[begin:end]
    page = found[-int(limit) :] if after is None and before is not None else found[: int(limit)]
    return {
        "data": page,
        "has_more": len(found) > len(page),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _position(ids: list[str], query: Mapping[str, str], name: str) -> int | None:
    if name not in query:
        return None
    if query[name] not in ids:
        raise InvalidRequest(f"`{name}` is not the id of a model here.", param=name)
    return ids.index(query[name])
