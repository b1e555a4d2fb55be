"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from nexus_gateway.errors import NotFound
from nexus_gateway.provider import ANY_MODEL, CHAT
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.pool import Pool
from nexus_gateway.routing.resolver import resolve_model
from nexus_gateway.web.gateway import gateway_of
from nexus_gateway.web.request import json_response

_ANY = "auto"


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
    return json_response({**entry, "id": id})
